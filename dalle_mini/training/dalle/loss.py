"""What a text-to-code network is trained for: to predict every code from those before it and the caption.

Contract: pure functions. Teacher forcing with the mean cross entropy over all classes, as the original was trained.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from dalle_mini import model
from dalle_mini.config import ModelConfig
from dalle_mini.model import Params
from dalle_mini.training.dalle.config import DalleTrainConfig


class Batch(NamedTuple):
    """Captions and codes, row by row; a dropped caption is already the empty prompt. On the host or on devices."""

    tokens: Any  # int [B, S]
    mask: Any  # int [B, S], 1 for a token
    codes: Any  # int [B, T]


def row_losses(params: Params, sizes: ModelConfig, batch: Batch, *, remat: bool = False) -> Float[jax.Array, " B"]:
    """Cross entropy, in nats a code, of predicting every code of a row from those before it and the caption."""
    start = jnp.full((batch.codes.shape[0], 1), sizes.bos_code, batch.codes.dtype)
    codes_in = jnp.concatenate([start, batch.codes[:, :-1]], axis=1)
    logits = model.forward(params, sizes, batch.tokens, batch.mask, codes_in, remat=remat)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.codes).mean(1)


def computed_in(sizes: ModelConfig, config: DalleTrainConfig) -> ModelConfig:
    """The sizes with the dtypes of training."""
    return dataclasses.replace(sizes, dtype=config.dtype, param_dtype="float32")
