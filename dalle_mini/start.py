"""What is given before anything is drawn: codes, of a picture, of a candidate or as they are.

Contract: a `Start` is one of the sampling params: an int for every place of the grid, row by row, `FREE` where the
model draws. It goes into a PNG as JSON (`to_dict`), compressed, with a hash that names it. A `Source` is what somebody
asked to start from: everything about it is checked, and a picture is not encoded yet. Codes are drawn row by row, so
that the model sees those above and to the left, given or drawn, and no others.

A variation gives up a share of the codes, in each candidate others: where it is to draw anew, and what no longer fits
after that. A code fits while it is no less than `HELD` times as likely as it was in its own picture.
"""

import base64
import dataclasses
import hashlib
import math
import numbers
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeGuard

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from dalle_mini.pictures import from_file, in_rgb, square

FREE = -1  # a place that the model draws
MOST_PLACES = 1 << 16  # of a grid: more are not unpacked
HELD = 0.01


@dataclasses.dataclass(frozen=True)
class Start:
    """The codes that are given, one for every place of the grid, FREE where the model draws.

    strength: the share of them that a variation gives up. least: how likely each has to be where its turn comes, or it
    is given up as well, as a logarithm; of a variation alone.
    """

    codes: tuple[int, ...]
    strength: float = 0.0
    least: tuple[float, ...] = ()

    @classmethod
    def of(cls, codes: Int[np.ndarray, " n"], keep: Bool[np.ndarray, " n"]) -> "Start | None":
        """Those of `codes` that are to be kept; None where none is."""
        return cls(tuple(np.where(keep, codes, FREE).tolist())) if keep.any() else None

    @classmethod
    def varied(
        cls, codes: Int[np.ndarray, " n"], likelihoods: Float[np.ndarray, " n"], strength: float
    ) -> "Start | None":
        """Of a picture whose codes have these likelihoods, as logarithms; None where nothing of it is to be left."""
        least = (likelihoods + math.log(HELD)).astype(np.float32)
        return cls(tuple(codes.tolist()), float(strength), tuple(least.tolist())) if strength < 1 else None

    def given(self, seed: int, candidate: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """What a candidate is given, and how likely it has to be."""
        codes = np.array(self.codes, np.int32)
        up = np.random.default_rng((seed, candidate)).random(len(codes)) < self.strength
        least = np.array(self.least, np.float32) if self.least else np.full(len(codes), -np.inf, np.float32)
        return np.where(up, FREE, codes), least

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self._codes() + self._least()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        varied = {"strength": self.strength, "least": _packed(self._least())} if self.least else {}
        return {"codes": _packed(self._codes()), **varied, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Raises ValueError where it is not what `to_dict` gives."""
        try:
            found = cls(tuple(_unpacked(told["codes"], "<i4")))
            if "least" in told:
                found = cls(found.codes, float(told["strength"]), tuple(_unpacked(told["least"], "<f4")[1:]))
            if not (0 <= found.strength <= 1 and len(found.least) in (0, len(found.codes))):
                raise ValueError
            if told["sha256"] != found.sha256:
                raise ValueError
        except (KeyError, TypeError, ValueError, zlib.error):
            raise ValueError(f"start must be codes as a PNG has them, whole, got {str(told)[:100]}") from None
        return found

    def _codes(self) -> bytes:
        return np.array(self.codes, "<i4").tobytes()

    def _least(self) -> bytes:
        return np.array([self.strength, *self.least], "<f4").tobytes() if self.least else b""


class Source(NamedTuple):
    """What to start from, and which places of the grid keep their codes."""

    pixels: UInt8[np.ndarray, "H W 3"] | None
    codes: Int[np.ndarray, " n"] | None  # of one that is encoded already
    keep: Bool[np.ndarray, " n"]
    strength: float | None = None  # where it is said, the start is `Start.varied`


def source(start: Any, keep: Any, strength: Any, *, image_length: int, codebook_size: int, resolution: int) -> Source:
    """`start`: a picture (a path, or of Pillow), a candidate, or codes; `keep`: see `kept_places`.

    A picture is cropped to its middle square. Raises ValueError naming the setting, the rule and the value.
    """
    places = kept_places(keep, math.isqrt(image_length))
    if strength is not None and not (_is_number(strength) and 0 <= strength <= 1):
        raise ValueError(f"strength must be a number from 0 to 1, got {strength!r}")
    if strength is not None and keep is not None:
        raise ValueError(f"keep must be left out where strength is given, got {_short(keep)}")
    if isinstance(start, str | Path):
        start = from_file(Path(start), setting="start")
    if isinstance(start, Image.Image):
        return Source(square(in_rgb(start, setting="start"), resolution), None, places, strength)
    codes = getattr(start, "codes", start)
    return Source(None, _checked_codes(codes, image_length, codebook_size, lowest=0), places, strength)


def check(start: Start, *, image_length: int, codebook_size: int) -> None:
    """Raises ValueError where a model has no such grid or no such codes."""
    _checked_codes(start.codes, image_length, codebook_size, lowest=FREE)


def kept_places(keep: Any, side: int) -> Bool[np.ndarray, " n"]:
    """Of `keep`, the places: a number of rows from above, or a boolean for every place; None is the upper half."""
    if keep is None:
        keep = side // 2
    try:
        places = np.asarray(keep)
    except ValueError:  # rows of different lengths
        places = np.empty(0)
    if places.dtype == bool and places.shape in ((side, side), (side * side,)):
        return places.ravel()
    if places.shape == () and places.dtype.kind in "iuf" and 0 <= places <= side and places == int(places):
        return np.arange(side * side) < int(places) * side
    rule = f"a number of rows from 0 to {side} or {side} x {side} booleans"
    raise ValueError(f"keep must be {rule}, got {_short(keep)}")


def _checked_codes(codes: Any, number: int, size: int, *, lowest: int) -> Int[np.ndarray, " n"]:
    side = math.isqrt(number)
    try:
        found = np.asarray(codes)
    except ValueError:
        found = np.empty(0)
    if found.dtype.kind not in "iu" or found.shape not in ((number,), (side, side)):
        raise ValueError(f"start must be a picture or {number} codes (whole numbers), got {_short(codes)}")
    if not lowest <= found.min() <= found.max() < size:
        raise ValueError(f"start must have codes from 0 to {size - 1}, got {found.min()} to {found.max()}")
    return found.ravel().astype(np.int32)


def _packed(values: bytes) -> str:
    return base64.b64encode(zlib.compress(values, 9)).decode()


def _unpacked(text: str, kind: str) -> list[Any]:
    packed = zlib.decompressobj()
    values = packed.decompress(base64.b64decode(text, validate=True), 4 * MOST_PLACES)
    if not packed.eof:
        raise ValueError
    return np.frombuffer(values, kind).tolist()


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """Large arrays by their shape."""
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {shape}" if shape else repr(value)[:100]
