"""Pictures to codes and back: `load` a VQGAN, then `encode` and `decode` uint8 pixels."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from vqgan import model
from vqgan.checkpoint import read_lightning
from vqgan.config import VQGANConfig
from vqgan.files import (
    CheckpointError,
    check_params,
    read_json,
    read_params,
    write_safetensors,
    write_text,
)
from vqgan.hub import resolve

__all__ = ["VQGAN", "load", "save"]

BATCH = 16  # pictures in one compiled call
FILES = ("*.json",)


class VQGAN:
    """Parameters on the device with jitted `encode` and `decode`.

    Pictures are worked off one at a time inside one compiled call, which takes any number of them up to `BATCH`:
    memory stays that of one picture, and a picture's pixels cannot depend on its neighbours.
    """

    def __init__(self, config: VQGANConfig, params: dict[str, Any]) -> None:
        self.config = config
        self.params = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), params)

    def encode(self, pixels: UInt8[np.ndarray, "B H W 3"]) -> Int[np.ndarray, "B N"]:
        """uint8 pictures, square and `config.resolution` wide, to int32 codes in [0, n_embed)."""
        side = self.config.resolution
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels must be uint8 of shape [B, {side}, {side}, 3], got {pixels.dtype} {pixels.shape}")
        return _in_batches(partial(_encode, self.params, config=self.config), pixels)

    def decode(self, codes: Int[np.ndarray, "B N"]) -> UInt8[np.ndarray, "B H W 3"]:
        """int32 codes in [0, n_embed), a square grid row by row, to uint8 pictures."""
        if codes.ndim != 2 or math.isqrt(codes.shape[1]) ** 2 != codes.shape[1] or codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be ints of shape [B, a square number], got {codes.dtype} {codes.shape}")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.config.n_embed:
            raise ValueError(f"codes must be in [0, {self.config.n_embed}), got {codes.min()}..{codes.max()}")
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
def _encode(params: model.Params, pixels: jax.Array, count: jax.Array, *, config: VQGANConfig) -> jax.Array:
    def one(picture: jax.Array) -> jax.Array:
        return model.encode(params, config, picture[None].astype(jnp.float32) / 255)[0]

    return _one_by_one(one, pixels, count)


@partial(jax.jit, static_argnames="config")
def _decode(params: model.Params, codes: jax.Array, count: jax.Array, *, config: VQGANConfig) -> jax.Array:
    def one(grid: jax.Array) -> jax.Array:
        # Truncated, not rounded, as the published notebook does.
        return (model.decode(params, config, grid[None])[0].clip(0, 1) * 255).astype(jnp.uint8)

    return _one_by_one(one, codes, count)


def load(location: str | Path) -> VQGAN:
    """A VQGAN from a folder, a hub id or a taming-transformers `.ckpt` (with `config.json` beside it).

    Raises `CheckpointError` naming the file, and every parameter that is missing, unexpected or mis-shaped.
    """
    lightning = Path(location) if str(location).endswith(".ckpt") else None
    folder = lightning.parent if lightning else resolve(location, FILES, check=_check_kind)
    try:
        config = VQGANConfig.from_dict(read_json(folder / "config.json"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    params = read_lightning(lightning) if lightning else read_params(folder)
    check_params(params, model.param_shapes(config), folder)
    return VQGAN(config, params)


def _check_kind(config: dict[str, Any]) -> None:
    """Raises ValueError for the config of another network: without any size, those of the default would be taken."""
    if not {"n_embed", "z_channels", "ch_mult"} & config.keys():
        raise ValueError(f"config.json must be a VQGAN's, got one of model_type {config.get('model_type')!r}")
    VQGANConfig.from_dict(config)


def save(folder: Path, config: VQGANConfig, params: dict[str, Any], *, dtype: Any = np.float16) -> None:
    """Write `model.safetensors` and then `config.json`, which `load` reads."""
    write_safetensors(params, folder / "model.safetensors", dtype=dtype)
    write_text(folder / "config.json", config.to_json())
