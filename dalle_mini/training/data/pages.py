"""Columns of Parquet whose pages do not fit the memory, value by value.

Contract: pandas writes a thousand pictures as one page, which pyarrow decodes as a whole, at two to three times its
size. Such a column is read here as a stream, for the one shape it comes in: bytes without repetition, plain or by a
dictionary, which goes to a temporary file. Anything else is pyarrow's. The format is that of
https://parquet.apache.org/docs/file-format: page headers are Thrift's compact protocol, levels and indices are runs.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from dalle_mini.training.optional_packages import optional

LONGEST = 2**31 - 1  # bytes of one value or page
LARGE = 2**25  # bytes; a column chunk with a larger page is read as a stream
DICTIONARY_PAGE, DATA_PAGE = 2, 0
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
STREAMS = {"GZIP": "gzip", "ZSTD": "zstd", "BROTLI": "brotli"}


def has_large_pages(file: BinaryIO, column: Any) -> bool:
    """column: of pyarrow's metadata of a row group."""
    if column.total_uncompressed_size <= LARGE or column.physical_type != "BYTE_ARRAY":
        return False
    headers = [header for header, _ in _pages(file, column)]
    known = column.compression in ("UNCOMPRESSED", "SNAPPY", *STREAMS) and all(map(_is_known, headers))
    return known and any(header[2] > LARGE for header in headers)


def _is_known(header: dict[int, Any]) -> bool:
    encodings = {DICTIONARY_PAGE: (PLAIN, PLAIN_DICTIONARY), DATA_PAGE: (PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY)}
    inner = header.get(7 if header[1] == DICTIONARY_PAGE else 5)
    return isinstance(inner, dict) and type(inner.get(1)) is int and inner.get(2) in encodings.get(header[1], ())


def values(file: BinaryIO, column: Any, *, defined: int) -> Iterator[bytes | None]:
    """Of a column chunk. defined: the level at which there is a value. Raises ValueError for what is damaged."""
    with tempfile.TemporaryFile() as spool:
        places: list[tuple[int, int]] = []  # of the dictionary's values in `spool`
        for header, start in _pages(file, column):
            with _content(file, column.compression, header, start) as content:
                if header[1] == DICTIONARY_PAGE:
                    for value in _plain(content, header[7][1]):
                        places.append((spool.tell(), len(value)))
                        spool.write(value)
                else:
                    yield from _data_page(content, header[5], spool, places, defined)


def _pages(file: BinaryIO, column: Any) -> Iterator[tuple[dict[int, Any], int]]:
    """Headers by the numbers of their fields, and where what follows them begins."""
    first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    place, end = first, first + column.total_compressed_size
    while place < end:
        file.seek(place)
        header = _struct(file)
        if not all(type(header.get(field)) is int for field in (1, 2, 3)) or min(header[2], header[3]) < 0:
            raise ValueError("a page must have a type and sizes")
        start = file.tell()
        yield header, start
        place = start + header[3]


def _data_page(
    content: BinaryIO, header: dict[int, Any], spool: BinaryIO, places: list[tuple[int, int]], defined: int
) -> Iterator[bytes | None]:
    count = header[1]
    present = np.ones(count, bool)
    if defined:
        size = int.from_bytes(_exactly(content, 4), "little")
        present = _runs(_exactly(content, size), defined.bit_length(), count) == defined
    if header[2] == PLAIN:
        found = _plain(content, int(present.sum()))
        yield from (next(found) if there else None for there in present)
        return
    width = _exactly(content, 1)[0]
    indices = iter(_runs(content.read(), width, int(present.sum())).tolist())
    for there in present:
        if there:
            start, size = places[next(indices)]
            spool.seek(start)
            yield spool.read(size)
        else:
            yield None


def _plain(content: BinaryIO, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield _exactly(content, int.from_bytes(_exactly(content, 4), "little"))


def _exactly(content: BinaryIO, size: int) -> bytes:
    data = content.read(min(size, LONGEST))
    if len(data) != size:
        raise ValueError("a page must be as long as it says")
    return data


def _runs(data: bytes, width: int, count: int) -> np.ndarray:
    """Numbers of `width` bits in runs of one value and in packs of eight."""
    parts, found, file = [], 0, io.BytesIO(data)
    while found < count:
        head = _varint(file)
        if head & 1:
            packed = np.frombuffer(file.read((head >> 1) * width), np.uint8)
            bits = np.unpackbits(packed, bitorder="little")
            numbers = bits[: len(bits) // max(1, width) * width].reshape(-1, max(1, width)) @ (
                1 << np.arange(max(1, width))
            )
        else:
            numbers = np.full(min(head >> 1, count), int.from_bytes(file.read((width + 7) // 8), "little"))
        if not len(numbers):
            raise ValueError("a run must hold a number")
        parts.append(numbers)
        found += len(numbers)
    return np.concatenate(parts)[:count] if parts else np.zeros(0, np.int64)


@contextmanager
def _content(file: BinaryIO, codec: str, header: dict[int, Any], start: int) -> Iterator[BinaryIO]:
    file.seek(start)
    if header[2] <= LARGE and codec != "UNCOMPRESSED":
        pa = optional("pyarrow", "to read Parquet")
        data = pa.decompress(_exactly(file, header[3]), header[2], codec.lower(), asbytes=True)
        yield io.BytesIO(data)
    elif codec == "UNCOMPRESSED":
        yield file
    elif codec == "SNAPPY":
        yield io.BufferedReader(_Snappy(file), 2**16)
    else:
        pa = optional("pyarrow", "to read Parquet")
        yield pa.CompressedInputStream(pa.PythonFile(_Part(file, header[3]), "r"), STREAMS[codec])


class _Part(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


class _Snappy(io.RawIOBase):
    """Snappy's raw format as a stream: literals, and copies from what came up to 64 KB before.

    https://github.com/google/snappy/blob/main/format_description.txt; its compressor never copies from further away.
    """

    WINDOW = 2**16

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _varint(file)
        self._before, self._ready = bytearray(), bytearray()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._left > 0:
            self._element()
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        del self._ready[:size]
        return size

    def _element(self) -> None:
        tag = _exactly(self._file, 1)[0]
        kind, size = tag & 3, tag >> 2
        if kind == 0:
            if size >= 60:
                size = int.from_bytes(_exactly(self._file, size - 59), "little")
            self._put(_exactly(self._file, size + 1))
            return
        if kind == 1:
            distance = (tag >> 5 << 8) | _exactly(self._file, 1)[0]
            size = (size & 7) + 4
        else:
            distance = int.from_bytes(_exactly(self._file, 2 if kind == 2 else 4), "little")
            size += 1
        if not 0 < distance <= len(self._before):
            raise ValueError("a copy must be of what came before")
        start = self._before[len(self._before) - distance :]
        self._put((start * (size // distance + 1))[:size])

    def _put(self, data: bytes | bytearray) -> None:
        self._ready += data
        self._before += data
        self._left -= len(data)
        if len(self._before) > 8 * self.WINDOW:
            del self._before[: -self.WINDOW]


def _varint(file: BinaryIO) -> int:
    number = shift = 0
    while shift < 64:
        byte = _exactly(file, 1)[0]
        number |= (byte & 127) << shift
        if byte < 128:
            return number
        shift += 7
    raise ValueError("a number must have fewer than 64 bits")


def _struct(file: BinaryIO) -> dict[int, Any]:
    """Fields of Thrift's compact protocol by their numbers; of page headers, which are flat enough."""
    fields: dict[int, Any] = {}
    number = 0
    while head := _exactly(file, 1)[0]:
        number = number + (head >> 4) if head >> 4 else _zigzag(_varint(file))
        fields[number] = _field(file, head & 15)
        if len(fields) > 100:
            raise ValueError("a page header must have few fields")
    return fields


def _field(file: BinaryIO, kind: int) -> Any:
    match kind:
        case 1 | 2:
            return kind == 1
        case 3:
            return _exactly(file, 1)[0]
        case 4 | 5 | 6:
            return _zigzag(_varint(file))
        case 8:
            return _exactly(file, _varint(file))
        case 12:
            return _struct(file)
    raise ValueError(f"a page header must have simple fields, got one of type {kind}")


def _zigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
