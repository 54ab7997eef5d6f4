"""Files of the text-to-code model to params and back. Everything about names and layouts ends at this door.

Contract: in memory there is one layout, per layer, with clean names (`encoder/layers_0/glu/up_proj/kernel`), as
`model.init_params` makes it. Three layouts are read from a local folder, told apart by their names:

    ours       model.safetensors     the names in memory, joined by "/"
    published  flax_model.msgpack    model/encoder/layers/FlaxBartEncoderLayer_0/GLU_0/Dense_1/kernel   (per layer)
    published  flax_model.msgpack    model/encoder/layers/FlaxBartEncoderLayers/GLU_0/Dense_1/kernel    (stacked)

A stacked array holds all layers of a kind along axis 0. What does not fit the config raises CheckpointError, which
lists the paths that are missing, unexpected or mis-shaped in the words of the file.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dalle_mini.config import ModelConfig
from dalle_mini.model import Params, param_shapes
from vqgan.files import check_params, read_params, write_safetensors, write_text

# Our name of a module -> its published one, which numbers modules of a kind in the order of their creation.
_PUBLISHED = {
    "embed/ids": "embed_tokens",
    "embed/positions": "embed_positions",
    "embed/norm": "layernorm_embedding",
    "final_norm": "final_ln",
    "self_attention": "FlaxBartAttention_0",
    "cross_attention": "FlaxBartAttention_1",
    "self_pre_norm": "LayerNorm_0",
    "self_post_norm": "LayerNorm_1",
    "cross_pre_norm": "LayerNorm_2",
    "cross_post_norm": "LayerNorm_3",
    "glu/pre_norm": "GLU_0/LayerNorm_0",
    "glu/gate_proj": "GLU_0/Dense_0",
    "glu/up_proj": "GLU_0/Dense_1",
    "glu/mid_norm": "GLU_0/LayerNorm_1",
    "glu/down_proj": "GLU_0/Dense_2",
}
_LAYER = re.compile(r"(model/(?:encoder|decoder)/layers/FlaxBart(?:En|De)coderLayer)_(\d+)/(.+)")
_STACK = re.compile(r"(model/(?:encoder|decoder)/layers/FlaxBart(?:En|De)coderLayer)s/(.+)")


def published_path(path: str) -> str:
    """`decoder/layers_3/glu/up_proj/kernel` -> `model/decoder/layers/FlaxBartDecoderLayer_3/GLU_0/Dense_1/kernel`."""
    side, inner = path.split("/", 1)
    if inner.startswith("lm_head/"):
        return inner  # the one array outside `model`
    for ours, published in _PUBLISHED.items():
        inner = inner.replace(f"{ours}/", f"{published}/")
    return f"model/{side}/" + re.sub(r"^layers_(\d+)/", rf"layers/FlaxBart{side.title()}Layer_\1/", inner)


def unstack_layers(flat: dict[str, Any]) -> dict[str, Any]:
    """Published paths to arrays, stacked -> per layer; what is already per layer stays."""
    out: dict[str, Any] = {}
    for path, array in flat.items():
        match = _STACK.fullmatch(path)
        if match is None or np.ndim(array) == 0:
            out[path] = array
        else:
            layer, inner = match.groups()
            out |= {f"{layer}_{i}/{inner}": array[i] for i in range(array.shape[0])}
    return out


def stack_layers(flat: dict[str, Any]) -> dict[str, Any]:
    """Published paths to arrays, per layer -> stacked: the inverse of `unstack_layers`."""
    out: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for path, array in flat.items():
        if match := _LAYER.fullmatch(path):
            layer, i, inner = match.groups()
            stacks.setdefault(f"{layer}s/{inner}", {})[int(i)] = array
        else:
            out[path] = array
    return out | {path: np.stack([layers[i] for i in range(len(layers))]) for path, layers in stacks.items()}


def from_published(tree: Params, config: ModelConfig, *, source: object = "the checkpoint") -> Params:
    """A published tree, per layer or stacked, as our params. Raises CheckpointError where it does not fit `config`.

    `source` is what the error calls the tree.
    """
    flat = unstack_layers(flatten_dict(tree, sep="/"))
    shapes = flatten_dict(param_shapes(config), sep="/")
    check_params(
        unflatten_dict(flat, sep="/"),
        unflatten_dict({published_path(path): shape for path, shape in shapes.items()}, sep="/"),
        source,
    )
    return unflatten_dict({path: flat[published_path(path)] for path in shapes}, sep="/")


def to_published(params: Params, *, stacked: bool) -> Params:
    """Our params as a published tree, the inverse of `from_published`; the reference calls stacked `use_scan`."""
    flat = {published_path(path): np.asarray(array) for path, array in flatten_dict(params, sep="/").items()}
    return unflatten_dict(stack_layers(flat) if stacked else flat, sep="/")


def load_params(folder: Path, config: ModelConfig, *, dtype: str) -> Params:
    """The params in `folder`, in any of the three layouts, as arrays of `dtype`. Raises CheckpointError."""
    tree = read_params(folder)
    if "model" in tree:
        tree = from_published(tree, config, source=folder)
    else:
        check_params(tree, param_shapes(config), folder)
    return jax.tree.map(lambda array: jnp.asarray(array, dtype), tree)


def save_model(folder: Path, config: ModelConfig, params: Params, *, dtype: str) -> None:
    """Writes config.json and model.safetensors with arrays of `dtype` into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(params, folder / "model.safetensors", dtype=dtype)
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    write_text(folder / "config.json", text + "\n")
