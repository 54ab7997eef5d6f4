"""Training the decoder of a VQGAN alone, while every picture keeps its codes.

What was learned from the codes, a text-to-code model above all, stays valid.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from dalle_mini.training.loop import LoopConfig, fit
from dalle_mini.training.schedule import learning_rate
from dalle_mini.training.vqgan.config import DecoderTrainConfig
from dalle_mini.training.vqgan.losses import reconstruction_loss
from dalle_mini.training.vqgan.train import comparison_sheet
from vqgan import model
from vqgan.config import VQGANConfig


class DecoderState(NamedTuple):
    trained: dict[str, Any]  # post_quant_conv and decoder
    opt_state: Any


def train_decoder(
    sizes: VQGANConfig,
    config: DecoderTrainConfig,
    params: dict[str, Any],
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]],
    *,
    out: Path,
    held_out: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Train the decoder of `params` on, for `config.steps` steps, while every picture keeps its codes.

    `batches(step)` gives codes, int [B, N], and the uint8 pictures [B, H, W, 3] to paint from them; so does `held_out`.
    Returns whole params.
    """
    names = ("decoder", "post_quant_conv")
    fixed = {name: tree for name, tree in params.items() if name not in names}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate(config), 0.9, 0.99))

    def loss_of(trained: dict[str, Any], codes: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        pixels = model.decode({**fixed, **trained}, sizes, codes)
        return reconstruction_loss(pixels, target, config), jnp.square(jnp.clip(pixels, 0, 1) - target).mean()

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: DecoderState, batch: tuple[jax.Array, jax.Array]) -> tuple[DecoderState, dict[str, jax.Array]]:
        codes, target = batch[0], jnp.asarray(batch[1], jnp.float32) / 255
        (loss, mse), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trained, codes, target)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return DecoderState(trained, opt_state), {"loss": loss, "psnr": -10 * jnp.log10(mse)}

    def sheet(state: DecoderState) -> Image.Image:
        return comparison_sheet({**fixed, **state.trained}, sizes, *held_out)

    trained = jax.tree.map(jnp.copy, {name: params[name] for name in names})  # donated below
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    state = fit(DecoderState(trained, optimiser.init(trained)), step_fn, batches, config=loop, sheet=sheet)
    return {**fixed, **state.trained}
