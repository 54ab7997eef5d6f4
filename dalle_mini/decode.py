"""The decode loop on the device: prefill a prompt, insert it into slots, decode all slots one row of the grid on.

Contract: pure functions of params, config and a `DecodeState`, which is passed in and handed back (jit them with the
state donated). A slot draws one candidate; every slot has its own text, position, rng and sampling params, all of
them arrays, so that nothing recompiles when a knob moves, and codes that are given, which the loop takes instead of
drawing. In a guided state a slot has two neighbouring rows of the batch, with and without its prompt; in a plain one,
for condition_scale 1, it has the first alone.

    DecodeState   cross, cache          as in model.py, B = 2 S (guided) or S (plain)
                  codes, positions [S]  the last code drawn, and how many were
                  given [S, n]          the codes that are given, FREE (start.py) where they are drawn
                  least [S, n]          how likely a given code must be, or it is drawn all the same: a logarithm
                  rngs [S], sampling    see candidate_rng and SlotSampling

Letters: as in model.py; S slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dalle_mini import model
from dalle_mini.config import ModelConfig
from dalle_mini.model import CrossKV, KVCache, Params
from dalle_mini.sampling import guide, sample
from dalle_mini.start import FREE


class SlotSampling(NamedTuple):
    """Sampling params, one value per slot."""

    condition_scale: Float[Array, " S"]
    temperature: Float[Array, " S"]
    top_k: Int[Array, " S"]
    top_p: Float[Array, " S"]


class DecodeState(NamedTuple):
    cross: CrossKV
    cache: KVCache
    codes: Int[Array, " S"]
    positions: Int[Array, " S"]
    given: Int[Array, "S n"]
    least: Float[Array, "S n"]
    rngs: Array  # typed keys [S]; the rng of a code is fold_in(rngs[s], position)
    sampling: SlotSampling


def candidate_rng(seed: int | Array, candidate: int | Array) -> Array:
    """What a candidate's randomness depends on: the request's seed and the candidate's number, nothing else."""
    return jax.random.fold_in(jax.random.key(seed), candidate)


def prefill(params: Params, config: ModelConfig, tokens: Int[Array, "R T"], mask: Int[Array, "R T"]) -> CrossKV:
    """Everything the decoder needs of texts: in every two rows a prompt, then the negative prompt."""
    return model.cross_kv(params, config, model.encode(params, config, tokens, mask), mask)


def empty_state(config: ModelConfig, slots: int, *, guided: bool = True) -> DecodeState:
    """A state with nothing in its slots; they compute along, and nobody reads what."""
    rows = 2 * slots if guided else slots
    cache = model.init_cache(config, rows)
    heads, width = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    shape = (rows, heads, config.max_text_length, width)
    k, v = (tuple(jnp.zeros(shape, config.dtype) for _ in range(config.decoder_layers)) for _ in "kv")
    return DecodeState(
        cross=CrossKV(k=k, v=v, mask=jnp.zeros((rows, config.max_text_length), jnp.int32)),
        cache=cache,
        codes=jnp.full(slots, config.bos_code, jnp.int32),
        positions=jnp.zeros(slots, jnp.int32),
        given=jnp.full((slots, config.image_length), FREE, jnp.int32),
        least=jnp.full((slots, config.image_length), -jnp.inf),
        rngs=jax.vmap(jax.random.key)(jnp.zeros(slots, jnp.uint32)),
        sampling=SlotSampling(jnp.ones(slots), jnp.ones(slots), jnp.zeros(slots, jnp.int32), jnp.ones(slots)),
    )


def _rows_per_slot(state: DecodeState) -> int:
    return state.cross.mask.shape[0] // state.codes.shape[0]


def insert(
    config: ModelConfig,
    state: DecodeState,
    slot: Array,
    prefix: CrossKV,
    rng: Array,
    sampling: SlotSampling,
    given: Int[Array, " n"],
    least: Float[Array, " n"],
) -> DecodeState:
    """Put a candidate at its first position into `slot`; `sampling` holds scalars. What was there is forgotten."""

    own = _rows_per_slot(state)

    def put(rows: Array, pair: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(rows, pair[:own].astype(rows.dtype), own * slot, 0)

    return DecodeState(
        cross=jax.tree.map(put, state.cross, prefix),
        cache=state.cache,  # positions say how much of it counts
        codes=state.codes.at[slot].set(config.bos_code),
        positions=state.positions.at[slot].set(0),
        given=state.given.at[slot].set(given),
        least=state.least.at[slot].set(least),
        rngs=state.rngs.at[slot].set(rng),
        sampling=jax.tree.map(lambda values, value: values.at[slot].set(value), state.sampling, sampling),
    )


def likelihoods(
    params: Params, config: ModelConfig, tokens: Int[Array, "1 T"], mask: Int[Array, "1 T"], codes: Int[Array, " n"]
) -> Float[Array, " n"]:
    """Of every code of a picture, the logarithm of its probability after the text and the codes before it."""
    before = jnp.concatenate([jnp.full(1, config.bos_code, codes.dtype), codes[:-1]])
    logits = model.forward(params, config, tokens, mask, before[None])[0]  # [n, V]
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), codes[:, None], axis=-1)[:, 0]


def decode_row(params: Params, config: ModelConfig, state: DecodeState) -> tuple[DecodeState, Int[Array, "S side"]]:
    """Draw the next `config.side` codes of every slot, or take those that are given, in one loop on the device."""
    sampling, own = state.sampling, _rows_per_slot(state)

    def step(carry: tuple[KVCache, Array, Array], _: None) -> tuple[tuple[KVCache, Array, Array], Array]:
        cache, codes, positions = carry
        rows = [jnp.repeat(x, own) for x in (codes, positions)]
        logits, cache = model.decode_step(params, config, state.cross, cache, *rows)  # [2S, V] or [S, V]
        likelihoods = jax.nn.log_softmax(logits[::own])  # [S, V]
        if own == 2:
            logits = guide(logits[0::2], logits[1::2], sampling.condition_scale)  # [S, V]
        rngs = jax.vmap(jax.random.fold_in)(state.rngs, positions)
        codes = sample(
            logits,
            rngs,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            codebook_size=config.codebook_size,
        )
        given, least = (
            jnp.take_along_axis(x, positions[:, None], axis=1, mode="clip")[:, 0] for x in (state.given, state.least)
        )
        likely = jnp.take_along_axis(likelihoods, given[:, None], axis=1, mode="clip")[:, 0] >= least
        codes = jnp.where((given != FREE) & likely, given, codes)
        return (cache, codes, positions + 1), codes

    carry = (state.cache, state.codes, state.positions)
    (cache, codes, positions), drawn = jax.lax.scan(step, carry, length=config.side)
    return state._replace(cache=cache, codes=codes, positions=positions), drawn.T
