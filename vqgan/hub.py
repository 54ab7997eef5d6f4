"""A model's folder: on the disk, or downloaded once from the Hugging Face hub."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from vqgan.files import SAFETENSORS, CheckpointError, read_json


def resolve(
    location: str | Path, patterns: Sequence[str], *, check: Callable[[dict[str, Any]], object] | None = None
) -> Path:
    """The local folder of a model: a folder as it is, or a hub id `owner/name[@revision]`, downloaded once.

    check: refuses the config.json of a network of another kind, with a ValueError; weights are downloaded after that,
    and only with it: in safetensors, or where there are none in msgpack. Downloads show their progress, resume, and are
    used offline afterwards. Raises `CheckpointError`.
    """
    own = os.path.expanduser(location)
    if os.path.isdir(own):  # unlike Path.is_dir, false for what is too long or odd to be a path
        return Path(own)
    folder = _download(location, patterns)
    if check is None:
        return folder
    configs = sorted(path for name in ("config.json", "*/config.json") for path in folder.glob(name))
    parts = {path.parent: path for path in configs}
    first = parts.get(folder) or parts.get(folder / "dalle")
    if first is None:
        raise CheckpointError(f"{location} must be a model with a config.json, got none")
    try:
        check(read_json(first))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{location} must be a model of this kind: {error}") from None
    _download(location, [f"*{name}" for name in (SAFETENSORS, "model-*-of-*.safetensors")])
    lacking = [part for part in parts if not any(part.glob("model*.safetensors"))]
    names = [(part.relative_to(folder) / "flax_model*.msgpack").as_posix() for part in lacking]
    return _download(location, names) if names else folder


def _download(location: str | Path, patterns: Sequence[str]) -> Path:
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
