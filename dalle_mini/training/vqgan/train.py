"""Training a VQGAN on pictures.

Contract: `train(sizes, config, batches, ...)` takes a function step -> `Batch` and returns params in the published
tree. Several devices share a batch, rows to each; the state is on all of them, and the sums are those of one device up
to their order.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from dalle_mini.training.loop import LoopConfig, fit
from dalle_mini.training.vqgan import perceptual
from dalle_mini.training.vqgan.config import VQGANTrainConfig
from dalle_mini.training.vqgan.train_step import Batch, VQGANState, init_state, make_optimiser, make_step, result_of
from vqgan import model
from vqgan.config import VQGANConfig


def check(sizes: VQGANConfig, config: VQGANTrainConfig, *, devices: int = 1) -> None:
    """Raise ValueError if settings do not go together, before anything is allocated."""
    smallest = config.discriminator.smallest_side
    if config.discriminator_weight and sizes.resolution < smallest:
        raise ValueError(
            f"resolution must be >= {smallest} for {config.discriminator.layers} discriminator.layers, "
            f"got {sizes.resolution}"
        )
    if config.perceptual_weight and not perceptual.scales(sizes.resolution, sizes.resolution):
        raise ValueError(f"resolution must be >= {perceptual.WINDOW} for perceptual_weight, got {sizes.resolution}")
    if config.batch_size % devices:
        raise ValueError(f"batch_size must be a multiple of the {devices} devices, got {config.batch_size}")


def train(
    sizes: VQGANConfig,
    config: VQGANTrainConfig,
    batches: Callable[[int], Batch],
    *,
    out: Path,
    held_out: np.ndarray,
    devices: Sequence[jax.Device] = (),
) -> dict[str, Any]:
    """Train from scratch, or on from the newest checkpoint in `out`; returns params in the published tree.

    `batches(step)` gives pictures and which of their squares are alike; `held_out` uint8 pictures are redrawn on the
    sample sheets. The batch is spread over `devices`, if several are given. Raises ValueError; see `check`.
    """
    check(sizes, config, devices=max(1, len(devices)))
    optimiser = make_optimiser(config)
    state, everywhere, by_row = init_state(sizes, config, optimiser), None, None
    if len(devices) > 1:
        mesh = Mesh(np.array(devices), ("data",))
        everywhere, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        state = jax.device_put(state, everywhere)

    def spread(step: int) -> Batch:
        return jax.device_put(batches(step), by_row) if by_row else batches(step)

    def sheet(state: VQGANState) -> Image.Image:
        params = result_of(state)
        codes = model.encode(params, sizes, jnp.asarray(held_out, jnp.float32) / 255)
        return comparison_sheet(params, sizes, codes, held_out)

    step_fn = make_step(sizes, config, optimiser, state_sharding=everywhere)
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    return result_of(fit(state, step_fn, spread, config=loop, sheet=sheet))


def comparison_sheet(params: dict[str, Any], sizes: VQGANConfig, codes: Any, pixels: np.ndarray) -> Image.Image:
    """Pictures (upper of two rows) and what is painted from their codes (lower), eight to a row."""
    painted = jax.jit(lambda p, codes: model.decode(p, sizes, codes))(params, codes)
    return beside(pixels, np.asarray(jnp.clip(painted, 0, 1) * 255).astype(np.uint8))


def beside(pixels: np.ndarray, painted: np.ndarray) -> Image.Image:
    """Pictures (upper of two rows) and others (lower), eight to a row."""
    rows = []
    for i in range(0, len(pixels), 8):
        rows += [np.concatenate(list(x[i : i + 8]), axis=1) for x in (pixels, painted)]
    return Image.fromarray(np.concatenate(rows))
