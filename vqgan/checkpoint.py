"""The layout of taming-transformers, in which VQGANs were trained and first published, as our tree.

Contract: a Lightning checkpoint becomes the published tree of numpy arrays, or one `CheckpointError` that names it. It
is read with torch's `weights_only=True`: nothing in it is executed.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import traverse_util

from vqgan.files import CheckpointError, Params


def read_lightning(path: Path) -> Params:
    """A taming-transformers `.ckpt` (torch, read with `weights_only=True`) as the published tree."""
    import torch  # only this format needs it

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or unsafe file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} must be a torch checkpoint of plain tensors: {reason}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} must hold a state_dict of tensors")
    try:
        return from_compvis({name: value.detach().float().numpy() for name, value in state.items()})
    except Exception as error:  # tensors without data, or names that are not those of a tree
        raise CheckpointError(f"{path} must hold a state_dict of whole tensors: {error}") from None


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
