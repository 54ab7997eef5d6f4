"""`convert`: a network as others published it to a folder as ours are."""

from pathlib import Path
from typing import Annotated

import typer

from dalle_mini.commands.options import make_folder


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="With encoder.pkl and decoder.pkl.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for config.json and model.safetensors.")] = Path("dvae"),
) -> None:
    """Write OpenAI's dVAE as safetensors, for --vqgan and for the vqgan/ of a model. Nothing in the pickles is run."""
    make_folder(out)
    import vqgan
    from vqgan.checkpoint import read_openai

    config, params = read_openai(source)
    vqgan.save(out, config, params, dtype=None)
    for part, digest in {"encoder": config.encoder_sha256, "decoder": config.decoder_sha256}.items():
        typer.echo(f"{source / part}.pkl SHA-256 {digest}")
    typer.echo(f"{out}: {config.vocab_size} codes, {config.side} x {config.side} for {config.resolution} pixels")
