"""Training a text-to-code transformer on captions and codes, on one device or on many.

Contract: `train(sizes, config, examples, ...)` takes tokens and codes that were made beforehand and returns params.
The batch of step k is a pure function of (seed, k), and so a run of its data, sizes and recipe, whatever interrupts it;
on other devices it is the same up to the order of sums. Whatever cannot work is refused before anything is allocated.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int
from PIL import Image

from dalle_mini import decode, model
from dalle_mini.config import ModelConfig
from dalle_mini.training.dalle.plan import make_plan, memory_of, peak_of
from dalle_mini.training.dalle.sharding import make_mesh, place_batch, shardings_of
from dalle_mini.training.dalle.step import (
    Batch,
    DalleTrainConfig,
    Params,
    State,
    computed_in,
    init_state,
    make_optimiser,
    make_step,
    row_losses,
)
from dalle_mini.training.loop import LoopConfig, fit

logger = logging.getLogger(__name__)
CHECKED_BATCHES = 4  # of held-out examples, for the validation loss


class Examples(NamedTuple):
    """Captions and codes, row by row; `empty` is the empty prompt, which replaces a dropped caption."""

    tokens: Int[np.ndarray, "M S"]
    mask: Int[np.ndarray, "M S"]
    codes: Int[np.ndarray, "M T"]
    empty: tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]

    def first(self, count: int) -> "Examples":
        return Examples(self.tokens[:count], self.mask[:count], self.codes[:count], self.empty)

    def batch(self, rows: Int[np.ndarray, " B"], dropped: np.ndarray | bool = False) -> Batch:
        """These rows, without the captions that are `dropped` [B, 1]."""
        tokens = np.where(dropped, self.empty[0][None], self.tokens[rows])
        return Batch(tokens, np.where(dropped, self.empty[1][None], self.mask[rows]), self.codes[rows])


def train(
    sizes: ModelConfig,
    config: DalleTrainConfig,
    examples: Examples,
    *,
    held_out: Examples,
    out: Path,
    sheet: Callable[[Params], Image.Image] | None = None,
    track: Callable[[int, dict[str, float]], None] | None = None,
) -> Params:
    """Train from scratch, or on from the newest checkpoint in `out`, on all devices of all hosts.

    Raises ValueError, before anything is allocated, for data that does not fit `sizes`, devices that cannot divide the
    batch, a path without a sharding rule, and a run that would not fit the memory.
    """
    for data in (examples, held_out):
        _check_data(data, sizes)
    plan = make_plan(sizes, config, jax.device_count())
    device = jax.local_devices()[0]
    plan.check(memory_of(device), device.device_kind)

    mesh = make_mesh(config)
    state, shardings = _first_state(sizes, config, mesh)
    optimiser = make_optimiser(config, state.params)
    step_fn = jax.jit(make_step(sizes, config, optimiser), donate_argnums=0, out_shardings=(shardings, None))

    def batches(step: int) -> Batch:
        rng = np.random.default_rng((config.seed, step))
        rows = rng.integers(len(examples.codes), size=config.batch_size)
        dropped = rng.random((config.batch_size, 1)) < config.caption_dropout
        return place_batch(examples.batch(rows, dropped), mesh)

    rates = {"codes_per_second": float(config.batch_size * sizes.image_length)}
    if peak := peak_of(device.device_kind):
        rates["mfu"] = plan.flops / (peak * plan.devices)
    else:
        logger.info("no MFU: the peak of %s is not known", device.device_kind)
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size, rates=rates, track=track)
    validate = _validation(sizes, config, held_out, mesh)
    show = (lambda state: sheet(state.result)) if sheet else None
    return fit(state, step_fn, batches, config=loop, sheet=show, validate=validate).result


def _check_data(data: Examples, sizes: ModelConfig) -> None:
    for name, values, length, limit, limit_name in (
        ("codes", data.codes, sizes.image_length, sizes.codebook_size, "codebook_size"),
        ("tokens", data.tokens, sizes.max_text_length, sizes.encoder_vocab_size, "encoder_vocab_size"),
    ):
        if not len(values):
            raise ValueError(f"{name} must be of 1 example or more, got none")
        lowest, highest = values.min(), values.max()
        if not 0 <= lowest <= highest < limit or values.shape[1] != length:
            raise ValueError(
                f"{name} must be [*, {length}], >= 0 and < {limit_name} {limit}, "
                f"got {values.shape} from {lowest} to {highest}"
            )


def _first_state(sizes: ModelConfig, config: DalleTrainConfig, mesh: Mesh) -> tuple[State, Any]:
    """The state before the first step and how it is sharded; every device makes its own part."""
    stored = computed_in(sizes, config)

    def make() -> State:
        params = model.init_params(stored, jax.random.key(config.seed))
        return init_state(config, make_optimiser(config, params), params)

    shardings = shardings_of(jax.eval_shape(make), mesh)
    return jax.jit(make, out_shardings=shardings)(), shardings


def _validation(
    sizes: ModelConfig, config: DalleTrainConfig, held_out: Examples, mesh: Mesh
) -> Callable[[State], dict[str, float]]:
    """The mean loss over the first held-out examples, a part of a batch at a time."""
    rows = config.batch_size // config.accumulation
    count = min(len(held_out.codes), CHECKED_BATCHES * config.batch_size)
    starts = range(0, count, rows)
    losses = jax.jit(
        partial(row_losses, sizes=computed_in(sizes, config)), out_shardings=NamedSharding(mesh, PartitionSpec())
    )

    def validate(state: State) -> dict[str, float]:
        parts = []
        for start in starts:
            batch = held_out.batch(np.arange(start, start + rows) % count)  # the last part is filled up
            parts.append(np.asarray(losses(state.result, batch=place_batch(batch, mesh)))[: count - start])
        return {"validation_loss": float(np.concatenate(parts).mean())}

    return validate


def draw(params: Params, sizes: ModelConfig, captions: Examples) -> np.ndarray:
    """Codes for the captions, one candidate each, as the model's own settings draw: int [M, T].

    Of params on many devices, too; every process gets all codes.
    """
    pairs = [
        np.stack([rows, np.broadcast_to(empty, rows.shape)], 1).reshape(2 * len(rows), -1)  # [2 M, S]
        for rows, empty in zip((captions.tokens, captions.mask), captions.empty, strict=True)
    ]
    return np.asarray(_draw(params, *pairs, sizes=sizes, whole=_whole(params)))


@partial(jax.jit, static_argnames=("sizes", "whole"))
def _draw(params: Params, tokens: jax.Array, mask: jax.Array, *, sizes: ModelConfig, whole: Any) -> jax.Array:
    settings, count = sizes.sampling, len(tokens) // 2
    state = decode.empty_state(sizes, count)
    sampling = state.sampling._replace(
        condition_scale=jnp.full(count, settings.condition_scale),
        temperature=jnp.full(count, settings.temperature),
        top_k=jnp.full(count, settings.top_k),
        top_p=jnp.full(count, settings.top_p),
    )
    # Every row its own rng, as the candidates of a gallery have.
    rngs = jax.vmap(partial(decode.candidate_rng, 0))(jnp.arange(count))
    state = state._replace(cross=decode.prefill(params, sizes, tokens, mask), sampling=sampling, rngs=rngs)
    rows = []
    for _ in range(sizes.side):
        state, row = decode.decode_row(params, sizes, state)
        rows.append(row)
    return jax.lax.with_sharding_constraint(jnp.concatenate(rows, 1), whole)


def gathered(params: Params) -> Params:
    """The whole of params on every host, as numpy arrays; all processes call it together."""
    whole = jax.jit(lambda x: x, out_shardings=_whole(params))
    return jax.tree.map(lambda leaf: np.asarray(leaf if leaf.is_fully_addressable else whole(leaf)), params)


def _whole(params: Params) -> NamedSharding:
    """On all devices of `params`, undivided."""
    return NamedSharding(jax.tree.leaves(params)[0].sharding.mesh, PartitionSpec())
