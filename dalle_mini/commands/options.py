"""What the commands share: options that several have, and the folder that a command writes to."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="A preset, a folder or a hub id.")]


def number(text: str) -> int | float | str:
    """The number that `text` writes, or `text`: SamplingParams says what is wrong with it, in one line."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def setting(description: str) -> Any:
    return typer.Option(parser=number, metavar="NUMBER", help=description, show_default=False)


def make_folder(out: Path, name: str = "out") -> None:
    """Create it, or raise ValueError that names the option if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"{name} must be a folder that can be written, got {str(out)!r}") from error
