"""An encoded picture, whatever its format, as RGB."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SMALLEST_SIDE = 8  # pixels; smaller ones are tracking dots and placeholders


class PictureError(Exception):
    """A picture is of no use; the message is the reason, in one or two words."""


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
