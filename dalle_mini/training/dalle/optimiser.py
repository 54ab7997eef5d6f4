"""Optimisers of a text-to-code network, all from optax.

AdamW (Loshchilov & Hutter 2019); Adafactor (Shazeer & Stern 2018), whose state is a row and a column per matrix; Muon
(Jordan et al. 2024) for matrices with Adam for tables, norms and the head: half the examples of Adam alone for the
same loss, measured on the emoji world.
"""

import jax
import optax
from flax import traverse_util
from optax.contrib import MuonDimensionNumbers, muon

from dalle_mini.model import Params
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.schedule import learning_rate


def make_optimiser(config: DalleTrainConfig, params: Params) -> optax.GradientTransformation:
    """For params or their shapes."""
    flat = traverse_util.flatten_dict(params)
    matrix = {path: leaf.ndim == 2 and path[1].startswith("layers_") for path, leaf in flat.items()}
    matrices, rate = traverse_util.unflatten_dict(matrix), learning_rate(config)
    if config.optimiser == "adamw":
        rest = optax.adamw(rate, b2=0.95, weight_decay=config.weight_decay, mask=matrices)
    elif config.optimiser == "adafactor":
        # Without the parameters' own scale, so that learning_rate means what it means for AdamW.
        rest = optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,
            # optax adds the decay after the learning rate; AdamW multiplies one by the other.
            weight_decay_rate=lambda step: config.weight_decay * rate(step),
            weight_decay_mask=matrices,
        )
    else:
        rest = muon(
            rate,
            weight_decay=config.weight_decay,
            adam_learning_rate=learning_rate(config, peak=config.learning_rate / 10),
            muon_weight_dimension_numbers=jax.tree.map(lambda yes: MuonDimensionNumbers() if yes else None, matrices),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rest)
