"""One step of training a VQGAN: reconstruction, commitment, and then what the pictures ask for.

Contract: pure functions. The codebook is kept at unit norm (codebook.py). A term whose weight is 0 is not computed at
all: consistency, for drawings (losses.py); the discriminator, for photographs (adversarial.py).

Papers: van den Oord et al. 2017 (arXiv:1711.00937); Esser et al. 2021 (arXiv:2012.09841).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from dalle_mini.training.schedule import learning_rate, moving_average
from dalle_mini.training.vqgan.adversarial import adversarial_loss, init_critic, update_critic
from dalle_mini.training.vqgan.codebook import Codebook, unit, update_codebook
from dalle_mini.training.vqgan.config import VQGANTrainConfig
from dalle_mini.training.vqgan.losses import consistency_loss, reconstruction_loss
from dalle_mini.training.vqgan.mixed_precision import latents, paint
from vqgan import model
from vqgan.config import VQGANConfig


class VQGANState(NamedTuple):
    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    codebook: Codebook
    critic: Any = ()  # Critic; nothing while discriminator_weight is 0
    average: Any = ()  # of params; nothing while ema_decay is 0


class Batch(NamedTuple):
    pixels: np.ndarray  # uint8 [B, H, W, 3]
    # int32 [B * h * w]: identical squares have the same number (`same_cells`). None where consistency_weight is 0.
    cells: np.ndarray | None = None


def _loss(params, state: VQGANState, batch: Batch, *, sizes: VQGANConfig, config: VQGANTrainConfig):
    target, step = jnp.asarray(batch.pixels, jnp.float32) / 255, state.step
    codebook = params["quantize"]["embedding"]["embedding"]
    z = unit(latents(params, target, sizes, config))  # [B, h, w, D]
    codes = model.nearest_codes(codebook, z)
    quantised = jax.lax.stop_gradient(codebook)[codes]
    continuous = step < config.continuous_steps
    commitment = jnp.square(z - quantised).sum(-1).mean()
    straight = jnp.where(continuous, z, z + jax.lax.stop_gradient(quantised - z))
    pixels = paint(params, straight, sizes, config)
    others = jnp.where(continuous, 0, config.commitment_weight) * commitment
    mse = jnp.square(jnp.clip(pixels, 0, 1) - target).mean()
    metrics, weights = {"psnr": -10 * jnp.log10(mse)}, None
    if batch.cells is not None:
        spread, weights, more = consistency_loss(
            z.reshape(-1, z.shape[-1]), codes.reshape(-1), jnp.asarray(batch.cells)
        )
        start, end = config.consistency_steps
        others += config.consistency_weight * jnp.clip((step - start) / (end - start), 0, 1) * spread
        metrics |= more
    if state.critic:
        adversarial, more = adversarial_loss(params, state.critic, straight, pixels, target, sizes=sizes, config=config)
        others += config.discriminator_weight * (step >= config.discriminator_start) * adversarial
        metrics |= more
    loss = reconstruction_loss(pixels, target, config) + others
    return loss, (z, codes, weights, pixels, {"loss": loss, **metrics})


def make_step(
    sizes: VQGANConfig,
    config: VQGANTrainConfig,
    optimiser: optax.GradientTransformation,
    *,
    state_sharding: NamedSharding | None = None,
):
    """The jitted `(state, batch) -> (state, metrics)`; the state is donated."""

    @partial(jax.jit, donate_argnums=0, out_shardings=state_sharding)
    def step_fn(state: VQGANState, batch: Batch) -> tuple[VQGANState, dict[str, jax.Array]]:
        grads, (z, codes, weights, pixels, metrics) = jax.grad(_loss, has_aux=True)(
            state.params, state, batch, sizes=sizes, config=config
        )
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        codebook = update_codebook(state.codebook, z, codes, weights, step=state.step, config=config)
        params = {**params, "quantize": {"embedding": {"embedding": unit(codebook.sums)}}}
        metrics["alive"] = (codebook.uses > config.dead_below).sum()
        critic, average = state.critic, state.average
        if critic:
            critic, metrics["discriminator"] = update_critic(
                critic, pixels, batch.pixels, step=state.step, config=config
            )
        if config.ema_decay:
            average = moving_average(average, params, step=state.step, decay=config.ema_decay)
        return VQGANState(state.step + 1, params, opt_state, codebook, critic, average), metrics

    return step_fn


def make_optimiser(config: VQGANTrainConfig) -> optax.GradientTransformation:
    # The codebook follows its moving averages, not the gradient.
    labels = {"quantize": "codebook"}
    return optax.multi_transform(
        {
            "network": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate(config), 0.9, 0.99)),
            "codebook": optax.set_to_zero(),
        },
        lambda params: {name: labels.get(name, "network") for name in params},
    )


def init_state(sizes: VQGANConfig, config: VQGANTrainConfig, optimiser: optax.GradientTransformation) -> VQGANState:
    params = jax.jit(partial(model.init_params, sizes))(jax.random.key(config.seed))
    codes = unit(jax.random.normal(jax.random.key(config.seed + 1), (sizes.n_embed, sizes.embed_dim)))
    params["quantize"]["embedding"]["embedding"] = codes
    codebook = Codebook(jnp.zeros(sizes.n_embed), jnp.zeros_like(codes))
    state = VQGANState(jnp.int32(0), params, optimiser.init(params), codebook)
    if config.discriminator_weight:
        state = state._replace(critic=init_critic(config, jax.random.key(config.seed + 2)))
    if config.ema_decay:
        state = state._replace(average=jax.tree.map(jnp.copy, params))  # not the same arrays: they are donated
    return state


def result_of(state: VQGANState) -> dict[str, Any]:
    """The params to use: the moving average if there is one. The codebook is an average already."""
    return {**state.average, "quantize": state.params["quantize"]} if state.average else state.params
