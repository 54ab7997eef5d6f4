"""Pictures to codes and back: `load` a VQGAN or a dVAE, then `encode` and `decode` uint8 pixels."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from vqgan import dvae, model
from vqgan.checkpoint import read_lightning
from vqgan.config import CodecConfig, DVAEConfig, VQGANConfig, config_of
from vqgan.files import (
    CheckpointError,
    check_params,
    read_json,
    read_params,
    write_safetensors,
    write_text,
)
from vqgan.hub import resolve

__all__ = ["Codec", "load", "save"]

BATCH = 16  # pictures in one compiled call
FILES = ("*.json",)
NETWORKS: dict[type, Any] = {VQGANConfig: model, DVAEConfig: dvae}
NAMES: dict[type, str] = {VQGANConfig: "VQGAN", DVAEConfig: "dVAE"}


class Codec:
    """A VQGAN's or a dVAE's parameters on the device with jitted `encode` and `decode`; its config says which.

    Pictures are worked off one at a time inside one compiled call, which takes any number of them up to `BATCH`:
    memory stays that of one picture, and a picture's pixels cannot depend on its neighbours.
    """

    def __init__(self, config: CodecConfig, params: dict[str, Any]) -> None:
        self.config = config
        self.params = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), params)
        self.name = NAMES[type(config)]
        # Pixels and codes along a side of a picture, and how many codes there are.
        self.resolution, self.side, self.codebook_size = config.resolution, config.side, config.codebook_size

    @property
    def bits(self) -> float:
        """What a picture's codes hold at most; a file of them would be as large."""
        return self.side**2 * math.log2(self.codebook_size)

    def encode(self, pixels: UInt8[np.ndarray, "B H W 3"]) -> Int[np.ndarray, "B N"]:
        """uint8 pictures, square and `resolution` wide, to int32 codes in [0, codebook_size)."""
        side = self.resolution
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels must be uint8 of shape [B, {side}, {side}, 3], got {pixels.dtype} {pixels.shape}")
        return _in_batches(partial(_encode, self.params, config=self.config), pixels)

    def decode(self, codes: Int[np.ndarray, "B N"]) -> UInt8[np.ndarray, "B H W 3"]:
        """int32 codes in [0, codebook_size), a square grid row by row, to uint8 pictures."""
        if codes.ndim != 2 or math.isqrt(codes.shape[1]) ** 2 != codes.shape[1] or codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be ints of shape [B, a square number], got {codes.dtype} {codes.shape}")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codebook_size:
            raise ValueError(f"codes must be in [0, {self.codebook_size}), got {codes.min()}..{codes.max()}")
        return _in_batches(partial(_decode, self.params, config=self.config), codes)


def _in_batches(run: Callable[[np.ndarray, int], jax.Array], rows: np.ndarray) -> np.ndarray:
    """Apply `run(BATCH rows, how many are real)` to all rows."""
    parts = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        padded = np.pad(part, [(0, BATCH - len(part))] + [(0, 0)] * (rows.ndim - 1))
        parts.append(np.asarray(run(padded, len(part)))[: len(part)])
    return np.concatenate(parts)


def _one_by_one(one: Callable[[jax.Array], jax.Array], rows: jax.Array, count: jax.Array) -> jax.Array:
    """`one` of the first `count` rows, one after another."""
    shape = jax.eval_shape(one, rows[0])
    empty = jnp.zeros((len(rows), *shape.shape), shape.dtype)
    return jax.lax.fori_loop(0, count, lambda i, out: out.at[i].set(one(rows[i])), empty)


@partial(jax.jit, static_argnames="config")
def _encode(params: model.Params, pixels: jax.Array, count: jax.Array, *, config: CodecConfig) -> jax.Array:
    def one(picture: jax.Array) -> jax.Array:
        return NETWORKS[type(config)].encode(params, config, picture[None].astype(jnp.float32) / 255)[0]

    return _one_by_one(one, pixels, count)


@partial(jax.jit, static_argnames="config")
def _decode(params: model.Params, codes: jax.Array, count: jax.Array, *, config: CodecConfig) -> jax.Array:
    def one(grid: jax.Array) -> jax.Array:
        # Truncated, not rounded, as the published notebooks do.
        return (NETWORKS[type(config)].decode(params, config, grid[None])[0].clip(0, 1) * 255).astype(jnp.uint8)

    return _one_by_one(one, codes, count)


def load(location: str | Path) -> Codec:
    """A VQGAN or a dVAE from a folder or a hub id; or a VQGAN from a taming-transformers `.ckpt`, `config.json` beside.

    Raises `CheckpointError` naming the file, and every parameter that is missing, unexpected or mis-shaped.
    """
    lightning = Path(location) if str(location).endswith(".ckpt") else None
    folder = lightning.parent if lightning else resolve(location, FILES, check=config_of)
    return Codec(*read(folder, lightning))


def read(folder: Path, lightning: Path | None = None) -> tuple[CodecConfig, dict[str, Any]]:
    """Sizes and params, as they are in the files of a folder; see `load`."""
    try:
        config = config_of(read_json(folder / "config.json"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    params = read_lightning(lightning) if lightning else read_params(folder)
    found = DVAEConfig if "group_1" in params.get("encoder", {}) else VQGANConfig
    if type(config) is not found:
        raise CheckpointError(
            f"{folder / 'config.json'} must be a {NAMES[found]}'s, as the weights are, got a {NAMES[type(config)]}'s"
        )
    check_params(params, NETWORKS[type(config)].param_shapes(config), folder)
    return config, params


def save(folder: Path, config: CodecConfig, params: dict[str, Any], *, dtype: Any = np.float16) -> None:
    """Write `model.safetensors` and then `config.json`, which `load` reads."""
    write_safetensors(params, folder / "model.safetensors", dtype=dtype)
    write_text(folder / "config.json", config.to_json())
