"""The codebook in training: at unit norm, following moving averages of what chose its codes, not a gradient.

At unit norm the published Euclidean look-up is a cosine look-up.

Papers: van den Oord et al. 2017 (arXiv:1711.00937, appendix A.1: moving averages); Yu et al. 2022 (arXiv:2110.04627,
section 3.2: low-dimensional codes at unit norm); Dhariwal et al. 2020 (arXiv:2005.00341, section 3.1: restarting dead
codes).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dalle_mini.training.vqgan.config import VQGANTrainConfig


class Codebook(NamedTuple):
    """Moving averages; the codes are `unit(sums)`."""

    uses: jax.Array  # [E] how often a code was chosen in a step
    sums: jax.Array  # [E, D] of the latents that chose it


def unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-8)


def update_codebook(
    codebook: Codebook,
    z: jax.Array,
    codes: jax.Array,
    weights: jax.Array | None,
    *,
    step: jax.Array,
    config: VQGANTrainConfig,
) -> Codebook:
    """Moving averages of uses and latents; dead codes restart from latents of this batch."""
    flat, chosen = z.reshape(-1, z.shape[-1]), codes.reshape(-1)
    size, decay = codebook.uses.shape[0], config.codebook_decay
    count = jnp.ones(len(flat)) if weights is None else weights
    uses = decay * codebook.uses + (1 - decay) * jax.ops.segment_sum(count, chosen, size)
    sums = decay * codebook.sums + (1 - decay) * jax.ops.segment_sum(flat * count[:, None], chosen, size)

    rng = jax.random.fold_in(jax.random.key(config.seed), step)
    p = None if weights is None else weights / weights.sum()
    fresh = flat[jax.random.choice(rng, len(flat), (size,), p=p)]
    restart_all = step < config.continuous_steps
    dead = restart_all | ((uses < config.dead_below) & (step % config.restart_every == 0))
    uses = jnp.where(dead, 10 * config.dead_below, uses)
    sums = jnp.where(dead[:, None], fresh * uses[:, None], sums)
    return Codebook(uses, sums)
