"""`filter` and `encode`: from pictures with captions to what a text-to-code model is trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dalle_mini.commands.options import make_folder

if TYPE_CHECKING:
    from dalle_mini.training.data.skipped import Report

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of pictures and captions, a table, tar shards or a Hugging Face dataset.",
        show_default=False,
    ),
]


def filter_source(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for filtered.parquet and report.json.")] = Path("runs/filtered"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A threshold, as often as needed.")
    ] = None,
) -> None:
    """Keep the samples that are worth training on, e.g. --set min_side=256 --set language=de."""
    from dalle_mini.training.data.filters import REPORT, FilterConfig, filter_samples

    config = FilterConfig.parse(settings or [])
    make_folder(out)
    report = filter_samples(source, out, config)
    if not report.kept:
        raise ValueError(f"source must hold something to keep, got {report.explained()}\n(see {out / REPORT})")
    _tell(source, report, out)


def encode(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for shards, statistics and a sheet.")] = Path("runs/encoded"),
    vqgan: Annotated[str, typer.Option(help="A preset, a folder or a hub id of a VQGAN.")] = "emoji",
) -> None:
    """Write captions and the codes of their pictures to shards; a stopped run goes on where it was."""
    from dalle_mini import device
    from dalle_mini.training.data import encode as encoding
    from dalle_mini.training.data.shards import vqgan_location
    from vqgan import load

    make_folder(out)
    device.set_up()
    report = encoding.encode(source, load(vqgan_location(vqgan)), out=out)
    _tell(source, report, out)


def _tell(source: str, report: "Report", out: Path) -> None:
    typer.echo(f"{source}: {report.summary()}; see {out}")
    for line in report.advice():
        typer.echo(line)
