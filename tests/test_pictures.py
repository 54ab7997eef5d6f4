"""Pictures of every format and with every fault around the pixels become RGB in sRGB, or give a reason in words."""

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from source_files import encoded, photo, read

from dalle_mini.__main__ import main
from dalle_mini.training.data import pictures
from dalle_mini.training.data.pictures import FORMATS, PICTURES, PictureError, decode_picture
from dalle_mini.training.data.rows import Row

RED = Image.new("RGB", (64, 48), (200, 60, 60))
BROKEN_EXIF = b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03"


def pixel(file: bytes) -> tuple[int, ...]:
    return decode_picture(file)[0].getpixel((5, 5))  # type: ignore[return-value]


def close(colour: tuple[int, ...], expected: tuple[int, ...], by: int = 4) -> bool:
    return max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= by


@pytest.mark.parametrize(
    "kind",
    ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO", "PCX", "QOI", "SGI", "DIB", "TGA"],
)
def test_a_picture_of_every_safe_format_is_read(kind: str):
    assert close(pixel(encoded(RED, kind)), (200, 60, 60))


def test_formats_that_start_programs_or_fetch_files_are_no_pictures():
    assert not {"EPS", "WMF", "PDF", "FPX", "GRIB", "HDF5", "BUFR", "MPEG"} & set(FORMATS)
    with pytest.raises(PictureError, match="not a picture"):
        decode_picture(encoded(RED, "EPS"))
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO", "TGA")}
    assert known - {".bw", ".rgb", ".rgba", ".pnm", ".pfm", ".icb", ".vda", ".vst"} <= PICTURES


# Around the pixels


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_leaves_the_pixels_as_they_are(kind: str):
    settings: dict[str, Any] = {"dpi": (72, 72)} if kind == "JPEG" else {}
    image, conversions = decode_picture(encoded(RED, kind, exif=BROKEN_EXIF, **settings))
    assert (image.size, conversions) == ((64, 48), ())
    assert close(image.getpixel((5, 5)), (200, 60, 60))


def test_every_orientation_stands_upright():
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.new("RGB", (64, 48), "white")
        image.paste((0, 0, 0), (0, 0, 32, 24))  # the corner that is upper left on the sensor
        turned = decode_picture(encoded(image, "PNG", exif=exif))[0]
        corners = [
            turned.getpixel((x, y))
            for x, y in ((2, 2), (-3, 2), (2, -3), (-3, -3))
            for x, y in [(x % turned.width, y % turned.height)]
        ]
        expected = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
        assert corners.index((0, 0, 0)) == expected


def test_texts_and_profiles_larger_than_pillows_limits_do_not_matter():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "x" * 2_000_000, zip=True)
    assert pixel(encoded(RED, "PNG", pnginfo=texts)) == (200, 60, 60)
    assert pixel(encoded(RED, "PNG", icc_profile=bytes(3_000_000))) == (200, 60, 60)


# Colours


def profile(matrix: list[list[float]], gamma: float = 2.2) -> bytes:
    """An ICC profile of three primaries (columns of XYZ under D50) and one gamma."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: list[float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"Wide"
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" + bytes(78)
    text += bytes(-len(text) % 4)
    tags = {b"desc": text, b"wtpt": xyz([0.9642, 1, 0.8249]), b"cprt": b"text\0\0\0\0CC0\0"}
    tags |= {bytes([c]) + b"XYZ": xyz([row[n] for row in matrix]) for n, c in enumerate(b"rgb")}
    tags |= {bytes([c]) + b"TRC": curve for c in b"rgb"}
    table, content = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s",
        128 + len(table) + len(content),
        b"lcms",
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        bytes(12),
        b"acsp",
    )
    head += bytes(28) + b"".join(map(fixed, [0.9642, 1, 0.8249]))
    return head.ljust(128, b"\0") + table + content


DISPLAY_P3 = profile([[0.5151, 0.2919, 0.1572], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_wide_colours_become_srgb_and_are_counted(kind: str):
    settings = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    file = encoded(RED, kind, icc_profile=DISPLAY_P3, **settings)
    samples, report = read([Row("a", "x", file)])
    assert close(samples[0].image.getpixel((5, 5)), (219, 37, 49), by=6)
    assert report.converted == {"colour profile": ["a"]}


def test_transparency_palettes_and_grey_keep_their_meaning_under_a_profile():
    clear = Image.new("RGBA", (64, 48), (200, 60, 60, 0))
    assert pixel(encoded(clear, "PNG", icc_profile=DISPLAY_P3)) == (255, 255, 255)
    assert close(pixel(encoded(RED.quantize(4), "PNG", icc_profile=DISPLAY_P3)), (219, 37, 49), by=6)
    assert pixel(encoded(RED.convert("L"), "PNG", icc_profile=DISPLAY_P3)) == pixel(encoded(RED.convert("L"), "PNG"))


def test_srgb_and_unreadable_profiles_change_no_pixel():
    plain = decode_picture(encoded(photo(0), "PNG"))[0]
    for icc in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"no profile", DISPLAY_P3[:300]):
        image, conversions = decode_picture(encoded(photo(0), "PNG", icc_profile=icc))
        assert conversions == ()
        np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))


def test_cmyk_with_a_profile_for_other_pixels_is_converted_plainly():
    image = Image.new("CMYK", (64, 48), (0, 255, 255, 0))
    red, green, blue = pixel(encoded(image, "JPEG", quality=95, icc_profile=DISPLAY_P3))
    assert red > 245
    assert max(green, blue) < 12


# Sizes and pages


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGEST", 3_000_000)
    monkeypatch.setattr(pictures, "DRAFT_SIDE", 512)


@pytest.mark.usefixtures("small_limit")
def test_a_jpeg_of_too_many_pixels_is_decoded_small_and_counted():
    samples, report = read([Row("a", "x", encoded(Image.new("RGB", (2400, 1800), "red"), "JPEG"))])
    assert samples[0].image.size == (800, 600) or min(samples[0].image.size) >= 512
    assert samples[0].image.width < 2400
    assert report.converted == {"decoded small": ["a"]}


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize(("kind", "settings"), [("PNG", {}), ("JPEG", {"progressive": True})])
def test_what_cannot_be_decoded_small_is_refused_with_the_number(kind: str, settings: dict[str, Any]):
    with pytest.raises(PictureError, match="huge: more than 3 million pixels"):
        decode_picture(encoded(Image.new("RGB", (2400, 1800)), kind, **settings))


@pytest.mark.slow
def test_two_hundred_megapixels_take_little_memory(tmp_path: Path):
    import subprocess

    Image.new("L", (16_384, 12_288), 90).save(tmp_path / "200.jpg")
    script = "import resource, sys; from dalle_mini.training.data.pictures import decode_picture as d\n"
    script += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; d(open(sys.argv[1], 'rb').read())\n"
    script += "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "200.jpg")], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 200  # MiB


def test_the_first_of_several_pages_is_taken_and_counted():
    file = encoded(RED, "TIFF", save_all=True, append_images=[photo(0)])
    samples, report = read([Row("a", "x", file)])
    assert close(samples[0].image.getpixel((5, 5)), (200, 60, 60))
    assert report.converted == {"first page": ["a"]}


# HEIC


def test_heic_is_read_where_its_library_is_installed():
    import io

    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(RED).save(file)
    assert close(pixel(file.getvalue()), (200, 60, 60), by=8)


def test_heic_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pictures._read_heic.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.png").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(4000))
    (tmp_path / "a.txt").write_text("a cat on a mat")
    assert main(["reconstruct", str(tmp_path / "a.png")]) == 2
    assert "HEIC needs pillow-heif: pip install pillow-heif" in capsys.readouterr().err
    assert main(["filter", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "0 of 1 kept, 1 HEIC needs pillow-heif: pip install pillow-heif" in capsys.readouterr().err
    pictures._read_heic.cache_clear()
