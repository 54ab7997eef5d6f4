"""An encoded picture, whatever its format, as RGB.

Contract: only formats are opened whose readers are Pillow's own code and start no other program. Whatever surrounds the
pixels (Exif, texts, a profile) may be broken without harm. Colours become sRGB, pictures upright, transparency white.
Memory stays bounded: what has more than LARGEST pixels is decoded small, if its format can be, or refused.
"""

import io
import struct
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

from dalle_mini.training.optional_packages import optional

FORMATS: tuple[str, ...] = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "AVIF",
    "JPEG2000",
    "PPM",
    "ICO",
    "CUR",
    "PSD",
    "PCX",
    "QOI",
)
FORMATS += ("SGI", "DIB", "DDS", "SUN", "ICNS", "XBM")
PICTURES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".tif",
        ".tiff",
        ".bmp",
        ".avif",
        ".avifs",
        ".jp2",
        ".j2k",
        ".jpx",
        ".j2c",
        ".jpc",
        ".jpf",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".ico",
        ".cur",
        ".psd",
        ".pcx",
        ".qoi",
        ".sgi",
        ".dib",
        ".dds",
        ".ras",
        ".icns",
        ".xbm",
        ".mpo",
        ".heic",
        ".heif",
        ".hif",
        ".tga",
    ]
)
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")  # where several pictures are one that moves; elsewhere they are pages
SMALLEST_SIDE = 8  # pixels; smaller ones are tracking dots and placeholders
LARGEST = 2**30 // 4 // 3  # pixels, 89 million: Pillow's limit, 256 MB
DRAFT_SIDE = 2048  # pixels; a JPEG larger than that is decoded to no less than this, and less than twice as much
# Exif's orientations.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(Exception):
    """A picture is of no use; the message is the reason, in a few words."""


def decode_picture(
    file: bytes, *, formats: tuple[str, ...] = FORMATS, largest: int | None = None
) -> tuple[Image.Image, tuple[str, ...]]:
    """An encoded picture as RGB, upright and on white, and what had to be converted for that.

    formats, largest: fewer of them, and fewer pixels than LARGEST, for files of strangers. Raises PictureError with the
    reason.
    """
    largest = largest or LARGEST
    try:
        return _decode(file, formats, largest)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _huge(largest) from None
    except UnidentifiedImageError:
        raise PictureError("not a picture") from None
    except Exception as error:  # damage shows itself in Pillow's decoders as errors of many types
        if "PngImagePlugin.MAX_TEXT" in str(error) and (pixels := _without_texts(file)) != file:
            return decode_picture(pixels, formats=formats, largest=largest)
        raise PictureError("truncated" if "truncated" in str(error) else "broken") from None


def _huge(largest: int) -> PictureError:
    return PictureError(f"huge: more than {largest // 10**6} million pixels")


def _decode(file: bytes, formats: tuple[str, ...], largest: int) -> tuple[Image.Image, tuple[str, ...]]:
    with _open(file, formats) as image:
        if min(image.size) < SMALLEST_SIDE:
            raise PictureError("tiny")
        done = ["decoded small"] if _drafted(image, largest) else []
        if image.width * image.height > largest:
            raise _huge(largest)
        if getattr(image, "is_animated", False):
            # A phone's JPEG often has a second picture, of depth or a preview, which makes it an "animated" MPO.
            if image.format in ANIMATIONS:
                raise PictureError("animated")
            done += ["first page"] if image.format == "TIFF" else []
        deep = any(
            ";16" in str(tile.args) for tile in getattr(image, "tile", [])
        )  # its raw mode: in colour, the mode says 8 bits
        profile = image.info.get("icc_profile")
        image.load()
        turn = _turn(image)
        rgb, conversions = to_rgb(image if turn is None else image.transpose(turn), profile)
        return rgb, (*done, *(conversions or (["16 bit"] if deep else [])))


def _open(file: bytes, formats: tuple[str, ...]) -> Image.Image:
    if file.startswith(b"\xff\xd8\xff"):
        # Not by Image.open, which refuses a size before anybody could ask for a smaller one.
        try:
            return JpegImagePlugin.jpeg_factory(io.BytesIO(file))
        except (SyntaxError, IndexError, TypeError, struct.error):
            raise UnidentifiedImageError from None
    if formats == FORMATS:
        if file[4:8] == b"ftyp" and file[8:12] in HEIC and b"avif" not in file[12:64]:
            _read_heic()
            formats = ("HEIF",)
        elif file.endswith(b"TRUEVISION-XFILE.\0"):  # without this mark, anything could be a TGA
            formats = ("TGA",)
    return Image.open(io.BytesIO(file), formats=formats)


@cache
def _read_heic() -> None:
    try:
        optional("pillow_heif", "").register_heif_opener()
    except ValueError:
        raise PictureError("HEIC needs pillow-heif: pip install pillow-heif") from None


def _drafted(image: Image.Image, largest: int) -> bool:
    """Whether a JPEG was too large and will be decoded to a fraction of its size."""
    if image.width * image.height <= largest or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return False
    if image.info.get("progressive"):  # all of its coefficients would be in memory at once
        return False
    return image.draft(None, (DRAFT_SIDE, DRAFT_SIDE)) is not None  # by up to 8


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(0x0112))  # type: ignore[arg-type]
    except Exception:  # broken Exif is no reason to lose the pixels
        return None


def to_rgb(image: Image.Image, profile: Any) -> tuple[Image.Image, list[str]]:
    """On white, in sRGB, and what had to be converted. Raises PictureError."""
    if image.mode in ("I", "F"):
        raise PictureError("neither 8 nor 16 bit")  # no telling which value is white
    if image.mode.startswith("I;16"):  # convert() would clip it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"), ["16 bit"]
    done = []
    clear = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        clear, done = image.getchannel("A"), ["transparent"]
        image = image.convert("RGB")
    if image.mode == "CMYK":
        done.append("CMYK")
    if profile and (in_srgb := _to_srgb(image.convert("RGB") if image.mode == "P" else image, profile)):
        image = in_srgb
        done.append("colour profile")
    image = image.convert("RGB")
    if clear is not None:
        image.putalpha(clear)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image, done


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image | None:
    """None if the profile is sRGB's, unreadable or for pixels of another kind."""
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(given).lower():
            return None
        return ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError, UnicodeError):
        return None


def _without_texts(png: bytes) -> bytes:
    """A PNG without its texts and its profile."""
    kept, place = [png[:8]], 8
    while place + 8 <= len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4])
        if png[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[place:end])
        place = end
    return b"".join(kept)
