"""Training a text-to-code transformer on captions and codes.

Contract: `train(sizes, config, examples, ...)` takes tokens and codes that were made beforehand and returns params.
Teacher forcing with the mean cross entropy over all classes, as the original was trained; a caption is dropped with
probability `caption_dropout`, which is what super conditioning needs (Ho & Salimans 2022, section 3.2).

The optimiser is Muon (Jordan et al. 2024) for matrices and Adam for tables, norms and the head: half the examples of
Adam alone for the same loss, measured on this task.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Int
from optax.contrib import MuonDimensionNumbers, muon
from PIL import Image

from dalle_mini import model
from dalle_mini.config import ModelConfig
from vqgan.loop import LoopConfig, fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class DalleTrainConfig:
    steps: int
    batch_size: int = 32
    learning_rate: float = 2e-2  # of Muon; Adam's is a tenth
    warmup_steps: int = 50
    caption_dropout: float = 0.1
    seed: int = 0


class Examples(NamedTuple):
    """Captions and codes, row by row; `empty` is the empty prompt, which replaces a dropped caption."""

    tokens: Int[np.ndarray, "M S"]
    mask: Int[np.ndarray, "M S"]
    codes: Int[np.ndarray, "M T"]
    empty: tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]


class DalleState(NamedTuple):
    params: dict[str, Any]
    opt_state: Any


def make_optimiser(config: DalleTrainConfig, params: dict[str, Any]) -> optax.GradientTransformation:
    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0, peak, min(config.warmup_steps, config.steps // 2), config.steps)

    flat = traverse_util.flatten_dict(params)
    matrix = {path: leaf.ndim == 2 and path[1].startswith("layers_") for path, leaf in flat.items()}
    matrices = traverse_util.unflatten_dict({p: MuonDimensionNumbers() if yes else None for p, yes in matrix.items()})
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule(config.learning_rate),
            adam_learning_rate=schedule(config.learning_rate / 10),
            muon_weight_dimension_numbers=matrices,
        ),
    )


def loss_of(params: dict[str, Any], sizes: ModelConfig, tokens: Any, mask: Any, codes: Any) -> jax.Array:
    """Mean cross entropy, in nats, of predicting every code from those before it and the caption."""
    start = jnp.full((codes.shape[0], 1), sizes.bos_code, codes.dtype)
    logits = model.forward(params, sizes, tokens, mask, jnp.concatenate([start, codes[:, :-1]], axis=1))
    return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean()


def train(
    sizes: ModelConfig,
    config: DalleTrainConfig,
    examples: Examples,
    *,
    held_out: Examples,
    out: Path,
    sheet: Callable[[dict[str, Any]], Image.Image] | None = None,
) -> dict[str, Any]:
    """Train from scratch, or on from the newest checkpoint in `out`. Raises ValueError if codes do not fit `sizes`."""
    lowest, highest = examples.codes.min(), examples.codes.max()
    if not 0 <= lowest <= highest < sizes.codebook_size or examples.codes.shape[1] != sizes.image_length:
        raise ValueError(
            f"codes must be [*, {sizes.image_length}], >= 0 and < codebook_size {sizes.codebook_size}, "
            f"got {examples.codes.shape} from {lowest} to {highest}"
        )
    params = jax.jit(partial(model.init_params, sizes))(jax.random.key(config.seed))
    optimiser = make_optimiser(config, params)

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: DalleState, batch: tuple[np.ndarray, ...]) -> tuple[DalleState, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_of)(state.params, sizes, *batch)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        return DalleState(optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    evaluate = jax.jit(partial(loss_of, sizes=sizes))
    chosen = slice(0, 4 * config.batch_size)
    check = (held_out.tokens[chosen], held_out.mask[chosen], held_out.codes[chosen])

    def report(state: DalleState) -> dict[str, jax.Array]:
        return {"validation_loss": evaluate(state.params, tokens=check[0], mask=check[1], codes=check[2])}

    def batches(step: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng((config.seed, step))
        rows = rng.integers(len(examples.codes), size=config.batch_size)
        dropped = rng.random((config.batch_size, 1)) < config.caption_dropout
        tokens = np.where(dropped, examples.empty[0], examples.tokens[rows])
        mask = np.where(dropped, examples.empty[1], examples.mask[rows])
        return tokens, mask, examples.codes[rows]

    state = DalleState(params, optimiser.init(params))
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    show = (lambda state: sheet(state.params)) if sheet else None
    return fit(state, step_fn, batches, config=loop, sheet=show, validate=report).params
