"""Rows of a source and, with their pictures decoded, samples.

Contract: nothing that a row holds ends a run. A broken, truncated, tiny, huge or animated picture is skipped; CMYK,
16 bits and transparency are converted; the report lists the key under the reason either way.
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
    """One entry of a source, not decoded. Without a `file`, `problem` says why."""

    key: str
    caption: str | None
    file: Path | bytes | None
    problem: str = "no picture"

    def read(self) -> bytes | None:
        """The encoded picture; None if there is none or its file cannot be read."""
        try:
            return self.file.read_bytes() if isinstance(self.file, Path) else self.file
        except (OSError, ValueError):  # the latter for a name that no file can have
            return None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    key: str
    caption: str  # not empty, single-spaced
    image: Image.Image  # RGB, upright, on white where it was transparent
    file: bytes  # the picture as it was found


def read_samples(rows: Iterable[Row], report: Report) -> Iterator[Sample]:
    """The samples of `rows`, in their order, decoded ahead by threads; the rest goes into `report`."""
    for row, decoding in _decode_ahead(rows):
        report.read += 1
        try:
            sample, conversion = decoding.result()
        except PictureError as error:
            report.skip(str(error), row.key)
            continue
        if conversion:
            report.converted.setdefault(conversion, []).append(row.key)
        yield sample


def _decode_ahead(rows: Iterable[Row]) -> Iterator[tuple[Row, Future[tuple[Sample, str]]]]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[Row, Future[tuple[Sample, str]]]] = deque()
        for row in rows:
            waiting.append((row, pool.submit(_decode, row)))
            if len(waiting) == ROWS_AHEAD:
                yield waiting.popleft()
        yield from waiting


def _decode(row: Row) -> tuple[Sample, str]:
    if row.file is None:
        raise PictureError(row.problem)
    caption = " ".join((row.caption or "").split())
    if not caption:
        raise PictureError("no caption")
    file = row.read()
    if file is None:
        raise PictureError("missing file")
    image, conversion = decode_picture(file)
    return Sample(key=row.key, caption=caption, image=image, file=file), conversion
