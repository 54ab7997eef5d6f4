"""Tar shards, as webdataset and img2dataset write them: the members of a sample share a name up to the suffix.

Contract: members of a sample may stand anywhere in their tar. A name is cut before a suffix that we know ("cat.1.jpg"
is "cat.1"), else at its first dot. Two passes: names and captions first, then the pictures, in the order they stand in.
The rest of a damaged tar is one row that says so.
"""

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dalle_mini.training.data.beside import caption_rows
from dalle_mini.training.data.found import pass_over
from dalle_mini.training.data.names import CAPTIONS, suffix_of
from dalle_mini.training.data.pictures import PICTURES
from dalle_mini.training.data.rows import Row
from dalle_mini.training.data.tables import Keys

LARGEST_CAPTION = 2**24  # bytes
ERRORS = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, MemoryError)


def tar_rows(paths: Sequence[Path], keys: Keys, *, captioned: bool) -> Iterator[Row]:
    for path in paths:
        yield from _rows(path, keys, captioned=captioned)


def _rows(path: Path, keys: Keys, *, captioned: bool) -> Iterator[Row]:
    texts, pictures, passed, damaged = _first_pass(path)
    yield from passed
    read: set[str] = set()
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _suffix = _cut(member.name)
                if not member.isfile() or pictures.get(key) != member.name or key in read:
                    continue
                file = tar.extractfile(member)
                content = file.read() if file else b""
                read.add(key)
                name, note = keys.key(key, (path, member.name), f"{path.name}:{key}")
                row = Row(name, None, content, "", f"{path.name}:{member.name}", note)
                yield from caption_rows(row, texts.get(key, {}), captioned=captioned)
    except ERRORS:
        damaged = True
        for key in pictures.keys() - read:
            yield Row(key, None, None, "damaged file", f"{path.name}:{pictures[key]}")
    for key in texts.keys() - pictures.keys() if captioned else ():
        yield Row(key, None, None, "no picture", f"{path.name}:{key}")
    if damaged:
        yield Row(path.name, None, None, "damaged file")


def _first_pass(path: Path) -> tuple[dict[str, dict[str, bytes]], dict[str, str], list[Row], bool]:
    """Captions by key and suffix; the member with the picture, by key; what is neither; whether it ends in damage."""
    texts: dict[str, dict[str, bytes]] = {}
    pictures: dict[str, str] = {}
    passed: list[Row] = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = _cut(member.name)
                place = f"{path.name}:{member.name}"
                if not member.isfile():
                    continue
                if member.name.rpartition("/")[2].startswith("."):
                    passed.append(pass_over(place, "hidden"))
                elif suffix in CAPTIONS and member.size <= LARGEST_CAPTION:
                    file = tar.extractfile(member)
                    texts.setdefault(key, {}).setdefault(suffix, file.read() if file else b"")
                elif suffix in PICTURES:
                    if pictures.setdefault(key, member.name) != member.name:
                        passed.append(pass_over(place, "another picture of the same name"))
                else:
                    passed.append(pass_over(place, f"other suffix {suffix or '(none)'}"))
        damaged = False
    except ERRORS:
        damaged = True
    for key in [key for key in pictures if key not in texts and _field_of(key) in pictures]:
        passed.append(pass_over(f"{path.name}:{pictures.pop(key)}", "another picture of the same name"))
    return texts, pictures, passed, damaged


def _field_of(key: str) -> str | None:
    """What "000.seg" of 000.seg.png belongs to: the sample 000."""
    folder, slash, name = key.rpartition("/")
    stem, dot, _ = name.partition(".")
    return folder + slash + stem if dot else None


def _cut(member: str) -> tuple[str, str]:
    """Key and suffix."""
    folder, slash, name = member.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    if not suffix_of(name) and dot + suffix.lower() not in CAPTIONS:
        stem, dot, suffix = name.partition(".")
    return folder + slash + stem, (dot + suffix).lower()
