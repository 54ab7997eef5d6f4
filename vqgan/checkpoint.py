"""Layouts in which others published these networks: taming-transformers' VQGANs and OpenAI's dVAE, as our trees.

Contract: torch's files become a tree of numpy arrays, or one `CheckpointError` that names them. Nothing in them is
executed, whatever else they hold.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from vqgan import dvae
from vqgan.config import DVAEConfig
from vqgan.files import CheckpointError, Params, check_params
from vqgan.pickles import read_arrays


def read_lightning(path: Path) -> Params:
    """A taming-transformers `.ckpt` (torch) as the published tree."""
    arrays = read_arrays(path)
    try:
        return from_compvis({name: array.astype(np.float32) for name, array in arrays.items()})
    except (ValueError, TypeError, IndexError) as error:  # names that are not those of a tree
        raise CheckpointError(f"{path} must hold a state_dict of a network: {error}") from None


def from_compvis(state: Mapping[str, np.ndarray]) -> Params:
    """A flat CompVis state dict (OIHW kernels, dotted names) as the published tree; `loss.*` is dropped."""
    flat = {}
    for name, value in state.items():
        if name.startswith("loss."):
            continue
        path = re.sub(r"\b(down|up|block|attn)\.(\d+)", r"\1_\2", name)
        if value.ndim == 4:
            path, value = path.removesuffix("weight") + "kernel", value.transpose(2, 3, 1, 0)  # HWIO
        elif path == "quantize.embedding.weight":
            path = "quantize.embedding.embedding"
        else:
            path = re.sub(r"weight$", "scale", path)
        flat[path.replace(".", "/")] = value
    return traverse_util.unflatten_dict(flat, sep="/")


def read_openai(folder: Path) -> tuple[DVAEConfig, Params]:
    """The dVAE in `encoder.pkl` and `decoder.pkl`, whole modules: sizes, with the files' SHA-256, and its tree."""
    paths = {part: folder / f"{part}.pkl" for part in ("encoder", "decoder")}
    params = {part: _openai_part(path, part) for part, path in paths.items()}
    try:
        shapes = [params[part][layer]["kernel"].shape for part in params for layer in ("input", "output")]
        (*_, n_hid), (*_, vocab_size), (*_, n_init), _ = shapes
        blocks = sum(name.startswith("block_") for name in params["encoder"]["group_1"])
        hashes: dict[str, Any] = {
            f"{part}_sha256": hashlib.sha256(path.read_bytes()).hexdigest() for part, path in paths.items()
        }
        config = DVAEConfig(n_hid=n_hid, vocab_size=vocab_size, n_init=n_init, n_blk_per_group=blocks, **hashes)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} must hold the encoder and the decoder of one dVAE: {error}") from None
    check_params(params, dvae.param_shapes(config), folder)
    return config, params


def _openai_part(path: Path, part: str) -> Params:
    """Told apart by what they read: the encoder pictures, by 7 x 7 pixels; the decoder codes, by one."""
    try:
        tree = from_openai(read_arrays(path))
        kernel = tree["input"]["kernel"].shape[0]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} must hold the {part} of a dVAE: {error}") from None
    if kernel != {"encoder": 7, "decoder": 1}[part]:
        raise CheckpointError(f"{path} must hold the {part} of a dVAE, got the other half")
    return tree


def from_openai(state: Mapping[str, np.ndarray]) -> Params:
    """A state dict of OpenAI's encoder or decoder (OIHW kernels `w`, biases `b`) as that part of our tree."""
    flat = {}
    for name, value in state.items():
        path = re.sub(r"^blocks\.|\bres_path\.|\bconv\.", "", name)
        if path.endswith(".w"):
            path, value = path.removesuffix("w") + "kernel", value.transpose(2, 3, 1, 0)  # HWIO
        else:
            path = re.sub(r"\.b$", ".bias", path)
        flat[path.replace(".", "/")] = value
    return traverse_util.unflatten_dict(flat, sep="/")
