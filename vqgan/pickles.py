"""Files of torch (.ckpt, .pt, .pkl) as named arrays, without torch and without running anything that is in them.

Contract: tensors come back; every other class or function that a file names becomes an inert stand-in, which keeps
what it was given and does nothing. So a file of any origin may be read. Two containers are known: the zip that torch
writes since 1.6, and the row of pickles before it. Of a whole pickled module, the names are those of its state dict.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vqgan.files import CheckpointError

DTYPES = {
    "Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": "<u2", "Long": "<i8", "Int": "<i4", "Short": "<i2",
    "Char": "i1", "Byte": "u1", "Bool": "?",
}  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the old container
DEEPEST = 100  # modules in modules


class Inert:
    """Stands for an object of a class that is not ours to know: it is called, filled and set, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        return Inert()

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    extend = add = append


class Storage(NamedTuple):
    """The numbers of one or more tensors, in the file."""

    key: str
    kind: str  # of DTYPES
    numbers: int


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers

    def read(self, content: bytes) -> np.ndarray:
        """content: of the storage. Raises ValueError if it is too small."""
        sizes = (self.offset, *self.shape, *self.strides)
        if not all(type(size) is int and 0 <= size < 2**48 for size in sizes) or len(self.shape) != len(self.strides):
            raise ValueError(f"a tensor must have whole sizes, got {self.shape} with strides {self.strides}")
        numbers = np.frombuffer(content, DTYPES[self.storage.kind])
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        count = math.prod(self.shape)
        if count and (last >= len(numbers) or count > len(numbers)):
            raise ValueError(f"a tensor of shape {self.shape} must fit its storage of {len(numbers)} numbers")
        strides = [stride * numbers.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides) if count else numbers[:0]
        if self.storage.kind == "BFloat16":
            view = (view.astype(np.uint32) << 16).view(np.float32)
        return np.array(view).reshape(self.shape)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict, of a Lightning checkpoint's, or of a whole module. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _from_zip(file) if is_zip else _from_row(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except Exception as error:  # a damaged file shows itself in pickle, zipfile or numpy, as errors of many types
        reason = str(error).strip() or type(error).__name__
        raise CheckpointError(f"{path} must be a whole torch file of tensors: {reason}") from None


def _from_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("its entries must not be compressed")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("its numbers must be little-endian")
        root = _Unpickler(io.BytesIO(archive.read(entries["data.pkl"]))).whole()
        return _arrays(root, lambda storage: archive.read(entries[f"data/{storage.key}"]))


def _from_row(file: BinaryIO) -> dict[str, np.ndarray]:
    """Of five pickles: the fourth is of the objects, the fifth of their storages, which follow, each after its size."""
    parts = [_Unpickler(file) for _ in range(5)]
    number, _, _, root, order = [part.whole() for part in parts]
    if number != MAGIC:
        raise ValueError("its first number must be torch's")
    places: dict[str, tuple[int, int]] = {}
    place = file.tell()
    for key in order:
        file.seek(place)
        (count,) = struct.unpack("<q", file.read(8))
        size = count * np.dtype(DTYPES[parts[3].storages[key].kind]).itemsize
        if size < 0:
            raise ValueError("its storages must have sizes >= 0")
        places[key] = (place + 8, size)
        place += 8 + size

    def content(storage: Storage) -> bytes:
        start, size = places[storage.key]
        file.seek(start)
        return file.read(size)

    return _arrays(root, content)


class _Unpickler(pickle.Unpickler):
    """Of one pickle that begins where `file` is."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin-1")
        self._file = file
        self._stand_ins: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
            ("torch._tensor", "_rebuild_from_type_v2"): _RebuildSubclass(),
        }
        self.storages: dict[str, Storage] = {}

    def whole(self) -> Any:
        start = self._file.tell()
        for place, (opcode, argument, _) in enumerate(pickletools.genops(self._file)):
            # A memo is as long as its largest number says: a lying one would take all of the memory.
            if "PUT" in opcode.name and int(argument or 0) > place:
                raise ValueError(f"its memo must be in order, got {argument}")
        self._file.seek(start)
        return self.load()

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, whatever it is: nothing is imported."""
        if (module, name) not in self._stand_ins:
            self._stand_ins[module, name] = type(name, (Inert,), {})
        return self._stand_ins[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class and, in the old container, its source
            return pid[1]
        what, kind, key, _, count, *view = pid
        name = kind.__name__.removesuffix("Storage")
        if what != "storage" or name not in DTYPES or any(view) or not isinstance(key, str):
            raise ValueError(f"its storages must be of known numbers, got {kind.__name__}")
        return self.storages.setdefault(key, Storage(key, name, count))


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
        return Tensor(storage, offset, tuple(shape), tuple(strides)) if isinstance(storage, Storage) else Inert()


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _RebuildSubclass:
    __slots__ = ()

    def __call__(self, rebuild: Any, _: Any, arguments: Any, *__: Any) -> Any:
        return rebuild(*arguments)


def _arrays(root: Any, content: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    state = root.get("state_dict", root) if isinstance(root, dict) else root
    if isinstance(state, Inert):
        state = dict(_of_module(state, "", DEEPEST))
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise CheckpointError("must hold a state_dict of tensors")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError("must hold a state_dict of tensors with numbers in them")
    return {name: tensor.read(content(tensor.storage)) for name, tensor in state.items()}


def _of_module(module: Inert, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Names and tensors of a pickled torch.nn.Module."""
    state = module.state if isinstance(module.state, dict) else {}
    if depth == 0:
        raise ValueError(f"its modules must not be deeper than {DEEPEST}")
    for part in ("_parameters", "_buffers"):
        for name, tensor in (state.get(part) or {}).items():
            if tensor is not None:
                yield f"{prefix}{name}", tensor
    for name, inner in (state.get("_modules") or {}).items():
        if isinstance(inner, Inert):
            yield from _of_module(inner, f"{prefix}{name}.", depth - 1)
