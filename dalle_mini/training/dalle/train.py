"""Training a text-to-code transformer on captions and codes, on one device or on many.

Contract: `train(sizes, config, examples, ...)` takes tokens and codes that were made beforehand and returns params.
The batch of step k is a pure function of (seed, k), and so a run of its data, sizes and recipe, whatever interrupts it;
on other devices it is the same up to the order of sums. Whatever cannot work is refused before anything is allocated.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from dalle_mini import model
from dalle_mini.checkpoint import load_params
from dalle_mini.config import ModelConfig
from dalle_mini.model import Params
from dalle_mini.model_names import find
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.dalle.loss import Batch, computed_in, row_losses
from dalle_mini.training.dalle.optimiser import make_optimiser
from dalle_mini.training.dalle.plan import make_plan, memory_of, peak_of
from dalle_mini.training.dalle.sharding import make_mesh, place_batch, shardings_of
from dalle_mini.training.dalle.train_step import State, init_state, make_step
from dalle_mini.training.dalle.validation import mean_loss
from dalle_mini.training.loop import LoopConfig, begun, fit

logger = logging.getLogger(__name__)
CHECKED_BATCHES = 4  # of held-out examples, for the validation loss


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
    batch, a path without a sharding rule, and a run that would not fit the memory; CheckpointError for a model to go on
    from that is none of these sizes.
    """
    for data in (examples, held_out):
        data.check(sizes)
    plan = make_plan(sizes, config, jax.device_count())
    device = jax.local_devices()[0]
    plan.check(memory_of(device), device.device_kind)

    mesh = make_mesh(config)
    fresh = not config.init or begun(out)
    given = None if fresh else load_params(find(config.init).dalle, sizes, dtype="float32")
    state, shardings = _first_state(sizes, config, mesh, given)
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


def _first_state(
    sizes: ModelConfig, config: DalleTrainConfig, mesh: Mesh, given: Params | None = None
) -> tuple[State, Any]:
    """The state before the first step, of fresh params or given ones, and how it is sharded.

    Every device makes its own part.
    """
    stored = computed_in(sizes, config)

    def make(given: Params | None) -> State:
        params = given or model.init_params(stored, jax.random.key(config.seed))
        return init_state(config, make_optimiser(config, params), params)

    shardings = shardings_of(jax.eval_shape(make, given), mesh)
    return jax.jit(make, out_shardings=shardings)(given), shardings


def _validation(
    sizes: ModelConfig, config: DalleTrainConfig, held_out: Examples, mesh: Mesh
) -> Callable[[State], dict[str, float]]:
    """The mean loss over the first held-out examples, a part of a batch at a time."""
    data = held_out.batch(np.arange(min(len(held_out.codes), CHECKED_BATCHES * config.batch_size)))
    losses = jax.jit(
        partial(row_losses, sizes=computed_in(sizes, config)), out_shardings=NamedSharding(mesh, PartitionSpec())
    )

    def placed(params: Params, batch: Batch) -> jax.Array:
        return losses(params, batch=place_batch(batch, mesh))

    def validate(state: State) -> dict[str, float]:
        rows = config.batch_size // config.accumulation
        return {"validation_loss": mean_loss(placed, state.result, data, rows=rows)}

    return validate
