"""`serve`, `bench` and `crowd`: the page, how fast this machine draws, and a load test of a server."""

import runpy
import subprocess
import sys
from typing import Annotated

import typer

from dalle_mini.commands.options import Model
from dalle_mini.environment import shipped


def serve(context: typer.Context) -> None:
    """Serve the page: `python app.py` with the same options."""
    page = str(shipped("app.py"))
    sys.argv = [page, *context.args]
    runpy.run_path(page, run_name="__main__")


def bench(model: Model = "emoji") -> None:
    """Measure the start, the first gallery, later ones, a crowd and the memory on this machine."""
    from dalle_mini.bench import measure

    try:
        typer.echo(measure(model))
    except subprocess.CalledProcessError as error:  # it has said why itself
        raise typer.Exit(2) from error


def crowd(
    clients: Annotated[int, typer.Option(help="Visitors at once.")] = 64,
    minutes: Annotated[float, typer.Option(help="How long they come.")] = 5,
    cancelled: Annotated[float, typer.Option(help="Share of the requests that are stopped at a random moment.")] = 0.2,
    dropped: Annotated[float, typer.Option(help="Share of the requests whose connection is closed.")] = 0.05,
    model: Model = "emoji",
) -> None:
    """Start a server of its own on this machine, send it a crowd and check every answer; exit code 1 on a fault."""
    from dalle_mini.serving import crowd as load_test

    report = load_test.crowd(clients=clients, seconds=60 * minutes, cancelled=cancelled, dropped=dropped, model=model)
    typer.echo(report.table())
    raise typer.Exit(bool(report.faults))
