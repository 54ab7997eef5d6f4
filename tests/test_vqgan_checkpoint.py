"""Files become a VQGAN or one CheckpointError that names them: published, CompVis, ours, damaged, from the hub."""

import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import flax.serialization
import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

import vqgan
from vqgan.checkpoint import from_compvis
from vqgan.files import CheckpointError, check_params, read_params
from vqgan.hub import resolve

GOLDEN = Path(__file__).parent / "golden" / "vqgan_b"
MSGPACK, SAFETENSORS = "flax_model.msgpack", "model.safetensors"


def published() -> dict[str, np.ndarray]:
    """Path -> array of the flax file."""
    tree = flax.serialization.msgpack_restore((GOLDEN / MSGPACK).read_bytes())
    return flatten_dict(tree, sep="/")


def compvis() -> dict[str, np.ndarray]:
    """The same weights in the CompVis layout, with two entries of the discriminator."""
    with np.load(GOLDEN / "torch_state_dict.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def assert_published(tree: dict[str, Any]) -> None:
    flat, expected = flatten_dict(tree, sep="/"), published()
    assert flat.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(flat[path], array, err_msg=path)


def write_flax(folder: Path, flat: dict[str, np.ndarray]) -> None:
    (folder / MSGPACK).write_bytes(flax.serialization.to_bytes(unflatten_dict(flat, sep="/")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that still lacks its parameters."""
    shutil.copy(GOLDEN / "config.json", tmp_path)
    return tmp_path


@pytest.fixture
def whole(folder: Path, request: pytest.FixtureRequest) -> Path:
    """The parameter file of a model folder, in the format that the test asks for by name."""
    if request.param == MSGPACK:
        shutil.copy(GOLDEN / MSGPACK, folder)
    else:
        safetensors.numpy.save_file(published(), folder / SAFETENSORS)
    return folder / request.param


both_formats = pytest.mark.parametrize("whole", [MSGPACK, SAFETENSORS], indirect=True)


# Layouts


def test_the_compvis_layout_is_the_published_tree_without_the_loss():
    assert any(name.startswith("loss.") for name in compvis())
    assert_published(from_compvis(compvis()))


def lightning_state() -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((name, torch.from_numpy(array)) for name, array in compvis().items())


def test_a_lightning_checkpoint_gives_the_same_vqgan(folder: Path):
    checkpoint = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.9.5",
        "state_dict": lightning_state(),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": "logs"}},
        "optimizer_states": [{"state": {0: {"step": 1000, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-6}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"embed_dim": 16, "ddconfig": {"ch_mult": [1, 1, 1]}},
    }
    torch.save(checkpoint, folder / "last.ckpt")
    assert_published(vqgan.load(folder / "last.ckpt").params)


def test_a_bare_state_dict_in_float16_is_read_too(folder: Path):
    state = {name: tensor.half() for name, tensor in lightning_state().items() if not name.startswith("loss.")}
    torch.save(state, folder / "vqgan.ckpt")
    params = flatten_dict(vqgan.load(str(folder / "vqgan.ckpt")).params, sep="/")
    for path, array in published().items():
        np.testing.assert_array_equal(params[path], array.astype(np.float16).astype(np.float32), err_msg=path)


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_a_pickled_object_gives_its_tensors_and_runs_nothing(folder: Path):
    trap = Trap(folder / "sprung")
    torch.save({"state_dict": lightning_state(), "hyper_parameters": trap}, folder / "last.ckpt")
    assert_published(vqgan.load(folder / "last.ckpt").params)
    assert not trap.path.exists()
    torch.load(folder / "last.ckpt", weights_only=False)
    assert trap.path.exists()  # it was a trap


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00.", None])
def test_a_ckpt_that_holds_no_tensors_is_named(folder: Path, content: bytes | None):
    if content is not None:
        (folder / "last.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        vqgan.load(folder / "last.ckpt")


@pytest.mark.parametrize(
    "state",
    [
        {0: torch.ones(2)},
        {"a": torch.ones(2), "a.b": torch.ones(2)},
        {"a": torch.ones(2, device="meta")},
    ],
    ids=["a number for a name", "a name inside a name", "without data"],
)
def test_a_state_dict_of_another_kind_is_named(folder: Path, state: dict[Any, torch.Tensor]):
    torch.save({"state_dict": state}, folder / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt must hold a state_dict of"):
        vqgan.load(folder / "last.ckpt")


def test_a_state_dict_of_trainable_parameters_is_read(folder: Path):
    state = {name: torch.nn.Parameter(value) for name, value in lightning_state().items()}
    torch.save({"state_dict": state}, folder / "last.ckpt")
    assert vqgan.load(folder / "last.ckpt").params.keys() == vqgan.load(GOLDEN).params.keys()


def test_saved_in_float16_and_loaded_again_only_the_rounding_is_left(tmp_path: Path):
    original = vqgan.load(GOLDEN)
    vqgan.save(tmp_path / "saved", original.config, original.params)
    again = vqgan.load(tmp_path / "saved")
    assert again.config == original.config
    stored = flatten_dict(read_params(tmp_path / "saved"), sep="/")
    params = flatten_dict(again.params, sep="/")
    assert params.keys() == stored.keys() == published().keys()
    for path, array in published().items():
        assert (stored[path].dtype, params[path].dtype) == (np.float16, np.float32)
        np.testing.assert_array_equal(params[path], array.astype(np.float16).astype(np.float32), err_msg=path)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", SAFETENSORS}


# Files that do not fit


def test_every_path_that_does_not_fit_is_listed(folder: Path):
    flat = published()
    del flat["decoder/mid/attn_1/q/bias"]
    flat["encoder/norm_in/scale"] = np.ones(3, np.float32)
    flat["quant_conv/bias"] = np.ones(7, np.float32)
    write_flax(folder, flat)
    with pytest.raises(CheckpointError) as error:
        vqgan.load(folder)
    first, *lines = str(error.value).splitlines()
    assert str(folder) in first
    assert lines == [
        "- decoder/mid/attn_1/q/bias (32,)",
        "+ encoder/norm_in/scale (3,)",
        "! quant_conv/bias must have shape (16,), got (7,)",
    ]


@both_formats
def test_arrays_of_whole_numbers_are_listed(whole: Path):
    flat = published()
    flat["quant_conv/bias"] = flat["quant_conv/bias"].astype(np.int32)
    if whole.suffix == ".safetensors":
        safetensors.numpy.save_file(flat, whole)
    else:
        write_flax(whole.parent, flat)
    with pytest.raises(CheckpointError, match=r"! quant_conv/bias must be of floats, got int32$"):
        vqgan.load(whole.parent)


@both_formats
@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 5000, 0.5, 0.999, -1])
def test_a_truncated_file_is_named(whole: Path, kept: float):
    data = whole.read_bytes()
    whole.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError) as error:
        vqgan.load(whole.parent)
    assert str(error.value).startswith(str(whole))


@both_formats
def test_a_damaged_file_is_named_or_still_has_every_shape(whole: Path):
    """Neither format has a checksum, so that a flipped bit inside a number stays unseen."""
    data, expected = whole.read_bytes(), unflatten_dict(published(), sep="/")
    rng = np.random.default_rng(0)
    refused = 0
    for place in [*range(16), *rng.integers(16, 3000, 20), *rng.integers(len(data), size=4)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.integers(8)
        whole.write_bytes(damaged)
        message = ""
        try:
            check_params(read_params(whole.parent), expected, whole)
        except CheckpointError as error:
            message = str(error)
            refused += 1
        assert not message or message.startswith(str(whole))
    assert refused >= 16


FOREIGN = {
    "html": b"<!DOCTYPE html><html>404</html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 304307206\n",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "safetensors with a name inside a name": safetensors.numpy.save({"a": np.ones(1), "a/b": np.ones(1)}),
    "safetensors of eight bits": safetensors.torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}),
    "empty safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
    "deep msgpack": b"\x93" * 100_000,
    "msgpack of text": b"\x81\xa1a\xa5hello",
    "msgpack with mixed names": b"\x82\x01\xa1b\xa1a\xa1b",
    "msgpack with numbers for names": flax.serialization.msgpack_serialize({"a": {1: np.ones(2)}}),
    "msgpack with half an array": b"\x81\xa1a\xc7\x03\x01\x93\x90\xa7",
    "msgpack with a damaged dtype": flax.serialization.msgpack_serialize({"a": np.ones(2)}).replace(
        b"float64", b"(1f,f8 "
    ),
}


@pytest.mark.parametrize("name", [MSGPACK, SAFETENSORS])
@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_file_is_named(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        vqgan.load(folder)
    assert str(folder) in str(error.value)


CONFIGS = [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"ch": "wide"}', b'{"ch_mult": 2}', b'{"ch": 7}']
CONFIGS += [b'{"ch_mult": [1, 0]}', b'{"ch_mult": [-1]}', b'{"attn_resolutions": null}', b'{"attn_resolutions": "16"}']


@pytest.mark.parametrize("content", CONFIGS, ids=lambda content: str(content[:30]))
def test_a_config_that_cannot_be_used_is_named(folder: Path, content: bytes):
    shutil.copy(GOLDEN / MSGPACK, folder)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        vqgan.load(folder)


def test_a_folder_without_parameters_says_what_it_needs(folder: Path):
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors or flax_model\.msgpack"):
        vqgan.load(folder)


# The hub


def test_a_local_folder_is_used_as_it_is(tmp_path: Path):
    assert resolve(tmp_path, ["*"]) == resolve(str(tmp_path), ["*"]) == tmp_path


@pytest.mark.parametrize("location", ["nobody/nothing", "nobody/nothing@main", "nothing"])
def test_an_unknown_hub_id_offline_is_one_sentence(location: str):
    with pytest.raises(CheckpointError) as error:
        resolve(location, ["*"])
    assert str(error.value).startswith(f"{location} is neither a folder nor available from the hub: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("reason", "told"), [("reset by peer\nTry again", "reset by peer"), ("", "RuntimeError")])
def test_a_download_that_breaks_off_is_one_sentence(reason: str, told: str, monkeypatch: pytest.MonkeyPatch):
    """Neither httpx's errors nor those of the hub's faster download are OSErrors."""

    def break_off(*_: object, **__: object) -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr("vqgan.hub.snapshot_download", break_off)
    with pytest.raises(CheckpointError) as error:
        resolve("somebody/vqgan", ["*"])
    assert str(error.value) == f"somebody/vqgan is neither a folder nor available from the hub: {told}"


@pytest.mark.parametrize("location", ["a/b/c", "/no/such/folder", "../up", "naïve/name", "a b/c", "x" * 10_000, "a\0b"])
def test_what_can_be_no_hub_id_is_named(location: str):
    with pytest.raises(CheckpointError) as error:
        resolve(location, ["*"])
    assert str(error.value) == f"model must be a preset, a folder or a hub id like owner/name, got {location!r}"


def test_a_model_that_was_downloaded_once_works_offline():
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--somebody--vqgan"
    snapshot = cached / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", MSGPACK):
        shutil.copy(GOLDEN / name, snapshot)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    assert resolve("somebody/vqgan", ["*"]) == snapshot
    for location in ("somebody/vqgan", "somebody/vqgan@main", f"somebody/vqgan@{commit}"):
        assert_published(vqgan.load(location).params)
    with pytest.raises(CheckpointError, match="somebody/vqgan@v2 is neither a folder nor available from the hub"):
        resolve("somebody/vqgan@v2", ["*"])
