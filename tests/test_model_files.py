"""Models in parts, with a mark before their JSON, or of another kind on the hub."""

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

import vqgan
from dalle_mini import model_names
from dalle_mini.config import ModelConfig
from dalle_mini.training import recipe
from vqgan.files import CheckpointError, read_json, read_params
from vqgan.hub import resolve

GOLDEN = Path(__file__).parent / "golden" / "vqgan_b"


def weights() -> dict[str, np.ndarray]:
    return flatten_dict(read_params(GOLDEN), sep="/")


def write_msgpack(flat: dict[str, np.ndarray], path: Path) -> None:
    path.write_bytes(flax.serialization.to_bytes(unflatten_dict(flat, sep="/")))


FORMATS: dict[str, tuple[str, Callable[..., None]]] = {
    "safetensors": ("model{}.safetensors", safetensors.numpy.save_file),
    "msgpack": ("flax_model{}.msgpack", write_msgpack),
}


@pytest.fixture(params=FORMATS)
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The index of a model in two parts."""
    name, write = FORMATS[request.param]
    flat = weights()
    shutil.copy(GOLDEN / "config.json", tmp_path)
    files = {path: name.format(f"-0000{1 + number % 2}-of-00002") for number, path in enumerate(sorted(flat))}
    for file in set(files.values()):
        write({path: flat[path] for path in files if files[path] == file}, tmp_path / file)
    index = tmp_path / (name.format("") + ".index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_a_model_in_parts_is_the_same_model(parts: Path):
    loaded = flatten_dict(vqgan.load(parts.parent).params, sep="/")
    assert loaded.keys() == weights().keys()
    for path, array in weights().items():
        np.testing.assert_array_equal(loaded[path], array)


@pytest.mark.parametrize("change", ["lost", "lies", "elsewhere", "no map"])
def test_parts_that_do_not_fit_their_index_are_named(change: str, parts: Path):
    index = json.loads(parts.read_text())
    some = sorted(set(index["weight_map"].values()))[0]
    if change == "lost":
        (parts.parent / some).unlink()
    elif change == "lies":
        index["weight_map"]["decoder/more"] = some
    elif change == "elsewhere":
        index["weight_map"]["decoder/more"] = "../" + some
    else:
        index = {}
    parts.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="index.json must |" + some):
        read_params(parts.parent)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mark_before_json_is_read_over(encoding: str, tmp_path: Path):
    for name in ("config.json", "flax_model.msgpack"):
        shutil.copy(GOLDEN / name, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text(), encoding=encoding)
    assert read_json(config) == read_json(GOLDEN / "config.json")
    assert vqgan.load(tmp_path).config == vqgan.load(GOLDEN).config


def test_a_mark_before_a_recipe_is_read_over(tmp_path: Path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf" + (recipe.FOLDER / "emoji-tiny.toml").read_bytes())
    assert recipe.load(tmp_path / "mine.toml").tables == recipe.load("emoji-tiny").tables


# The hub


class Hub:
    """A repository of names and contents, and what was fetched of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.files, self.fetched = folder, dict[str, bytes](), set[str]()
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr("vqgan.hub.snapshot_download", self.download)

    def download(self, repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        for name, content in self.files.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(content)
                self.fetched.add(name)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


BERT = json.dumps({"model_type": "bert", "hidden_size": 768}).encode()


@pytest.mark.parametrize("load", [vqgan.load, model_names.find])
def test_another_model_is_refused_from_its_config_before_any_weight_is_fetched(load: Callable[[str], Any], hub: Hub):
    hub.files = {"config.json": BERT, "model.safetensors": b"", "pytorch_model.bin": b"", "flax_model.msgpack": b""}
    with pytest.raises(CheckpointError, match="owner/bert must be a model of this kind: "):
        load("owner/bert")
    assert hub.fetched == {"config.json"}
    del hub.files["config.json"]
    shutil.rmtree(hub.folder)
    hub.folder.mkdir()
    with pytest.raises(CheckpointError, match=r"owner/bert must be a model with a config\.json, got none"):
        load("owner/bert")


@pytest.mark.parametrize("kind", ["safetensors", "msgpack"])
def test_only_the_format_that_is_read_is_fetched(kind: str, hub: Hub):
    both = {
        "model.safetensors": safetensors.numpy.save(weights()),
        "flax_model.msgpack": (GOLDEN / "flax_model.msgpack").read_bytes(),
    }
    wanted = [name for name in both if name.endswith(kind)]
    hub.files = {
        "config.json": (GOLDEN / "config.json").read_bytes(),
        "pytorch_model.bin": b"",
        "model.fp16.safetensors": b"",
    }
    hub.files |= both if kind == "safetensors" else {name: both[name] for name in wanted}
    assert vqgan.load("owner/vqgan").config == vqgan.load(GOLDEN).config
    assert hub.fetched == {"config.json", *wanted}


def test_each_part_of_a_model_is_fetched_in_its_own_format(hub: Hub, mini_config: bytes):
    hub.files = {
        "dalle/config.json": mini_config, "dalle/flax_model.msgpack": b"", "dalle/tokenizer.json": b"",
        "vqgan/config.json": b"{}", "vqgan/model.safetensors": b"", "vqgan/flax_model.msgpack": b"",
        "clip/open_clip_model.safetensors": b"", "clip/open_clip_config.json": b"{}", "README.md": b"",
    }  # fmt: skip
    resolve("owner/mine", model_names.FILES, check=ModelConfig.from_dict)
    assert hub.files.keys() - hub.fetched == {"vqgan/flax_model.msgpack"}


@pytest.fixture
def mini_config() -> bytes:
    return (model_names.EMBEDDED / "dalle" / "config.json").read_bytes()
