"""`reconstruct`: what the codes of one or more tokenizers keep of pictures."""

from pathlib import Path
from typing import Annotated

import typer

from dalle_mini.commands.options import make_folder


def reconstruct(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE", show_default=False)],
    out: Annotated[Path, typer.Option(help="The PNG to write, or a folder for it.")] = Path("reconstruction.png"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A preset, a folder or a hub id, of a model or of a VQGAN or dVAE alone; several to compare."
        ),
    ] = None,
) -> None:
    """Show what the codes keep of pictures and what they lose, as a PNG and, beside it, as JSON.

    A row for each picture: its square, and of each model its reconstruction, the difference, and the codes as colours.
    """
    from dalle_mini.pictures import from_file

    originals = [from_file(path) for path in pictures]
    if out.is_dir():
        out = out / "reconstruction.png"
    make_folder(out.parent)

    from dalle_mini import device
    from dalle_mini.reconstruction import reconstruct, sheet
    from dalle_mini.training.data.shards import vqgan_location
    from vqgan import load
    from vqgan.files import write_json

    device.set_up()
    names = model or ["emoji"]
    codecs = [load(vqgan_location(name)) for name in names]
    found = [[reconstruct(codec, original) for codec in codecs] for original in originals]
    sizes = [path.stat().st_size for path in pictures]
    sheet(found, sizes).save(out, format="PNG")
    facts = [
        {
            "picture": str(path),
            "file_bits": 8 * size,
            "kept": [{"model": name} | each.facts() for name, each in zip(names, row, strict=True)],
        }
        for path, size, row in zip(pictures, sizes, found, strict=True)
    ]
    write_json(out.with_suffix(".json"), {"pictures": facts})
    for path, size, row in zip(pictures, sizes, found, strict=True):
        for name, each in zip(names, row, strict=True):
            kept = f"{each.bits:,.0f} bits of {8 * size:,}, PSNR {each.psnr:.1f} dB, SSIM {each.ssim:.3f}"
            typer.echo(f"{path}: {name} ({each.tokenizer}) keeps {len(each.codes)} codes, {kept}, shown in {out}")
