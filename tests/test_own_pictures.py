"""A picture of one's own is read from a file or a message, or refused in one sentence; of strangers less is opened."""

import base64
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_files import encoded, photo

from dalle_mini import pictures


def flat_png(width: int, height: int) -> bytes:
    """One bit a pixel: 200 million of them are 200 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SIDE = 32  # of a message's square


def in_a_file(file: bytes, folder: Path) -> Image.Image:
    (folder / "picture").write_bytes(file)
    return pictures.from_file(folder / "picture")


def in_a_message(file: bytes, _: Path) -> Image.Image:
    return pictures.from_base64(base64.b64encode(file).decode(), SIDE)


both = pytest.mark.parametrize("read", [in_a_file, in_a_message])
Reader = Callable[[bytes, Path], Image.Image]


@both
@pytest.mark.parametrize("kind", pictures.STRANGERS_FORMATS)
def test_a_picture_is_read(read: Reader, kind: str, tmp_path: Path):
    picture = read(encoded(0, kind), tmp_path)
    assert (picture.mode, picture.size) == ("RGB", (96, 72) if read is in_a_file else (SIDE, SIDE))


@both
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "not a picture"),
        (b"<html>", "not a picture"),
        (encoded(Image.new("RGB", (64, 64)), "EPS"), "not a picture"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "tiny"),
        (flat_png(20_000, 10_000), "huge: more than"),
        (encoded(0, "PNG")[:400], "truncated"),
    ],
    ids=["nothing", "a page", "EPS", "1 pixel", "200 megapixels", "a part"],
)
def test_what_cannot_be_read_is_one_sentence(read: Reader, file: bytes, reason: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^picture must be .* 8 pixels a side .* million in all, got ") as error:
        read(file, tmp_path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["TIFF", "PSD", "JPEG2000", "ICNS"])
def test_formats_with_many_features_are_not_opened_for_strangers(kind: str):
    file = encoded(photo(0, (64, 64)), kind) if kind != "PSD" else b"8BPS\0\1" + bytes(100)
    with pytest.raises(ValueError, match=r"^picture must be a JPEG, PNG, WEBP, GIF or BMP .*\(not a picture\)$"):
        pictures.from_base64(base64.b64encode(file).decode(), SIDE)


def test_strangers_may_bring_fewer_pixels(tmp_path: Path):
    file = flat_png(5000, 4000)
    assert in_a_file(file, tmp_path).size == (5000, 4000)
    with pytest.raises(ValueError, match="16 million"):
        in_a_message(file, tmp_path)


@pytest.mark.parametrize("text", ["https://example.org/a.png", "data:image/png;base64,#", "/etc/passwd", "é", None, 3])
def test_what_is_no_base64_is_one_sentence(text: str):
    with pytest.raises(ValueError, match=r"^picture must be a data URL or base64, got "):
        pictures.from_base64(text, SIDE)


def test_a_missing_file_is_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^picture must be an image that can be read, got '.*' \(No such file"):
        pictures.from_file(tmp_path / "none.png")


def test_a_data_url_is_the_picture():
    picture = photo(1, (SIDE, SIDE))
    np.testing.assert_array_equal(pictures.from_base64(pictures.data_url(picture, "PNG"), SIDE), picture)
    assert pictures.data_url(picture).startswith("data:image/jpeg;base64,")


def test_a_square_is_the_middle_of_the_picture():
    picture = Image.new("RGB", (30, 10), "red")
    picture.paste("blue", (10, 0, 20, 10))
    assert (pictures.square(picture, 10) == (0, 0, 255)).all()
    assert pictures.square(picture, 64).shape == (64, 64, 3)
