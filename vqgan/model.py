"""The VQGAN: pixels to codes and codes to pixels, with the parameter names of the published tree.

Contract: functions of (params, config, arrays), with no state and no I/O. Pixels are float in [0, 1]
here (uint8 outside the package); the decoder's output is not clipped. The published encoder takes
[0, 1] too, and not the [-1, 1] of taming-transformers.

Paper: Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis" (2021), section 3.1.

Letters: B batch, H height, W width, C channels, N codes of a picture (row-major), E codebook_size, D embed_dim.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqgan.config import VQGANConfig

Params = Mapping[str, Any]


def _conv(channels: int, kernel: int, name: str) -> nn.Conv:
    return nn.Conv(channels, (kernel, kernel), padding=kernel // 2, name=name)


def _norm(config: VQGANConfig, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, epsilon=1e-6, name=name)


class ResnetBlock(nn.Module):
    config: VQGANConfig
    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = _conv(self.channels, 3, "conv1")(nn.swish(_norm(self.config, "norm1")(x)))
        h = _conv(self.channels, 3, "conv2")(nn.swish(_norm(self.config, "norm2")(h)))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, "nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the grid."""

    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        B, H, W, C = x.shape
        h = _norm(self.config, "norm")(x)
        q, k, v = (_conv(C, 1, name)(h).reshape(B, H * W, C) for name in "qkv")
        logits = jnp.einsum("bqc,bkc->bqk", q, k) * C**-0.5
        weights = nn.softmax(logits.astype(jnp.float32)).astype(v.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, v).reshape(B, H, W, C)
        return x + _conv(C, 1, "proj_out")(h)


class Downsample(nn.Module):
    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.config.resamp_with_conv:
            return nn.avg_pool(x, (2, 2), (2, 2))
        # Zeros below and to the right only, as the original pads.
        return nn.Conv(x.shape[-1], (3, 3), strides=2, padding=((0, 1), (0, 1)), name="conv")(x)


class Upsample(nn.Module):
    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        B, H, W, C = x.shape
        # A broadcast, and not jnp.repeat, whose gradient is a slow scatter.
        x = jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)
        return _conv(x.shape[-1], 3, "conv")(x) if self.config.resamp_with_conv else x


class Level(nn.Module):
    """The blocks of one resolution, then an optional change of resolution."""

    config: VQGANConfig
    index: int
    num_blocks: int
    resample: type[nn.Module] | None
    resample_name: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        attend = config.resolution // 2**self.index in config.attn_resolutions
        for i in range(self.num_blocks):
            x = ResnetBlock(config, config.ch * config.ch_mult[self.index], name=f"block_{i}")(x)
            if attend:
                x = AttnBlock(config, name=f"attn_{i}")(x)
        return self.resample(config, name=self.resample_name)(x) if self.resample else x


class Mid(nn.Module):
    config: VQGANConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResnetBlock(self.config, x.shape[-1], name="block_1")(x)
        x = AttnBlock(self.config, name="attn_1")(x)
        return ResnetBlock(self.config, x.shape[-1], name="block_2")(x)


class Encoder(nn.Module):
    config: VQGANConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        config = self.config
        x = _conv(config.ch, 3, "conv_in")(pixels)
        last = len(config.ch_mult) - 1
        for i in range(last + 1):
            down = Downsample if i < last else None
            x = Level(config, i, config.num_res_blocks, down, "downsample", name=f"down_{i}")(x)
        x = Mid(config, name="mid")(x)
        return _conv(config.z_channels, 3, "conv_out")(nn.swish(_norm(config, "norm_out")(x)))


class Decoder(nn.Module):
    config: VQGANConfig

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        config = self.config
        x = _conv(config.ch * config.ch_mult[-1], 3, "conv_in")(latents)
        x = Mid(config, name="mid")(x)
        for i in reversed(range(len(config.ch_mult))):
            up = Upsample if i > 0 else None
            x = Level(config, i, config.num_res_blocks + 1, up, "upsample", name=f"up_{i}")(x)
        return _conv(config.out_ch, 3, "conv_out")(nn.swish(_norm(config, "norm_out")(x)))


class Codebook(nn.Module):
    config: VQGANConfig

    @nn.compact
    def __call__(self) -> Array:
        return nn.Embed(self.config.n_embed, self.config.embed_dim, name="embedding").embedding


class VQGANModule(nn.Module):
    """The published tree: encoder, quant_conv, quantize, post_quant_conv, decoder."""

    config: VQGANConfig

    def setup(self) -> None:
        config = self.config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv(config.embed_dim, (1, 1))
        self.post_quant_conv = nn.Conv(config.z_channels, (1, 1))

    def latents(self, pixels: Array) -> Array:
        return self.quant_conv(self.encoder(pixels))

    def paint(self, quantised: Array) -> Array:
        return self.decoder(self.post_quant_conv(quantised))

    def codebook(self) -> Array:
        return self.quantize()

    def __call__(self, pixels: Array) -> Array:  # visits every parameter: for init and shapes only
        self.codebook()
        return self.paint(self.latents(pixels))


@functools.cache  # tracing takes a second or more
def param_shapes(config: VQGANConfig) -> Any:
    """The tree of `jax.ShapeDtypeStruct`, at no cost in memory."""
    pixels = jnp.zeros((1, config.resolution, config.resolution, config.in_channels))
    return jax.eval_shape(lambda: VQGANModule(config).init(jax.random.key(0), pixels)["params"])


def init_params(config: VQGANConfig, rng: Array) -> dict[str, Any]:
    """Fresh parameters (float32) in the published tree; jit it."""
    return fresh(param_shapes(config), rng)


def fresh(shapes: Any, rng: Array) -> Any:
    """What flax's layers begin with, for a tree of shapes: LeCun's normal kernels, scales of 1, biases of 0.

    All are parts of one draw: a draw for each of 67 kernels takes XLA half a minute to compile.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    drawn = jax.random.truncated_normal(rng, -2, 2, (sum(shape.size for _, shape in flat),)) / 0.87962566  # variance 1
    parts = jnp.split(drawn, list(itertools.accumulate(shape.size for _, shape in flat))[:-1])

    def leaf(name: str, part: Array, shape: tuple[int, ...]) -> Array:
        match name:
            case "kernel":
                return part.reshape(shape) / math.sqrt(math.prod(shape[:-1]))
            case "embedding":
                return part.reshape(shape) / math.sqrt(shape[-1])
            case "scale":
                return jnp.ones(shape)
            case _:
                return jnp.zeros(shape)

    leaves = [leaf(path[-1].key, part, shape.shape) for (path, shape), part in zip(flat, parts, strict=True)]
    return jax.tree_util.tree_unflatten(tree, leaves)


def latents(params: Params, config: VQGANConfig, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
    """Continuous latents, before the look-up of the nearest code. Pixels in [0, 1]."""
    return VQGANModule(config).apply({"params": params}, pixels, method="latents")


def nearest_codes(codebook: Float[Array, "E D"], z: Float[Array, "*B D"]) -> Int[Array, "*B"]:
    """The index of the codebook row nearest in Euclidean distance; the first of equals."""
    flat = z.reshape(-1, z.shape[-1])
    squares = jnp.square(flat).sum(1)[:, None] + jnp.square(codebook).sum(1)[None]
    return jnp.argmin(squares - 2 * flat @ codebook.T, axis=1).reshape(z.shape[:-1]).astype(jnp.int32)


def encode(params: Params, config: VQGANConfig, pixels: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
    """Pixels in [0, 1] to codes in [0, n_embed), row by row."""
    codes = nearest_codes(params["quantize"]["embedding"]["embedding"], latents(params, config, pixels))
    return codes.reshape(pixels.shape[0], -1)


def paint(params: Params, config: VQGANConfig, quantised: Float[Array, "B h w D"]) -> Float[Array, "B H W 3"]:
    """Codebook vectors on their grid to pixels (unclipped)."""
    return VQGANModule(config).apply({"params": params}, quantised, method="paint")


def written_dim(params: Params) -> int:
    """How many dimensions of a code the encoder writes, the first ones: all, but for codes that a decoder widened."""
    kernel = np.asarray(params["quant_conv"]["kernel"])  # [1, 1, z_channels, embed_dim]
    used = np.flatnonzero(kernel.any((0, 1, 2)))
    return int(used[-1]) + 1 if used.size else kernel.shape[-1]


def decode(params: Params, config: VQGANConfig, codes: Int[Array, "B N"]) -> Float[Array, "B H W 3"]:
    """Codes of a square grid to pixels (unclipped, about [0, 1])."""
    side = round(codes.shape[1] ** 0.5)
    vectors = params["quantize"]["embedding"]["embedding"][codes]  # [B, N, D]
    return paint(params, config, vectors.reshape(codes.shape[0], side, side, -1))
