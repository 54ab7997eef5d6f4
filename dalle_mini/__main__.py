"""The command line: `python -m dalle_mini generate "a cat left of a pizza" --candidates 9 --seed 7 --out out/`.

Contract: a thin layer over the public Python surface. Bad input gives exit code 2 and one line on standard error
that names the setting, the rule and the value. Defaults are the loaded model's own: an option left out stays out.
Nothing heavy is imported before a command runs, so that --help is quick.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import typer
from PIL import Image

from dalle_mini import device, environment
from dalle_mini.commands.compare import compare
from dalle_mini.commands.convert import convert
from dalle_mini.commands.data import encode, filter_source
from dalle_mini.commands.doctor import doctor
from dalle_mini.commands.generate import generate
from dalle_mini.commands.reconstruct import reconstruct
from dalle_mini.commands.report import evaluate, publish
from dalle_mini.commands.serve import bench, crowd, serve
from dalle_mini.commands.train import train

app = typer.Typer(
    help="Text to a ranked gallery.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command()(generate)
app.command()(reconstruct)
app.command("filter")(filter_source)
app.command()(encode)
app.command()(convert)
app.command()(compare)
app.add_typer(train, name="train")
app.command()(evaluate)
app.command()(publish)
app.command()(doctor)
app.command()(bench)
app.command()(crowd)
app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)


def _checkpoint_error() -> type[Exception]:
    from vqgan.files import CheckpointError  # brings JAX along

    return CheckpointError


def _refuse(error: Exception) -> int:
    typer.echo("error: " + " ".join(line.strip() for line in str(error).splitlines()), err=True)
    return 2


def main(arguments: Sequence[str]) -> int:
    """Runs one command and gives the exit code."""
    # Pictures that are too large are counted and listed; Pillow would say so in the middle of the progress, of each.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd entries of files whose pixels are whole
    try:
        arguments = environment.set_up(arguments) or ["--help"]
        return app(arguments, prog_name="python -m dalle_mini", standalone_mode=False) or 0
    except typer.BadParameter as error:
        return _refuse(ValueError(error.format_message()))  # which names the option
    except (typer.TyperException, ValueError, OSError) as error:
        return _refuse(error)
    except MemoryError as error:
        return _refuse(MemoryError(f"the memory must hold a whole step, got {error}: lower batch_size"))
    except Exception as error:
        try:
            device.check_platforms()
        except ValueError as wrong_platform:  # which JAX tells in many lines, and not where to mend it
            return _refuse(wrong_platform)
        if isinstance(error, _checkpoint_error()):
            return _refuse(error)
        raise


def run() -> NoReturn:
    """The command `dalle-mini`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
