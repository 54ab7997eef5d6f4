"""Params of a text-to-code model at no cost: `model.init_params` takes XLA ten seconds to compile."""

from typing import Any

import jax
import numpy as np

from dalle_mini import model
from dalle_mini.config import ModelConfig


def random_params(config: ModelConfig) -> Any:
    """Normal numbers of `init_std` for matrices, and what flax begins with for the rest."""
    rng = np.random.default_rng(0)

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(shape.shape) > 1:
            return (config.init_std * rng.standard_normal(shape.shape)).astype(shape.dtype)
        return np.full(shape.shape, path[-1].key == "scale", shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, model.param_shapes(config))
