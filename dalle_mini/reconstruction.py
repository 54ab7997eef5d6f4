"""What the codes keep of a picture and what they lose: the picture, encoded and decoded again.

Contract: `reconstruct` is a function of the tokenizer and the picture. The figures are those of evaluate
(training/report/quality.py), on the centred square that the tokenizer reads.
"""

import colorsys
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageChops, ImageDraw, ImageFont

from dalle_mini.pictures import in_rgb, square
from dalle_mini.training.report.quality import psnr, ssim
from vqgan import Codec

TILE, GAP, TEXT = 256, 8, 40  # pixels of a sheet: a picture, between two, the words below
INK = (34, 34, 34)
SHOWN_DIFFERENCE = 4  # times: what is lost is hardly seen otherwise


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """Pictures are as wide as the tokenizer reads them."""

    original: Image.Image
    picture: Image.Image
    codes: Int[np.ndarray, " n"]  # row by row, in [0, codebook_size)
    codebook_size: int
    bits: float  # that the codes hold at most; 24 a pixel are the original's
    psnr: float  # decibels; infinite if equal
    ssim: float
    tokenizer: str  # VQGAN or dVAE

    def facts(self) -> dict[str, Any]:
        """For JSON, which has no infinite number: the PSNR of equal pictures is null."""
        return {
            "tokenizer": self.tokenizer,
            "resolution": self.original.width,
            "codes": self.codes.tolist(),
            "codebook_size": self.codebook_size,
            "bits": round(self.bits),
            "psnr": round(self.psnr, 3) if math.isfinite(self.psnr) else None,
            "ssim": round(self.ssim, 4),
        }

    def difference(self) -> Image.Image:
        """What is lost or made up, black where nothing is."""
        return ImageChops.difference(self.original, self.picture).point(lambda value: SHOWN_DIFFERENCE * value)

    def grid(self) -> Image.Image:
        """The codes as colours, a pixel each: equal codes are alike, and neighbours in the codebook are not."""
        colours = [
            colorsys.hsv_to_rgb(code * 0.618034 % 1, 0.4 + 0.6 * (code * 0.367879 % 1), 0.9) for code in self.codes
        ]
        side = math.isqrt(len(self.codes))
        return Image.fromarray((np.array(colours).reshape(side, side, 3) * 255).astype(np.uint8))


def reconstruct(codec: Codec, picture: Image.Image) -> Reconstruction:
    """Of the picture's centred square. Raises ValueError for what is none."""
    pixels = square(in_rgb(picture), codec.resolution)[None]
    codes = codec.encode(pixels)
    rebuilt = codec.decode(codes)
    return Reconstruction(
        original=Image.fromarray(pixels[0]),
        picture=Image.fromarray(rebuilt[0]),
        codes=codes[0],
        codebook_size=codec.codebook_size,
        bits=codec.bits,
        psnr=float(psnr(pixels, rebuilt)[0]),
        ssim=float(ssim(pixels, rebuilt)[0]),
        tokenizer=codec.name,
    )


def sheet(pictures: Sequence[Sequence[Reconstruction]], sizes: Sequence[int]) -> Image.Image:
    """A row for each picture: the original, and of every tokenizer its picture, the difference and the codes.

    sizes: of the files, in bytes.
    """
    columns = 1 + 3 * len(pictures[0])
    image = Image.new("RGB", (columns * (TILE + GAP) - GAP, len(pictures) * (TILE + TEXT) - GAP), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for row, (found, size) in enumerate(zip(pictures, sizes, strict=True)):
        finest = max(found, key=lambda each: each.original.width).original
        tiles = [(finest, f"the picture\n{8 * size:,} bits in its file")]
        for each in found:
            side = math.isqrt(len(each.codes))
            about = f"{each.tokenizer}, {each.bits:,.0f} bits\nPSNR {each.psnr:.1f} dB, SSIM {each.ssim:.3f}"
            tiles += [
                (each.picture, about),
                (each.difference(), f"the difference,\n{SHOWN_DIFFERENCE} times as strong"),
            ]
            tiles += [(each.grid(), f"{side} x {side} codes of {each.codebook_size:,},\neach a colour")]
        for column, (tile, words) in enumerate(tiles):
            left, top = column * (TILE + GAP), row * (TILE + TEXT)
            filter = Image.Resampling.NEAREST if tile.width <= TILE else Image.Resampling.LANCZOS
            image.paste(tile.resize((TILE, TILE), filter), (left, top))
            draw.multiline_text((left, top + TILE + 2), words, INK, font, spacing=1)
    return image
