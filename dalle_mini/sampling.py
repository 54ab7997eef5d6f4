"""Logits to codes: guidance, temperature, top-k, top-p and one draw, for a batch of rows that share nothing.

Contract: every setting is an array with one value per row, so changing a knob compiles nothing, and a row gives
the same code whatever the other rows are. The order is the reference's: `guide`, then (in `sample`) temperature,
top-k, top-p, and the Gumbel-max draw. Two choices are ours and documented here:

- Codes at or above `codebook_size` are never drawn. They are masked first, so that top-k and top-p count real
  codes only. (The reference can draw bos and the padding classes of mega, which the VQGAN cannot paint.)
- There is no eos: in the published models it is at or above `codebook_size` too. A picture always has
  image_length codes.

Letters: B batch, V vocabulary (logits).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

_BITS = 32
_TINY = 1e-6  # settings below have its result, and float32 would make 0 or infinity of some


def guide(
    cond_logits: Float[Array, "B V"], uncond_logits: Float[Array, "B V"], condition_scale: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Super conditioning: uncond + scale * (cond - uncond), written so that scale 1 is exactly `cond_logits`.

    Classifier-free guidance (Ho & Salimans 2022) on the raw logits of all V classes.
    """
    return cond_logits + (condition_scale[:, None] - 1) * (cond_logits - uncond_logits)


def sample(
    logits: Float[Array, "B V"],
    rngs: Array,
    *,
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    codebook_size: int,
) -> Int[Array, " B"]:
    """One code per row, drawn with that row's own rng (`rngs` [B]). top_k 0 and top_p 1 switch a filter off."""
    noise = jax.vmap(lambda rng: jax.random.gumbel(rng, logits.shape[1:], jnp.float32))(rngs)  # [B, V]
    return choose(logits, noise, temperature=temperature, top_k=top_k, top_p=top_p, codebook_size=codebook_size)


def choose(
    logits: Float[Array, "B V"],
    noise: Float[Array, "B V"],
    *,
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    codebook_size: int,
) -> Int[Array, " B"]:
    """`sample` with its Gumbel noise given: the argmax of noise plus what the filters left of the logits."""
    warped = warp(logits, temperature=temperature, top_k=top_k, top_p=top_p, codebook_size=codebook_size)
    return jnp.argmax(warped + noise, axis=-1).astype(jnp.int32)


def warp(
    logits: Float[Array, "B V"],
    *,
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
    codebook_size: int,
) -> Float[Array, "B V"]:
    """The logits over temperature, -inf where a filter excludes the code.

    top-k keeps exactly k codes; top-p keeps a code while the better ones hold less than top_p of what top-k left
    (Holtzman et al. 2020), so at least one. Equal logits rank by lower code.
    """
    is_code = jnp.arange(logits.shape[1])[None, :] < codebook_size
    logits = jnp.where(is_code, logits, -jnp.inf) / jnp.maximum(temperature, _TINY)[:, None]
    counts = jnp.where(top_k > 0, top_k.astype(jnp.float32), jnp.inf)
    logits = _filter(logits, counts, jnp.ones_like)
    masses = jnp.where(top_p < 1, jnp.maximum(top_p, _TINY), jnp.inf)
    return _filter(logits, masses, lambda kept: jax.nn.softmax(kept, axis=-1))


def _filter(
    logits: Float[Array, "B V"], budget: Float[Array, " B"], weigh: Callable[[Array], Array]
) -> Float[Array, "B V"]:
    """Applies `_keep` with weights weigh(logits); a batch in which every budget is infinite skips the work."""
    return jax.lax.cond(
        jnp.any(jnp.isfinite(budget)),
        lambda: jnp.where(_keep(logits, weigh(logits), budget), logits, -jnp.inf),
        lambda: logits,
    )


def _keep(logits: Float[Array, "B V"], weights: Float[Array, "B V"], budget: Float[Array, " B"]) -> Bool[Array, "B V"]:
    """True where the weights of all better-ranked entries of the row sum to less than `budget`.

    Weights of 1 make this top-k, probabilities make it top-p. Equal logits must have equal weights. A bisection of
    the value where the budget runs out, bit by bit, is exact and ten times faster than a sort of 16384 logits.
    """
    ranks = _sortable(logits)

    def better_than(threshold: UInt32[Array, " B"]) -> Float[Array, " B"]:
        return jnp.where(ranks > threshold[:, None], weights, 0).sum(axis=-1)

    def settle_bit(i: Array, floor: UInt32[Array, " B"]) -> UInt32[Array, " B"]:
        # `floor` is the smallest threshold within budget as far as its upper i bits say, lower bits zero.
        bit = jnp.uint32(1) << (_BITS - 1 - i).astype(jnp.uint32)
        return jnp.where(better_than(floor | (bit - 1)) < budget, floor, floor | bit)

    last = jax.lax.fori_loop(0, _BITS, settle_bit, jnp.zeros(logits.shape[0], jnp.uint32))[:, None]
    # The entries equal to the last value within budget share what is left of it, first come first served.
    tied = ranks == last
    left = budget - better_than(last[:, 0])
    weight = jnp.where(tied, weights, 0).max(axis=-1)
    earlier = jnp.cumsum(tied, axis=-1) - 1
    return (ranks > last) | (tied & (earlier * weight[:, None] < left[:, None]))


def _sortable(x: Float[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Unsigned integers in the order of the floats; -0.0 and 0.0 are one value."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), jnp.uint32)
    sign = jnp.uint32(1) << (_BITS - 1)
    return jnp.where(bits & sign, ~bits, bits | sign)
