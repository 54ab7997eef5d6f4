"""The networks computed in the recipe's dtype, from and to float32."""

from typing import Any

import jax
import jax.numpy as jnp

from dalle_mini.training.vqgan.config import VQGANTrainConfig
from vqgan import model
from vqgan.config import VQGANConfig


def cast(params: Any, config: VQGANTrainConfig) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)


def latents(params: Any, target: jax.Array, sizes: VQGANConfig, config: VQGANTrainConfig) -> jax.Array:
    return model.latents(cast(params, config), sizes, target.astype(config.dtype)).astype(jnp.float32)


def paint(params: Any, vectors: jax.Array, sizes: VQGANConfig, config: VQGANTrainConfig) -> jax.Array:
    return model.paint(cast(params, config), sizes, vectors.astype(config.dtype)).astype(jnp.float32)
