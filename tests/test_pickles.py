"""Torch's files become arrays, whatever else is in them, and nothing in them runs."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqgan.files import CheckpointError
from vqgan.pickles import read_arrays

NUMBERS = torch.arange(12, dtype=torch.float32).reshape(3, 4)
both_containers = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "row of pickles"])


def saved(path: Path, content: Any, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_same(arrays: dict[str, np.ndarray], tensors: dict[str, torch.Tensor]) -> None:
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(
            arrays[name], tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()
        )


@both_containers
def test_tensors_of_every_kind_and_their_views_are_read(zipped: bool, tmp_path: Path):
    state = {
        str(dtype): NUMBERS.to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    }
    state |= {"turned": NUMBERS.T, "part": NUMBERS[1:, 1:3], "number": torch.tensor(3.0), "none": torch.zeros(0, 4)}
    state |= {"trainable": torch.nn.Parameter(NUMBERS)}
    assert_same(read_arrays(saved(tmp_path / "a.pt", state, zipped=zipped)), state)


@both_containers
def test_a_whole_module_gives_its_state_dict(zipped: bool, tmp_path: Path):
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    )
    path = saved(tmp_path / "a.pkl", module, zipped=zipped)
    assert_same(read_arrays(path), dict(module.state_dict()))


def test_classes_of_other_programs_may_be_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As old versions of Lightning wrote them, a class as a key."""
    names = "lightning_of_old", "lightning_of_old.callbacks"
    modules = {name: types.ModuleType(name) for name in names}
    checkpoint = type("ModelCheckpoint", (), {"__module__": names[1]})
    settings = type("Settings", (dict,), {"__module__": names[1]})
    for kind in (checkpoint, settings):
        setattr(modules[names[1]], kind.__name__, kind)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    told = checkpoint()
    told.best = torch.tensor(0.5)
    content = {
        "state_dict": {"w": NUMBERS},
        "callbacks": {checkpoint: {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": settings(a=[told, {1, 2}]),
        "rng": np.random.default_rng(0).bit_generator.state,
    }
    path = saved(tmp_path / "last.ckpt", content)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    assert_same(read_arrays(path), {"w": NUMBERS})


# Nothing runs


class Trap:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def raw(data: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


def traps(canary: Path) -> dict[str, bytes]:
    name = str(canary).encode()
    text = b"X" + struct.pack("<I", len(name)) + name
    return {
        "reduce": pickle.dumps({"state_dict": Trap(os.mkdir, str(canary))}),
        "eval": pickle.dumps(Trap(eval, f"open({str(canary)!r}, 'w')")),
        "global": b"cos\nmkdir\n(" + text + b"tR.",
        "inst": b"(" + text + b"ios\nmkdir\n.",
        "obj": b"(cos\nmkdir\n" + text + b"o.",
        "new": b"\x80\x02cos\nmkdir\n(" + text + b"t\x81.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(" + text + b"tR.",
        "dotted": b"\x80\x04\x8c\x08builtins\x8c\x0d__import__.os\x93(" + text + b"tR.",
        "build": b"cos\nmkdir\n)R}X\x0c\x00\x00\x00__setstate__cos\nmkdir\nsb" + text + b"b.",
        "build a class": b"cos\nmkdir\n(N}X\x08\x00\x00\x00__call__cos\nmkdir\nstb(" + text + b"tR.",
        "extension": b"\x80\x02\x82\x01(" + text + b"tR.",
    }


@pytest.mark.parametrize("kind", traps(Path("x")))
def test_what_a_pickle_calls_does_not_run(kind: str, tmp_path: Path):
    canary = tmp_path / "canary"
    with pytest.raises(CheckpointError, match=r"a\.pt must "):
        read_arrays(raw(traps(canary)[kind], tmp_path / "a.pt"))
    assert not canary.exists()


@both_containers
def test_a_trap_beside_the_tensors_is_passed_over(zipped: bool, tmp_path: Path):
    canary = tmp_path / "canary"
    path = saved(tmp_path / "a.pt", {"state_dict": {"w": NUMBERS}, "trap": Trap(os.mkdir, str(canary))}, zipped=zipped)
    assert_same(read_arrays(path), {"w": NUMBERS})
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # it was a trap


def test_a_pickle_changes_nothing_of_this_process(tmp_path: Path):
    """State for the stand-ins themselves, which BUILD would set on what a global is."""
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cbuiltins\nset\n"):
        data = target + b"(N}X\x0c\x00\x00\x00__defaults__)stb."
        with pytest.raises(CheckpointError):
            read_arrays(raw(data, tmp_path / "a.pt"))
    assert not hasattr(collections.OrderedDict, "__defaults__")


# Damage


def tensor_pickle(count: int, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> bytes:
    """A state dict of one tensor that claims anything."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if value is NUMBERS else None

    file = io.BytesIO()
    rebuilt = Trap(torch._utils._rebuild_tensor_v2, NUMBERS, offset, shape, strides, False, collections.OrderedDict())
    Pickler(file, 2).dump({"w": rebuilt})
    return file.getvalue()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (2**40,), (0,)),
        (0, (100,), (1,)),
        (10, (4,), (1,)),
        (0, (3,), (2**50,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, ("a",), (1,)),
        (2**70, (1,), (1,)),
    ],
)
def test_a_tensor_that_claims_more_than_there_is_is_refused(offset: int, shape: Any, strides: Any, tmp_path: Path):
    path = raw(tensor_pickle(2**40, offset, shape, strides), tmp_path / "a.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(48))
    with pytest.raises(CheckpointError, match=r"a\.pt must be a whole torch file of tensors: a tensor"):
        read_arrays(path)


DAMAGED = {
    "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 200_000 + b".",
    "a huge memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a huge text": b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"x.",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "a number": b"\x80\x02K\x01.",
    "an empty dict": b"\x80\x02}.",
    "a memo of nothing": b"\x80\x02h\x05.",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_odd_pickle_is_one_sentence(kind: str, tmp_path: Path):
    for path in (raw(DAMAGED[kind], tmp_path / "a.pt"), tmp_path / "b.pt"):
        if path.name == "b.pt":
            path.write_bytes(DAMAGED[kind])
        with pytest.raises(CheckpointError, match=r"[ab]\.pt must ") as error:
            read_arrays(path)
        assert "\n" not in str(error.value)


@both_containers
def test_a_file_cut_or_bent_anywhere_is_refused_or_read(zipped: bool, tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"state_dict": {"w": NUMBERS, "v": NUMBERS.half()}}, zipped=zipped)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for number in range(150):
        bent = bytearray(data[: rng.integers(len(data))] if number % 2 else data)
        if not number % 2:
            bent[rng.integers(len(bent))] ^= 1 << rng.integers(8)
        path.write_bytes(bent)
        with suppress(CheckpointError):
            read_arrays(path)


def test_modules_in_modules_without_end_are_refused(tmp_path: Path):
    module = torch.nn.Module()
    module._modules["again"] = module
    with pytest.raises(CheckpointError, match="its modules must not be deeper than 100"):
        read_arrays(saved(tmp_path / "a.pt", module))
