"""The validation loss of a text-to-code model, while it is trained and in the report of a finished one."""

from collections.abc import Callable

import jax
import numpy as np

from dalle_mini.model import Params
from dalle_mini.training.dalle.loss import Batch


def mean_loss(losses: Callable[[Params, Batch], jax.Array], params: Params, data: Batch, *, rows: int) -> float:
    """The mean of `losses`, which gives one number a row, over all rows of `data`, `rows` of them at a time."""
    count, parts = len(data.codes), []
    for start in range(0, count, rows):
        places = np.arange(start, start + rows) % count  # the last part is filled up: nothing is compiled for it
        part = Batch(data.tokens[places], data.mask[places], data.codes[places])
        parts.append(np.asarray(losses(params, part))[: count - start])
    return float(np.concatenate(parts).mean())
