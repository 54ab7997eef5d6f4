"""Training the encoder of a VQGAN alone to write given codes of its codebook, which stays as it is.

A vote over what an encoder writes (emoji/spelling.py) gives every drawing one spelling, of which the encoder itself
writes a part alone. Whoever goes on from the codes of a picture, as a text-to-code model does, then meets codes that it
never saw. Here the encoder learns the spelling.
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
from dalle_mini.training.vqgan.config import EncoderTrainConfig
from dalle_mini.training.vqgan.kernels import muon_of_kernels
from dalle_mini.training.vqgan.train import comparison_sheet
from vqgan import model
from vqgan.config import VQGANConfig

SHARPNESS = 4  # of the logits, times the length of a latent: of codes that lie close together one is to stand out


class EncoderState(NamedTuple):
    trained: dict[str, Any]  # encoder and quant_conv, of the dimensions that it writes
    opt_state: Any


def train_encoder(
    sizes: VQGANConfig,
    config: EncoderTrainConfig,
    params: dict[str, Any],
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]],
    *,
    out: Path,
    held_out: np.ndarray,
) -> dict[str, Any]:
    """Train the encoder of `params` on, for `config.steps` steps; returns whole params.

    `batches(step)` gives codes, int [B, N], and the uint8 pictures [B, H, W, 3] that are to have them; uint8 `held_out`
    are redrawn on the sample sheets. The codebook's vectors must be of one length, as those of our recipes are: the
    nearest is then the one with the largest product, and the products are the logits.
    """
    own = model.written_dim(params)
    table = params["quantize"]["embedding"]["embedding"][:, :own]
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), muon_of_kernels(config))

    def whole(trained: dict[str, Any]) -> dict[str, Any]:
        more = sizes.embed_dim - own
        padded = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]), trained["quant_conv"])
        return {**params, **trained, "quant_conv": padded}

    def loss_of(trained: dict[str, Any], codes: jax.Array, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = model.latents(whole(trained), sizes, pixels)[..., :own]
        logits = SHARPNESS * z.reshape(*codes.shape, own) @ table.T  # [B, N, E]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
        return losses.mean(), (logits.argmax(-1) == codes).mean()

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: EncoderState, batch: tuple[jax.Array, jax.Array]) -> tuple[EncoderState, dict[str, jax.Array]]:
        codes, pixels = batch[0], jnp.asarray(batch[1], jnp.float32) / 255
        (loss, equal), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trained, codes, pixels)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trained)
        return EncoderState(optax.apply_updates(state.trained, updates), opt_state), {"loss": loss, "equal": equal}

    def sheet(state: EncoderState) -> Image.Image:
        written = whole(state.trained)
        codes = model.encode(written, sizes, jnp.asarray(held_out, jnp.float32) / 255)
        return comparison_sheet(written, sizes, codes, held_out)

    trained = {"encoder": params["encoder"], "quant_conv": jax.tree.map(lambda x: x[..., :own], params["quant_conv"])}
    trained = jax.tree.map(jnp.copy, trained)  # donated below
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    return whole(
        fit(EncoderState(trained, optimiser.init(trained)), step_fn, batches, config=loop, sheet=sheet).trained
    )
