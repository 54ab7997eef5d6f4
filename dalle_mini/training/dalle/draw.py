"""Codes that a network in training draws, for its sample sheets, and its params as a whole."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dalle_mini import decode
from dalle_mini.config import ModelConfig
from dalle_mini.model import Params
from dalle_mini.training.dalle.examples import Examples


def draw(params: Params, sizes: ModelConfig, captions: Examples) -> np.ndarray:
    """Codes for the captions, one candidate each, as the model's own settings draw: int [M, T].

    Of params on many devices, too; every process gets all codes.
    """
    pairs = [
        np.stack([rows, np.broadcast_to(empty, rows.shape)], 1).reshape(2 * len(rows), -1)  # [2 M, S]
        for rows, empty in zip((captions.tokens, captions.mask), captions.empty, strict=True)
    ]
    return np.asarray(_draw(params, *pairs, sizes=sizes, whole=_whole(params)))


@partial(jax.jit, static_argnames=("sizes", "whole"))
def _draw(params: Params, tokens: jax.Array, mask: jax.Array, *, sizes: ModelConfig, whole: Any) -> jax.Array:
    settings, count = sizes.sampling, len(tokens) // 2
    state = decode.empty_state(sizes, count)
    sampling = state.sampling._replace(
        condition_scale=jnp.full(count, settings.condition_scale),
        temperature=jnp.full(count, settings.temperature),
        top_k=jnp.full(count, settings.top_k),
        top_p=jnp.full(count, settings.top_p),
    )
    # Every row its own rng, as the candidates of a gallery have.
    rngs = jax.vmap(partial(decode.candidate_rng, 0))(jnp.arange(count))
    state = state._replace(cross=decode.prefill(params, sizes, tokens, mask), sampling=sampling, rngs=rngs)
    rows = []
    for _ in range(sizes.side):
        state, row = decode.decode_row(params, sizes, state)
        rows.append(row)
    return jax.lax.with_sharding_constraint(jnp.concatenate(rows, 1), whole)


def gathered(params: Params) -> Params:
    """The whole of params on every host, as numpy arrays; all processes call it together."""
    whole = jax.jit(lambda x: x, out_shardings=_whole(params))
    return jax.tree.map(lambda leaf: np.asarray(leaf if leaf.is_fully_addressable else whole(leaf)), params)


def _whole(params: Params) -> NamedSharding:
    """On all devices of `params`, undivided."""
    return NamedSharding(jax.tree.leaves(params)[0].sharding.mesh, PartitionSpec())
