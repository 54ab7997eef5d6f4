"""Publishing a model: its folder in our layout or in the published one, with a model card.

Contract: `publish` reads the folder of a model (`dalle/` with, if they are there, `vqgan/` and `clip/`; a run's is
RUN/model) and writes one that `dalle_mini.load` reads. Parameters stay what they are to the bit, unless another dtype
is asked for. The new folder appears whole or not at all, and nothing is overwritten.

    safetensors   config.json, model.safetensors
    msgpack       config.json, flax_model.msgpack: the names that the original code's readers know, per layer or stacked

CLIP stays as open_clip writes it in both. The tokenizer's files are the published ones already.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization, traverse_util

import vqgan
from dalle_mini import model_names, tokenizer, vocabulary
from dalle_mini.checkpoint import from_published, to_published
from dalle_mini.config import ModelConfig
from dalle_mini.model import Params, param_shapes
from dalle_mini.training.report.model_card import Facts, Part, write_card
from vqgan.config import VQGANConfig
from vqgan.files import (
    MSGPACK,
    SAFETENSORS,
    CheckpointError,
    check_params,
    read_json,
    read_params,
    read_safetensors,
    write_safetensors,
)
from vqgan.hub import resolve

LAYOUTS, DTYPES = ("safetensors", "msgpack"), ("float16", "float32")
CARD = "README.md"


def publish(
    model: str | Path,
    out: Path,
    *,
    layout: str = "safetensors",
    stacked: bool = False,
    dtype: str | None = None,
    report: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Write the folder `out`, which must be new or empty, from a model: a preset, a folder or a hub id.

    stacked: all layers of a kind in one array (msgpack alone). dtype: of all parameters, theirs when left out. The
    model's own README.md is kept; without one a card is made, from `report` (the JSON of evaluate), `statistics` (the
    JSON of encode) and, if the model is a run's, what the run's metrics say. Raises ValueError naming the setting,
    and CheckpointError for a model that is not whole.
    """
    _check(out, layout, stacked=stacked, dtype=dtype)
    location = model_names.EMBEDDED if model == "emoji" else model_names.SHELF.get(str(model), model)
    folder = model_names.model_of(resolve(location, model_names.FILES, check=ModelConfig.from_dict))
    if (folder / CARD).exists() and (report or statistics):
        raise ValueError(
            f"report and statistics must be left out for a model with a card of its own, got {folder / CARD}"
        )
    facts = None if (folder / CARD).exists() else Facts.gather(folder, report=report, statistics=statistics)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name:
        new = Path(name) / "model"
        parts = _write_parts(folder, new, _Target(layout, stacked, dtype))
        if facts is None:
            shutil.copy(folder / CARD, new / CARD)
        else:
            write_card(new / CARD, name=out.name, layout=layout, parts=parts, facts=facts)
        if out.exists():
            out.rmdir()  # it is empty, and not all systems rename onto a folder
        new.rename(out)


def _check(out: Path, layout: str, *, stacked: bool, dtype: str | None) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if stacked and layout != "msgpack":
        raise ValueError(f"stacked must go with layout msgpack, got {layout}")
    try:
        new = not out.exists() or (out.is_dir() and not any(out.iterdir()))
        # The folder that one runs in cannot be renamed, and one without a name hardly found.
        if not new or out.resolve() == Path.cwd() or not str(out).strip():
            raise ValueError(f"out must be a new or an empty folder, got {str(out)!r}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent):
            pass
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {str(out)!r}") from error


class _Target(NamedTuple):
    layout: str
    stacked: bool
    dtype: str | None

    def write(self, folder: Path, params: Params, config: dict[str, Any]) -> None:
        """`params` with the names of the layout."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "config.json"
        settings.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if self.layout == "msgpack":
            (folder / MSGPACK).write_bytes(serialization.to_bytes(params))
        else:
            write_safetensors(params, folder / SAFETENSORS, dtype=None)
            shutil.copymode(settings, folder / SAFETENSORS)  # the library writes for the owner's eyes only


def _write_parts(source: Path, new: Path, target: _Target) -> list[Part]:
    """The networks that are there, each checked against its config."""
    if not (source / "dalle").is_dir():  # as published: a text-to-code model alone
        return [_write_dalle(source, new, target)]
    parts = [_write_dalle(source / "dalle", new / "dalle", target)]
    if (source / "vqgan").is_dir():
        parts.append(_write_vqgan(source / "vqgan", new / "vqgan", target))
    if (source / "clip").is_dir():
        shutil.copytree(source / "clip", new / "clip")
        weights = read_safetensors(new / "clip" / "open_clip_model.safetensors")
        parts.append(Part.of("clip", read_json(new / "clip" / "open_clip_config.json"), weights))
    if (source / "spelling").is_dir():  # with which its training goes on
        shutil.copytree(source / "spelling", new / "spelling")
    return parts


def _write_dalle(source: Path, new: Path, target: _Target) -> Part:
    try:
        config = ModelConfig.from_dict(read_json(source / "config.json"))
    except ValueError as error:
        raise CheckpointError(f"{source / 'config.json'}: {error}") from None
    tokenizer.Tokenizer.load(source, max_text_length=config.max_text_length, normalize=config.normalize_text)
    tree = read_params(source)
    if "model" in tree:
        tree = from_published(tree, config, source=source)
    else:
        check_params(tree, param_shapes(config), source)
    params, settings = _as_dtype(tree, target.dtype), config.to_dict()
    part = Part.of("dalle", settings, params)
    if target.layout == "msgpack":
        params, settings = to_published(params, stacked=target.stacked), published_settings(config, target.stacked)
    target.write(new, params, settings)
    for name in (*tokenizer.FILES, vocabulary.FILE):
        if (source / name).exists():
            shutil.copy(source / name, new / name)
    return part


def published_settings(config: ModelConfig, stacked: bool) -> dict[str, Any]:
    """The published `config.json`: ours, and what only the original code asks for.

    A picture is as long as it is: the code that would end it is one that is never drawn, as in the published models.
    """
    never = config.bos_code + 1
    ids = {"bos_token_id": never, "eos_token_id": never, "pad_token_id": never}
    length = {"min_length": config.image_length + 1, "max_length": config.image_length + 1}
    # Absent, use_scan means stacked to the original code, whatever the file holds.
    return {**config.to_dict(), **ids, **length, "is_encoder_decoder": True, "do_sample": True, "use_scan": stacked}


def _write_vqgan(source: Path, new: Path, target: _Target) -> Part:
    """A VQGAN, whose names are the published ones in memory and in both files, or a dVAE, which has our names."""
    config, params = vqgan.read(source)
    params, settings = _as_dtype(params, target.dtype), json.loads(config.to_json())
    part = Part.of("vqgan", settings, params)
    if target.layout == "msgpack" and isinstance(config, VQGANConfig):
        settings |= {"num_resolutions": len(config.ch_mult), "dropout": 0.0}
    target.write(new, params, settings)
    return part


def _as_dtype(params: Params, dtype: str | None) -> Params:
    """All arrays as `dtype`, if one is named. Raises ValueError for a number that it cannot hold."""
    if dtype is None:
        return params
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, array in flat.items():
        with np.errstate(over="ignore"):  # said below, with its name
            flat[path] = array.astype(dtype)
        if not np.isfinite(flat[path]).all() and np.isfinite(array).all():
            largest = np.abs(array.astype(np.float32)).max()
            raise ValueError(f"dtype must hold every parameter, got {dtype} for {path}, which goes up to {largest:g}")
    return traverse_util.unflatten_dict(flat, sep="/")
