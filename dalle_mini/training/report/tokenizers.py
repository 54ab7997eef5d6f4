"""Tokenizers side by side: what VQGANs and dVAEs keep of the same pictures, and what that takes.

Contract: `compare` measures with the functions of quality.py, each tokenizer on the squares that it reads. Seconds are
of one picture, without the first call, which compiles; memory is that of the parameters and of what XLA needs beside.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

import vqgan
from dalle_mini.reconstruction import reconstruct, sheet
from dalle_mini.training.report.model_card import markdown_table
from dalle_mini.training.report.quality import codebook_use, psnr, ssim
from vqgan import Codec

SHOWN = 6  # pictures on the sheet
TIMED = 16  # pictures


def compare(
    codecs: Mapping[str, Codec], pictures: Callable[[int], UInt8[np.ndarray, "M H W 3"]]
) -> tuple[list[dict[str, Any]], Image.Image]:
    """A row of facts for each tokenizer, by its name, and a sheet of the first pictures. pictures: at a resolution."""
    rows = [{"name": name} | _facts(codec, pictures(codec.resolution)) for name, codec in codecs.items()]
    finest = max(codec.resolution for codec in codecs.values())
    shown = [Image.fromarray(pixels) for pixels in pictures(finest)[:SHOWN]]
    found = [[reconstruct(codec, picture) for codec in codecs.values()] for picture in shown]
    return rows, sheet(found, [_png_bytes(picture) for picture in shown])


def _facts(codec: Codec, truth: np.ndarray) -> dict[str, Any]:
    codes = codec.encode(truth)
    rebuilt = codec.decode(codes)
    use = codebook_use(np.bincount(codes.ravel(), minlength=codec.codebook_size))
    params = sum(leaf.size for leaf in jax.tree.leaves(codec.params))
    return {
        "tokenizer": codec.name,
        "resolution": codec.resolution,
        "codes": codes.shape[1],
        "codebook_size": codec.codebook_size,
        "parameters": params,
        "bits": round(codec.bits),
        "pictures": len(truth),
        "psnr_decibels": round(float(psnr(truth, rebuilt).mean()), 2),
        "ssim": round(float(ssim(truth, rebuilt).mean()), 4),
        "codes_used": use["used"],
        "perplexity": round(use["perplexity"], 1),
        "seconds_encode": _seconds(codec.encode, truth[:TIMED]),
        "seconds_decode": _seconds(codec.decode, codes[:TIMED]),
        "mib": round((4 * params + _scratch(codec)) / 2**20, 1),
    }


def _seconds(work: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> float:
    """For one of the rows; they went through it once already."""
    begun = time.perf_counter()
    work(rows)
    return float(f"{(time.perf_counter() - begun) / len(rows):.3g}")


def _scratch(codec: Codec) -> int:
    """Bytes beside the parameters, in the larger of the two programs."""
    pixels = jax.ShapeDtypeStruct((vqgan.BATCH, codec.resolution, codec.resolution, 3), jnp.uint8)
    codes = jax.ShapeDtypeStruct((vqgan.BATCH, codec.side**2), jnp.int32)
    programs = ((vqgan._encode, pixels), (vqgan._decode, codes))
    compiled = [run.lower(codec.params, rows, 1, config=codec.config).compile() for run, rows in programs]
    found = [program.memory_analysis() for program in compiled]
    return max(memory.temp_size_in_bytes for memory in found if memory)


def _png_bytes(picture: Image.Image) -> int:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return len(file.getvalue())


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown."""
    head = ("", "parameters", "bits a picture", "PSNR", "SSIM", "codes used", "perplexity")
    lines = [
        (
            f"{row['name']} ({row['tokenizer']})",
            f"{row['parameters']:,}",
            f"{row['bits']:,} ({row['codes']} codes of {row['codebook_size']:,})",
            f"{row['psnr_decibels']:.2f} dB",
            f"{row['ssim']:.3f}",
            f"{row['codes_used']:,}",
            f"{row['perplexity']:g}",
            f"{1000 * row['seconds_encode']:.3g} ms",
            f"{1000 * row['seconds_decode']:.3g} ms",
            f"{row['mib']:g} MiB",
        )
        for row in rows
    ]
    return markdown_table((*head, "encode", "decode", "memory"), lines)
