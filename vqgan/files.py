"""Files of models, which every package reads and writes with: JSON, safetensors, flax's msgpack.

Contract: a file of parameters becomes a nested dict of numpy arrays, or one `CheckpointError` that names it. Nothing is
unpickled.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util
from safetensors import safe_open
from safetensors.flax import save_file

Params = dict[str, Any]
SAFETENSORS, MSGPACK = "model.safetensors", "flax_model.msgpack"


class CheckpointError(Exception):
    """A model folder or one of its files cannot be used; the message names it and says why."""


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())  # of bytes, also with a mark of their order before them
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
    """The tree in a model folder: of `model.safetensors`, else `flax_model.msgpack`, or of the parts of either."""
    for name, read in ((SAFETENSORS, read_safetensors), (MSGPACK, read_msgpack)):
        if (folder / name).exists():
            return read(folder / name)
        if (folder / f"{name}.index.json").exists():
            return _read_parts(folder / f"{name}.index.json", read)
    parts = f"in parts with {SAFETENSORS}.index.json"
    raise CheckpointError(f"{folder} must hold {SAFETENSORS} or {MSGPACK}, whole or {parts}")


def _read_parts(index: Path, read: Callable[[Path], Params]) -> Params:
    """The tree whose arrays the index lists by file, as transformers writes what is larger than it likes."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in files.values()
    ):
        raise CheckpointError(f"{index} must have a weight_map of arrays to files beside it")
    flat: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        flat |= traverse_util.flatten_dict(read(index.parent / name), sep="/")
    if missing := sorted(files.keys() - flat.keys()):
        raise CheckpointError(f"{index} must list what its files hold, but {missing[0]} is not in {files[missing[0]]}")
    try:
        return traverse_util.unflatten_dict(flat, sep="/")
    except Exception as error:  # a name inside a name
        raise CheckpointError(f"{index} must be of a tree of arrays: {error}") from None


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
