"""Rows of a source and, with their pictures decoded, samples.

Contract: nothing that a row holds ends a run. A broken, truncated, tiny, huge or animated picture is skipped; CMYK,
16 bits, transparency and other colours are converted; the report lists under the reason, either way, where to look.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dalle_mini.training.data.pictures import PictureError, decode_picture
from dalle_mini.training.data.skipped import Report

ROWS_AHEAD = 32  # decoded while the caller works


class Row(NamedTuple):
    """One entry of a source, not decoded; of a picture with several captions, one for each, with one key."""

    key: str
    caption: str | None
    file: Path | bytes | None
    problem: str = ""  # why it cannot be used, if the caption or the file does not say it
    place: str = ""  # in the source, where that is not the key
    note: str = ""  # what a person should know of how it was read
    passed_over: bool = False  # nothing but the name of something that was not looked at, and why: the problem

    def read(self) -> bytes | None:
        """The encoded picture; None if there is none or its file cannot be read."""
        try:
            return self.file.read_bytes() if isinstance(self.file, Path) else self.file
        except (OSError, ValueError):  # the latter for a name that no file can have
            return None

    @property
    def where(self) -> str:
        return f"{self.place} ({self.key})" if self.place and self.place != self.key else self.key


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    key: str
    caption: str  # not empty, single-spaced
    image: Image.Image  # RGB, upright, on white where it was transparent
    file: bytes  # the picture as it was found


Decoded = tuple[Image.Image, tuple[str, ...], bytes]


def read_samples(rows: Iterable[Row], report: Report) -> Iterator[Sample]:
    """The samples of `rows`, in their order, decoded ahead by threads; the rest goes into `report`."""
    for row, decoding in _decode_ahead(rows):
        if row.passed_over:
            report.pass_over(row.problem, row.key)
            continue
        report.read += 1
        caption = " ".join((row.caption or "").split())
        try:
            if row.problem:
                raise PictureError(row.problem)
            if row.file is None:
                raise PictureError("no picture")
            if not caption:
                raise PictureError("no caption")
            image, conversions, file = decoding.result()
        except PictureError as error:
            report.skip(str(error), row.where)
            continue
        for conversion in (*conversions, *([row.note] if row.note else [])):
            report.converted.setdefault(conversion, []).append(row.where)
        yield Sample(key=row.key, caption=caption, image=image, file=file)


def _decode_ahead(rows: Iterable[Row]) -> Iterator[tuple[Row, Future[Decoded]]]:
    """A picture with several captions, which follow each other, is decoded once."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[Row, Future[Decoded]]] = deque()
        file: Path | bytes | None = None
        for row in rows:
            if not (waiting and row.file is not None and (row.file is file or row.file == file)):
                usable = row.file is not None and not row.problem and row.caption and row.caption.strip()
                decoding = pool.submit(_decode, row) if usable else Future()
                file = row.file if usable else None
            waiting.append((row, decoding))
            if len(waiting) == ROWS_AHEAD:
                yield waiting.popleft()
        yield from waiting


def _decode(row: Row) -> Decoded:
    file = row.read()
    if file is None:
        raise PictureError("missing file")
    return (*decode_picture(file), file)
