"""Pictures that people bring: from a file or from a message to the square of pixels that a tokenizer encodes.

Contract: what cannot be read is a ValueError in one sentence. How a format is decoded, and that none of them starts
another program, is training/data/pictures.py; of a stranger's message fewer formats are opened, smaller, and one at a
time, so that the memory for all of them is that of one.
"""

import base64
import binascii
import io
import re
import threading
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dalle_mini.training.data.pictures import LARGEST, SMALLEST_SIDE, PictureError, decode_picture, to_rgb

STRANGERS_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
STRANGERS_LARGEST = 2**24  # pixels: 50 MB as RGB, out of a body of 1 MiB
_one_at_a_time = threading.Lock()


def from_file(path: Path, *, setting: str = "picture") -> Image.Image:
    """Upright and in RGB, on white where it is transparent. `setting` is what an error is about."""
    try:
        file = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"{setting} must be an image that can be read, got {str(path)!r} ({reason})") from error
    try:
        return decode_picture(file)[0]
    except PictureError as error:
        raise ValueError(_rule(setting, "an image", LARGEST, str(path), error)) from None


def from_base64(text: str, side: int, *, setting: str = "picture") -> Image.Image:
    """As `from_file`, out of a message: a data URL, or its base64 alone; its centred square, `side` pixels wide."""
    if not isinstance(text, str):  # Gradio checks no types
        raise ValueError(f"{setting} must be a data URL or base64, got {type(text).__name__}")
    try:
        file = base64.b64decode(re.sub(r"^data:[\w/+.-]*;base64,", "", text.strip()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{setting} must be a data URL or base64, got {text[:40]!r}") from None
    try:
        with _one_at_a_time:
            picture = decode_picture(file, formats=STRANGERS_FORMATS, largest=STRANGERS_LARGEST)[0]
            return Image.fromarray(square(picture, side))
    except PictureError as error:
        kinds = f"a {', '.join(STRANGERS_FORMATS[:-1])} or {STRANGERS_FORMATS[-1]}"
        raise ValueError(_rule(setting, kinds, STRANGERS_LARGEST, f"{len(file)} bytes", error)) from None


def in_rgb(picture: Image.Image, *, setting: str = "picture") -> Image.Image:
    """As `from_file`, of what Pillow has open already."""
    if not isinstance(picture, Image.Image):
        raise ValueError(f"{setting} must be a PIL image, got {type(picture).__name__}")
    try:
        return to_rgb(ImageOps.exif_transpose(picture), picture.info.get("icc_profile"))[0]
    except PictureError as error:
        raise ValueError(f"{setting} must have 8 or 16 bits a value, got mode {picture.mode} ({error})") from None
    except (OSError, SyntaxError) as error:  # of a file that Pillow has opened and not read
        raise ValueError(f"{setting} must be an image that can be read, got {picture!r} ({error})") from None


def _rule(setting: str, kinds: str, largest: int, got: str, error: PictureError) -> str:
    limits = f"{SMALLEST_SIDE} pixels a side or more and at most {largest // 10**6} million in all"
    return f"{setting} must be {kinds} that can be read, of {limits}, got {got!r} ({error})"


def square(picture: Image.Image, side: int) -> UInt8[np.ndarray, "S S 3"]:
    """Its centred square, as training, `encode` and `reconstruct` see it; enlarged where it is smaller."""
    return np.asarray(ImageOps.fit(picture, (side, side)))


def data_url(picture: Image.Image, kind: str = "JPEG") -> str:
    """A picture inside a message: a JPEG is small, a WEBP smaller and slower to make, a PNG exact."""
    data = io.BytesIO()
    picture.save(data, format=kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
