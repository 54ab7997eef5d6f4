"""OpenAI's dVAE: pixels to codes and codes to pixels, without a codebook, attention or norms.

Contract: functions of (params, config, arrays), with no state and no I/O. Pixels are float in [0, 1] on both sides, as
in model.py; the network itself sees them pressed into [0.1, 0.9] (`map_pixels`), where their logits are finite. Names
are the published ones, without `blocks`, `res_path` and `conv`, which say nothing.

Paper: Ramesh et al., "Zero-Shot Text-to-Image Generation" (2021, arXiv:2102.12092), section 2.1 and appendix A.

Letters: B batch, H height, W width, h, w of the grid of codes, N codes of a picture (row-major), E codebook_size.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan.config import DVAEConfig
from vqgan.model import Params, fresh

EPS = 0.1


def map_pixels(pixels: Array) -> Array:
    return (1 - 2 * EPS) * pixels + EPS


def unmap_pixels(pixels: Array) -> Array:
    return jnp.clip((pixels - EPS) / (1 - 2 * EPS), 0, 1)


def _conv(channels: int, kernel: int, name: str) -> nn.Conv:
    return nn.Conv(channels, (kernel, kernel), padding=kernel // 2, name=name)


class Block(nn.Module):
    """A bottleneck of four convolutions beside a shortcut, which it changes little at first: `gain`."""

    config: DVAEConfig
    channels: int
    kernels: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = x
        for i, kernel in enumerate(self.kernels, 1):
            h = _conv(self.channels // 4 if i < 4 else self.channels, kernel, f"conv_{i}")(nn.relu(h))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, "id_path")(x)
        gain = 1 / (self.config.group_count * self.config.n_blk_per_group) ** 2
        return x + gain * h


class Group(nn.Module):
    """The blocks of one resolution."""

    config: DVAEConfig
    channels: int
    kernels: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(1, self.config.n_blk_per_group + 1):
            x = Block(self.config, self.channels, self.kernels, name=f"block_{i}")(x)
        return x


class Encoder(nn.Module):
    config: DVAEConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        config = self.config
        x = _conv(config.n_hid, 7, "input")(pixels)
        for i in range(1, config.group_count + 1):
            x = Group(config, 2 ** (i - 1) * config.n_hid, (3, 3, 3, 1), name=f"group_{i}")(x)
            if i < config.group_count:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return _conv(config.vocab_size, 1, "output")(nn.relu(x))


class Decoder(nn.Module):
    config: DVAEConfig

    @nn.compact
    def __call__(self, chosen: Array) -> Array:
        config = self.config
        x = _conv(config.n_init, 1, "input")(chosen)
        for i in range(1, config.group_count + 1):
            x = Group(config, 2 ** (config.group_count - i) * config.n_hid, (1, 3, 3, 3), name=f"group_{i}")(x)
            if i < config.group_count:
                B, H, W, C = x.shape
                x = jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)
        return _conv(2 * config.output_channels, 1, "output")(nn.relu(x))


class DVAEModule(nn.Module):
    config: DVAEConfig

    def setup(self) -> None:
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)

    def encode(self, pixels: Array) -> Array:
        return self.encoder(pixels)

    def decode(self, chosen: Array) -> Array:
        return self.decoder(chosen)

    def __call__(self, pixels: Array) -> Array:  # visits every parameter: for init and shapes only
        return self.decode(self.encode(pixels))


@functools.cache
def param_shapes(config: DVAEConfig) -> Any:
    """The tree of `jax.ShapeDtypeStruct`, at no cost in memory."""
    pixels = jnp.zeros((1, config.downscale, config.downscale, config.input_channels))
    return jax.eval_shape(lambda: DVAEModule(config).init(jax.random.key(0), pixels)["params"])


def init_params(config: DVAEConfig, rng: Array) -> dict[str, Any]:
    """Fresh parameters (float32); jit it."""
    return fresh(param_shapes(config), rng)


def logits(params: Params, config: DVAEConfig, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w E"]:
    """How much each code is in question for each square of pixels in [0, 1]."""
    return DVAEModule(config).apply({"params": params}, map_pixels(pixels), method="encode")


def distribution(params: Params, config: DVAEConfig, chosen: Float[Array, "B h w E"]) -> Float[Array, "B H W 6"]:
    """Of the logits of mapped pixels: three means, and the logarithms of three scales, which training alone needs.

    chosen: the share of every code in a square; 1 for one of them once trained.
    """
    return DVAEModule(config).apply({"params": params}, chosen, method="decode")


def paint(stats: Float[Array, "B H W 6"]) -> Float[Array, "B H W 3"]:
    """The pixels in [0, 1] that a distribution makes of its means."""
    return unmap_pixels(jax.nn.sigmoid(stats[..., :3]))


def encode(params: Params, config: DVAEConfig, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
    """Pixels in [0, 1] to codes in [0, vocab_size), row by row: the likeliest."""
    codes = jnp.argmax(logits(params, config, pixels), axis=-1)
    return codes.reshape(pixels.shape[0], -1).astype(jnp.int32)


def decode(params: Params, config: DVAEConfig, codes: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
    """Codes of a square grid to pixels in [0, 1]."""
    side = round(codes.shape[1] ** 0.5)
    grid = codes.reshape(codes.shape[0], side, side)
    return paint(distribution(params, config, jax.nn.one_hot(grid, config.vocab_size)))
