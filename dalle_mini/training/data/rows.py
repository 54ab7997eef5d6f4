"""Samples: the rows of a source with their pictures decoded, and a report of what was of no use.

Contract: nothing that a row holds ends a run. A broken, truncated, tiny, huge or animated picture is skipped; CMYK,
16 bits and transparency are converted; the report lists the key under the reason either way.
"""

import dataclasses
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dalle_mini.training.data.sources import Row

SMALLEST_SIDE = 8  # pixels; smaller ones are tracking dots and placeholders
ROWS_AHEAD = 32  # decoded while the caller works


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    key: str
    caption: str  # not empty, single-spaced
    image: Image.Image  # RGB, upright, on white where it was transparent
    file: bytes  # the picture as it was found


@dataclasses.dataclass(kw_only=True)
class Report:
    """What became of the rows of a source: keys by reason."""

    read: int = 0
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    converted: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def skip(self, reason: str, key: str) -> None:
        self.skipped.setdefault(reason, []).append(key)

    def add(self, other: "Report") -> None:
        self.read += other.read
        for mine, theirs in ((self.skipped, other.skipped), (self.converted, other.converted)):
            for reason, keys in theirs.items():
                mine.setdefault(reason, []).extend(keys)

    @property
    def kept(self) -> int:
        return self.read - sum(map(len, self.skipped.values()))

    def summary(self) -> str:
        """One line for people: the most frequent reason first."""
        reasons = sorted(self.skipped.items(), key=lambda item: -len(item[1]))
        return ", ".join([f"{self.kept} of {self.read} kept", *(f"{len(keys)} {reason}" for reason, keys in reasons)])

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        parts = {"skipped": self.skipped, "converted": self.converted}
        listed = {
            part: {reason: {"count": len(keys), "keys": keys} for reason, keys in sorted(reasons.items())}
            for part, reasons in parts.items()
        }
        return {"read": self.read, "kept": self.kept, **listed}


class PictureError(Exception):
    """A picture is of no use; the message is the reason, in one or two words."""


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


def decode_picture(file: bytes) -> tuple[Image.Image, str]:
    """An encoded picture as RGB, upright and on white, and what had to be converted for that ("" if nothing).

    Raises PictureError with the reason.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            if min(image.size) < SMALLEST_SIDE:
                raise PictureError("tiny")
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                raise PictureError("huge")
            # A phone's JPEG often has a second picture, of depth or a preview, which makes it an "animated" MPO.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise PictureError("animated")
            deep = any(";16" in str(tile.args) for tile in image.tile)  # its raw mode: in colour, the mode says 8 bits
            rgb, conversion = _to_rgb(ImageOps.exif_transpose(image))
            return rgb, conversion or ("16 bit" if deep else "")
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError("huge") from None
    except UnidentifiedImageError:
        raise PictureError("not a picture") from None
    except Exception as error:  # damage shows itself in Pillow's decoders as errors of many types
        raise PictureError("truncated" if "truncated" in str(error) else "broken") from None


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    if image.mode in ("I", "F"):
        raise PictureError("neither 8 nor 16 bit")  # no telling which value is white
    if image.mode.startswith("I;16"):  # convert() would clip it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"), "16 bit"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), "transparent"
    return image.convert("RGB"), "CMYK" if image.mode == "CMYK" else ""


def write_json(path: Path, values: dict[str, Any]) -> None:
    """The file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    # The name of a source may be no UTF-8; what Python then writes, \udcff, is how JSON escapes it.
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)
