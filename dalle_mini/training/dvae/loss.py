"""What a dVAE in training is to lower: the evidence lower bound, with codes that are not yet decided.

Contract: pure functions of float arrays. Everything is in nats for each of a picture's H * W * 3 values.

Paper: Ramesh et al. 2021 (arXiv:2102.12092), section 2.1, appendix A.2 (the bound) and A.3 (logit-Laplace); the
relaxation is of Jang et al. 2016 (arXiv:1611.01144) and Maddison et al. 2016 (arXiv:1611.00712).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqgan.dvae import EPS

# Of a mapped pixel's logit, how far the next of its 256 values is at least. To be surer than that would have no end:
# the flat colours of drawings are predicted exactly.
SMALLEST_SCALE = (1 - 2 * EPS) / 255 / 0.25


def relaxed(logits: Float[Array, "B h w E"], rng: Array, temperature: Array) -> Float[Array, "B h w E"]:
    """Shares of all codes in every square, nearly one of them at low temperatures: a Gumbel-softmax sample."""
    noise = jax.random.gumbel(rng, logits.shape)
    return jax.nn.softmax((logits + noise) / temperature)


def reconstruction(stats: Float[Array, "B H W 6"], mapped: Float[Array, "B H W 3"]) -> Array:
    """- log of the logit-Laplace density of mapped pixels in (0, 1), mean over all values."""
    mean, log_scale = jnp.split(stats, 2, axis=-1)
    log_scale = jnp.maximum(log_scale, math.log(SMALLEST_SCALE))
    logit = jnp.log(mapped) - jnp.log1p(-mapped)
    return (
        jnp.abs(logit - mean) * jnp.exp(-log_scale) + log_scale + math.log(2) + jnp.log(mapped * (1 - mapped))
    ).mean()


def divergence(logits: Float[Array, "B h w E"]) -> Float[Array, "B h w"]:
    """KL of the distribution over codes from the even one, which is the prior."""
    logs = jax.nn.log_softmax(logits)
    return (jnp.exp(logs) * (logs + math.log(logits.shape[-1]))).sum(-1)
