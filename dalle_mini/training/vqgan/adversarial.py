"""The discriminator in training: what it teaches the decoder, and what it learns itself.

For photographs, in which no two squares are alike: trained in turn on the same batches from `discriminator_start` on,
so that texture that the codes cannot hold is painted as likely texture and not as its mean, which is a blur.

Papers: Esser et al. 2021 (arXiv:2012.09841, section 3.1); Isola et al. 2017 (arXiv:1611.07004).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dalle_mini.training.schedule import learning_rate
from dalle_mini.training.vqgan import discriminator
from dalle_mini.training.vqgan.config import VQGANTrainConfig
from dalle_mini.training.vqgan.losses import reconstruction_loss
from dalle_mini.training.vqgan.mixed_precision import cast, paint
from vqgan.config import VQGANConfig


class Critic(NamedTuple):
    """The discriminator in training."""

    params: dict[str, Any]
    opt_state: Any


def init_critic(config: VQGANTrainConfig, rng: jax.Array) -> Critic:
    params = jax.jit(partial(discriminator.init_params, config.discriminator))(rng)
    return Critic(params, critic_optimiser(config).init(params))


def critic_optimiser(config: VQGANTrainConfig) -> optax.GradientTransformation:
    """Adam as in Isola et al. 2017, section 3.3; its rate falls with the painter's, so that neither runs away."""
    schedule, peak = learning_rate(config), config.discriminator.learning_rate
    # The critic's first update is that of step discriminator_start.
    return optax.adam(
        lambda count: peak / config.learning_rate * schedule(count + config.discriminator_start), 0.5, 0.999
    )


def adversarial_loss(
    params: Any,
    critic: Critic,
    straight: jax.Array,
    pixels: jax.Array,
    target: jax.Array,
    *,
    sizes: VQGANConfig,
    config: VQGANTrainConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the decoder is to lower about the discriminator's opinion of `pixels`, and metrics."""
    judge = partial(discriminator.logits, cast(critic.params, config), config.discriminator)

    def at_last_kernel(loss: Callable[[jax.Array], jax.Array]) -> jax.Array:
        # Paints again from the last kernel on; the compiler sees that all before it has been computed already.
        fixed, vectors = jax.lax.stop_gradient((params, straight))
        decoder, last = fixed["decoder"], fixed["decoder"]["conv_out"]

        def of_kernel(kernel: jax.Array) -> jax.Array:
            whole = {**fixed, "decoder": {**decoder, "conv_out": {**last, "kernel": kernel}}}
            return loss(paint(whole, vectors, sizes, config))

        return jax.grad(of_kernel)(last["kernel"])

    def opinion(pixels: jax.Array) -> jax.Array:
        return discriminator.painter_loss(judge(pixels.astype(config.dtype)))

    weight = discriminator.adaptive_weight(
        at_last_kernel(lambda pixels: reconstruction_loss(pixels, target, config)), at_last_kernel(opinion)
    )
    return weight * opinion(pixels), {"adaptive_weight": weight}


def update_critic(
    critic: Critic, painted: jax.Array, real: np.ndarray, *, step: jax.Array, config: VQGANTrainConfig
) -> tuple[Critic, jax.Array]:
    """The discriminator after a step, and its loss before; it stays as it is until `discriminator_start`."""
    params, opt_state = critic
    pictures = (jnp.asarray(real, config.dtype) / 255, jax.lax.stop_gradient(painted).astype(config.dtype))

    def loss_of(params: Any) -> jax.Array:
        judged = [discriminator.logits(cast(params, config), config.discriminator, x) for x in pictures]
        return discriminator.discriminator_loss(*judged)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = critic_optimiser(config).update(grads, opt_state)
    updated = Critic(optax.apply_updates(params, updates), opt_state)
    started = step >= config.discriminator_start
    return jax.tree.map(lambda new, old: jnp.where(started, new, old), updated, critic), loss
