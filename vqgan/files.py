"""Files of models, which every package reads and writes with: hub ids, JSON, safetensors, flax's msgpack.

Contract: a file of parameters becomes a nested dict of numpy arrays, or one `CheckpointError` that names it. Nothing is
unpickled. Folders come from the disk or from the Hugging Face hub.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open
from safetensors.flax import save_file

Params = dict[str, Any]
SAFETENSORS, MSGPACK = "model.safetensors", "flax_model.msgpack"


class CheckpointError(Exception):
    """A model folder or one of its files cannot be used; the message names it and says why."""


def resolve(location: str | Path, patterns: Sequence[str]) -> Path:
    """The local folder of a model: a folder as it is, or a hub id `owner/name[@revision]`, downloaded once.

    Downloads show their progress, resume, and are used offline afterwards. Raises `CheckpointError`.
    """
    folder = os.path.expanduser(location)
    if os.path.isdir(folder):  # unlike Path.is_dir, false for what is too long or odd to be a path
        return Path(folder)
    repo, _, revision = str(location).partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))
    except HFValidationError:
        raise CheckpointError(
            f"model must be a preset, a folder or a hub id like owner/name, got {str(location)!r}"
        ) from None
    except Exception as error:  # a download can break off in three libraries, as errors of many types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{location} is neither a folder nor available from the hub: {reason}") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} must be a readable JSON file: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def write_text(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """As `write_text`, indented."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    # The name of a file may be no UTF-8; what Python then writes, \udcff, is how JSON escapes it.
    write_text(path, text.encode(errors="backslashreplace").decode())


def read_params(folder: Path) -> Params:
    """The parameter tree of a model folder: `model.safetensors` if it is there, else `flax_model.msgpack`."""
    for name, read in ((SAFETENSORS, read_safetensors), (MSGPACK, read_msgpack)):
        if (folder / name).exists():
            return read(folder / name)
    raise CheckpointError(f"{folder} must hold {SAFETENSORS} or {MSGPACK}")


def read_safetensors(path: Path) -> Params:
    """A safetensors file whose names are tree paths joined by '/'."""
    try:
        with safe_open(path, framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        return traverse_util.unflatten_dict(flat, sep="/")
    except Exception as error:  # also types that numpy does not have, and names that are not those of a tree
        raise CheckpointError(f"{path} must be a whole safetensors file of a tree of arrays: {error}") from None


def read_msgpack(path: Path) -> Params:
    """A file written by flax's `to_bytes`, as the published checkpoints are."""
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # damage shows itself in msgpack, numpy or flax, as errors of many types
        raise CheckpointError(f"{path} must be a whole flax msgpack file: {error}") from None
    if not tree or not _is_tree(tree):
        raise CheckpointError(f"{path} must hold a tree of arrays")
    return tree


def _is_tree(tree: Any) -> bool:
    """Whether `tree` is a dict from names to arrays or to dicts of this kind."""
    return isinstance(tree, dict) and all(
        isinstance(name, str) and (isinstance(value, np.ndarray) or _is_tree(value)) for name, value in tree.items()
    )


def write_safetensors(params: Mapping[str, Any], path: Path, *, dtype: Any) -> None:
    """Write a tree with its floats as `dtype`, or as they are (None); the file appears whole or not at all."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    arrays = {name: np.asarray(value).astype(dtype or value.dtype) for name, value in sorted(flat.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({name: jax.numpy.asarray(value) for name, value in arrays.items()}, str(partial))
    partial.replace(path)


def check_params(params: Mapping[str, Any], expected: Mapping[str, Any], source: object = "the checkpoint") -> None:
    """Raise `CheckpointError` listing what `source` misses (-), has too much (+) or has in another shape or kind."""
    arrays = traverse_util.flatten_dict(dict(params), sep="/")
    got = {k: tuple(v.shape) for k, v in arrays.items()}
    want = {k: tuple(v.shape) for k, v in traverse_util.flatten_dict(dict(expected), sep="/").items()}
    lines = [f"- {path} {want[path]}" for path in sorted(want.keys() - got.keys())]
    lines += [f"+ {path} {got[path]}" for path in sorted(got.keys() - want.keys())]
    lines += [
        f"! {path} must have shape {want[path]}, got {got[path]}"
        for path in sorted(want.keys() & got.keys())
        if want[path] != got[path]
    ]
    lines += [
        f"! {path} must be of floats, got {arrays[path].dtype}"
        for path in sorted(want.keys() & got.keys())
        if not jax.numpy.issubdtype(arrays[path].dtype, jax.numpy.floating)
    ]
    if lines:
        head = f"{source} does not fit its config.json (- missing, + unexpected, ! other shape or kind):"
        raise CheckpointError("\n".join([head, *lines]))
