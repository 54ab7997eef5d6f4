"""Training the decoder of a VQGAN alone, while every picture keeps its codes.

What was learned from the codes, a text-to-code model above all, stays valid.

A look-up works best with few dimensions (Yu et al. 2022, arXiv:2110.04627, section 3.2), a decoder with many: it has to
tell thousands of codes apart. So codes may be given dimensions that the encoder does not write, next to nothing and
equally long for all of them: the nearest code stays the nearest one, and the network is one of the published layout.
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
from PIL import Image

from dalle_mini.training.loop import LoopConfig, fit
from dalle_mini.training.schedule import learning_rate
from dalle_mini.training.vqgan.codebook import unit
from dalle_mini.training.vqgan.config import DecoderTrainConfig
from dalle_mini.training.vqgan.kernels import muon_of_kernels
from dalle_mini.training.vqgan.losses import reconstruction_loss
from dalle_mini.training.vqgan.train import comparison_sheet
from vqgan import model
from vqgan.config import VQGANConfig

LENGTH = 2**-6  # of what is new in a code, which the decoder's first kernel makes up for: no rounding moves a code


class DecoderState(NamedTuple):
    trained: dict[str, Any]  # post_quant_conv, decoder and what codes have for them alone
    opt_state: Any


def train_decoder(
    sizes: VQGANConfig,
    config: DecoderTrainConfig,
    params: dict[str, Any],
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]],
    *,
    out: Path,
    held_out: tuple[np.ndarray, np.ndarray],
) -> tuple[VQGANConfig, dict[str, Any]]:
    """Train the decoder of `params` on, for `config.steps` steps, while every picture keeps its codes.

    `batches(step)` gives codes, int [B, N], and the uint8 pictures [B, H, W, 3] to paint from them; so does `held_out`.
    Returns the sizes with `config.embed_dim`, if it is given, and whole params.
    """
    own = model.written_dim(params)
    sizes, params = widened(sizes, params, max(config.embed_dim, sizes.embed_dim), seed=config.seed)
    table = params["quantize"]["embedding"]["embedding"]

    def whole(trained: dict[str, Any]) -> dict[str, Any]:
        rest = dict(trained)
        if own < sizes.embed_dim:
            embedding = jnp.concatenate([table[:, :own], LENGTH * unit(rest.pop("codes"))], axis=1)
            rest["quantize"] = {"embedding": {"embedding": embedding}}
            rest["post_quant_conv"] = _scaled(rest["post_quant_conv"], own, 1 / LENGTH)
        return {**params, **rest}

    optimiser = optax.chain(optax.clip_by_global_norm(1.0), _optimiser(config))

    def loss_of(trained: dict[str, Any], codes: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        pixels = model.decode(whole(trained), sizes, codes)
        return reconstruction_loss(pixels, target, config), jnp.square(jnp.clip(pixels, 0, 1) - target).mean()

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: DecoderState, batch: tuple[jax.Array, jax.Array]) -> tuple[DecoderState, dict[str, jax.Array]]:
        codes, target = batch[0], jnp.asarray(batch[1], jnp.float32) / 255
        (loss, mse), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trained, codes, target)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return DecoderState(trained, opt_state), {"loss": loss, "psnr": -10 * jnp.log10(mse)}

    def sheet(state: DecoderState) -> Image.Image:
        return comparison_sheet(whole(state.trained), sizes, *held_out)

    trained = {name: params[name] for name in ("decoder", "post_quant_conv")}
    if own < sizes.embed_dim:
        trained |= {"codes": table[:, own:], "post_quant_conv": _scaled(trained["post_quant_conv"], own, LENGTH)}
    trained = jax.tree.map(jnp.copy, trained)  # donated below
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    state = fit(DecoderState(trained, optimiser.init(trained)), step_fn, batches, config=loop, sheet=sheet)
    return sizes, whole(state.trained)


def _optimiser(config: DecoderTrainConfig) -> optax.GradientTransformation:
    return muon_of_kernels(config) if config.optimiser == "muon" else optax.adam(learning_rate(config), 0.9, 0.99)


def widened(
    sizes: VQGANConfig, params: dict[str, Any], embed_dim: int, *, seed: int
) -> tuple[VQGANConfig, dict[str, Any]]:
    """The same network with codes of `embed_dim` dimensions, of which the encoder leaves the new ones at 0."""
    more = embed_dim - sizes.embed_dim
    if not more:
        return sizes, params
    of_codes, of_decoder = jax.random.split(jax.random.key(seed))
    quant, post, codes = params["quant_conv"], params["post_quant_conv"], params["quantize"]["embedding"]["embedding"]
    drawn = jax.random.normal(of_codes, (len(codes), more))
    fresh = jax.random.normal(of_decoder, (1, 1, more, post["kernel"].shape[-1])) / LENGTH
    return dataclasses.replace(sizes, embed_dim=embed_dim), {
        **params,
        "quant_conv": jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]), quant),
        "post_quant_conv": {**post, "kernel": jnp.concatenate([post["kernel"], fresh], axis=2)},
        "quantize": {"embedding": {"embedding": jnp.concatenate([codes, LENGTH * unit(drawn)], axis=1)}},
    }


def _scaled(post_quant_conv: dict[str, Any], own: int, by: float) -> dict[str, Any]:
    """What it makes of the dimensions from `own` on, times `by`."""
    return {**post_quant_conv, "kernel": post_quant_conv["kernel"].at[:, :, own:].multiply(by)}
