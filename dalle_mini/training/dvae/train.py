"""Training a dVAE on pictures.

Contract: `train(sizes, config, batches, ...)` takes a function step -> uint8 pictures and returns params that
`vqgan.save` writes. One device, float32.
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

from dalle_mini.training.dvae.config import DVAETrainConfig
from dalle_mini.training.dvae.loss import divergence, reconstruction, relaxed
from dalle_mini.training.loop import LoopConfig, fit
from dalle_mini.training.schedule import half_cosine, moving_average
from dalle_mini.training.vqgan.train import beside
from vqgan import Codec, dvae
from vqgan.config import DVAEConfig


class DVAEState(NamedTuple):
    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    average: Any  # of params


def train(
    sizes: DVAEConfig,
    config: DVAETrainConfig,
    batches: Callable[[int], np.ndarray],
    *,
    out: Path,
    held_out: np.ndarray,
) -> dict[str, Any]:
    """Train from scratch, or on from the newest checkpoint in `out`; `held_out` pictures are redrawn on the sheets."""
    optimiser = make_optimiser(config)

    def sheet(state: DVAEState) -> Image.Image:
        codec = Codec(sizes, state.average)
        return beside(held_out, codec.decode(codec.encode(held_out)))

    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    state = fit(
        init_state(sizes, config, optimiser), make_step(sizes, config, optimiser), batches, config=loop, sheet=sheet
    )
    return state.average


def make_optimiser(config: DVAETrainConfig) -> optax.GradientTransformation:
    end = config.learning_rate_part * config.steps
    rate = partial(half_cosine, first=config.learning_rate, last=config.last_learning_rate, end=end)
    adam = optax.adamw(rate, 0.9, 0.999, 1e-8, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def init_state(sizes: DVAEConfig, config: DVAETrainConfig, optimiser: optax.GradientTransformation) -> DVAEState:
    params = jax.jit(partial(dvae.init_params, sizes))(jax.random.key(config.seed))
    return DVAEState(jnp.int32(0), params, optimiser.init(params), jax.tree.map(jnp.copy, params))


def make_step(sizes: DVAEConfig, config: DVAETrainConfig, optimiser: optax.GradientTransformation):
    """The jitted `(state, uint8 pictures) -> (state, metrics)`; the state is donated."""

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: DVAEState, pixels: jax.Array) -> tuple[DVAEState, dict[str, jax.Array]]:
        grads, metrics = jax.grad(_loss, has_aux=True)(state.params, state.step, pixels, sizes=sizes, config=config)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = moving_average(state.average, params, step=state.step, decay=config.ema_decay)
        return DVAEState(state.step + 1, params, opt_state, average), metrics

    return step_fn


def _loss(params: Any, step: jax.Array, pixels: jax.Array, *, sizes: DVAEConfig, config: DVAETrainConfig):
    target, end = pixels.astype(jnp.float32) / 255, config.temperature_part * config.steps
    temperature = half_cosine(step, first=config.temperature, last=config.last_temperature, end=end)
    kl_weight = half_cosine(step, first=0, last=config.kl_weight, end=config.kl_part * config.steps)
    logits = dvae.logits(params, sizes, target)  # [B, h, w, E]
    rng = jax.random.fold_in(jax.random.key(config.seed + 1), step)
    stats = dvae.distribution(params, sizes, relaxed(logits, rng, temperature))  # [B, H, W, 6]
    error = reconstruction(stats, dvae.map_pixels(target))
    kl = divergence(logits)
    loss = error + kl_weight * kl.sum((1, 2)).mean() / target[0].size
    mse = jnp.square(dvae.paint(stats) - target).mean()
    used = jnp.zeros(sizes.vocab_size).at[jnp.argmax(logits, -1).ravel()].set(1).sum()
    metrics = {"loss": loss, "reconstruction": error, "kl_per_code": kl.mean(), "psnr": -10 * jnp.log10(mse)}
    return loss, metrics | {"codes_in_batch": used, "temperature": temperature, "kl_weight": kl_weight}
