"""Muon for a network of convolutions (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from dalle_mini.training.schedule import Scheduled, learning_rate


def muon_of_kernels(config: Scheduled) -> optax.GradientTransformation:
    """Muon for kernels, Adam with a tenth of its rate for the rest, and for a kernel that writes three channels."""

    def kernels(params: Any) -> Any:  # [3, 3, in, out], of which nine times in by out is a matrix
        wide = (0, 1, 2), 3
        return jax.tree.map(lambda x: MuonDimensionNumbers(*wide) if x.ndim == 4 and x.shape[3] > 3 else None, params)

    return muon(
        learning_rate(config),
        adam_b2=0.99,
        adam_learning_rate=learning_rate(config, peak=config.learning_rate / 10),
        muon_weight_dimension_numbers=kernels,
    )
