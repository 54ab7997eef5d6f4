"""The layout of taming-transformers, in which VQGANs were trained and first published, as our tree.

Contract: a Lightning checkpoint becomes the published tree of numpy arrays, or one `CheckpointError` that names it.
Nothing in it is executed, whatever else it holds.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import traverse_util

from vqgan.files import CheckpointError, Params
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
