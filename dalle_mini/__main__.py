"""The command line: `python -m dalle_mini generate "a cat left of a pizza" --candidates 9 --seed 7 --out out/`.

Contract: a thin layer over the public Python surface. Bad input gives exit code 2 and one line on standard error
that names the setting, the rule and the value. Defaults are the loaded model's own: an option left out stays out.
Nothing heavy is imported before a command runs, so that --help is quick.
"""

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageOps

from dalle_mini.config import SamplingParams
from dalle_mini.gallery import contact_sheet, slug

app = typer.Typer(
    help="Text to a ranked gallery.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def number(text: str) -> int | float | str:
    """The number that `text` writes, or `text`: SamplingParams says what is wrong with it, in one line."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _setting(description: str) -> Any:
    return typer.Option(parser=number, metavar="NUMBER", help=description, show_default=False)


Model = Annotated[str, typer.Option(help="A preset, a folder or a hub id.")]


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="A text file with one prompt a line.")] = None,
    candidates: Annotated[Any, _setting("Pictures per prompt.")] = None,
    seed: Annotated[Any, _setting("The same seed draws the same pictures; random when left out.")] = None,
    condition_scale: Annotated[Any, _setting("How closely to follow the prompt.")] = None,
    temperature: Annotated[Any, _setting("Higher is more varied.")] = None,
    top_k: Annotated[Any, _setting("Draw among the k likeliest codes; 0 is off.")] = None,
    top_p: Annotated[Any, _setting("Draw among the likeliest codes of this total probability; 1 is off.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    model: Model = "emoji",
    rerank: Annotated[bool, typer.Option("--rerank/--no-rerank", help="Rank the pictures with CLIP.")] = True,
) -> None:
    """Draw a gallery for each prompt: single PNGs (best first), a grid and a JSON of scores.

    Settings left out are the model's own. One prompt is saved in the folder itself, several in one sub-folder
    each; nothing is ever overwritten.
    """
    wanted = _wanted(prompts or [], prompts_file)
    settings = {
        "num_candidates": candidates,
        "seed": seed,
        "condition_scale": condition_scale,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    SamplingParams(**settings)  # refuses a bad one now rather than after loading the model
    _make_folder(out)

    import dalle_mini

    pipeline = dalle_mini.load(model, rerank=rerank)
    try:
        for place, prompt in enumerate(wanted, start=1):
            gallery = pipeline.generate(prompt, **settings)
            folder = gallery.save(out if len(wanted) == 1 else out / f"{place:03d}-{slug(prompt)}")[0].parent
            best = "not ranked" if gallery[0].score is None else f"best score {gallery[0].score:.3f}"
            facts = [f"{len(gallery)} in {folder}", best, f"seed {gallery.params.seed}", f"{gallery.seconds:.1f} s"]
            typer.echo(f"{shorten(prompt, 60)!r}: " + ", ".join([*facts, *gallery.notes]))
    finally:
        pipeline.close()


@app.command()
def reconstruct(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", show_default=False)],
    out: Annotated[Path, typer.Option(help="The PNG to write, or a folder for it.")] = Path("reconstruction.png"),
    model: Model = "emoji",
) -> None:
    """Show what the codes keep of a picture and what they lose: the picture beside its reconstruction."""
    original = _read_picture(picture)
    if out.is_dir():
        out = out / "reconstruction.png"
    _make_folder(out.parent)

    import dalle_mini

    pipeline = dalle_mini.load(model, rerank=False)
    try:
        square = ImageOps.fit(original, (pipeline.resolution, pipeline.resolution))
        codes = pipeline.vqgan.encode(np.asarray(square)[None])
        rebuilt = Image.fromarray(np.asarray(pipeline.vqgan.decode(codes)[0]))
    finally:
        pipeline.close()
    contact_sheet([square, rebuilt]).save(out, format="PNG")
    typer.echo(f"{picture}: {codes.size} codes, shown in {out}")


train = typer.Typer(help="Train the networks of the embedded model; a stopped run goes on where it was.")
app.add_typer(train, name="train")
Run = Annotated[Path, typer.Option(help="Folder for checkpoints, metrics, sample sheets and the finished model.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps; the recipe's own when left out.", min=1)]
Seed = Annotated[int, typer.Option(help="Of the data and the parameters.", min=0)]


@train.command("vqgan")
def train_vqgan(run: Run = Path("runs/emoji"), steps: Steps = None, seed: Seed = 0) -> None:
    """Pictures to codes and back: the first to train."""
    from dalle_mini.training import embedded

    embedded.train_vqgan(run, steps=steps or embedded.VQGAN_STEPS, seed=seed)


@train.command("decoder")
def train_decoder(run: Run = Path("runs/emoji"), steps: Steps = None, seed: Seed = 0) -> None:
    """The run's VQGAN paints better, from the same codes: any time after vqgan."""
    from dalle_mini.training import embedded

    embedded.train_decoder(run, steps=steps or embedded.DECODER_STEPS, seed=seed)


@train.command("dalle")
def train_dalle(run: Run = Path("runs/emoji"), steps: Steps = None, seed: Seed = 0) -> None:
    """Captions to codes, with the codes of the run's VQGAN."""
    from dalle_mini.training import embedded

    embedded.train_dalle(run, steps=steps or embedded.DALLE_STEPS, seed=seed)


@train.command("clip")
def train_clip(run: Run = Path("runs/emoji"), steps: Steps = None, seed: Seed = 0) -> None:
    """Pictures and captions to one space, with the tokenizer of the run's text-to-code model."""
    from dalle_mini.training import embedded

    embedded.train_clip(run, steps=steps or embedded.CLIP_STEPS, seed=seed)


@app.command()
def evaluate(
    model: Model = "emoji",
    captions: Annotated[int, typer.Option(help="Held-out captions to draw.", min=1)] = 200,
    condition_scale: Annotated[Any, _setting("How closely to follow the prompt.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json and sheet.png.")] = Path("out"),
) -> None:
    """Judge a model of the emoji world on captions that its training never saw, without CLIP's opinion."""
    settings = {} if condition_scale is None else {"condition_scale": condition_scale}
    SamplingParams(**settings)
    _make_folder(out)

    import dalle_mini
    from dalle_mini.training.evaluate import evaluate

    with dalle_mini.load(model) as pipeline:
        report, sheet = evaluate(pipeline, captions=captions, **settings)
    text = json.dumps(report, indent=2)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    sheet.save(out / "sheet.png")
    typer.echo(text)


@app.command()
def bench(model: Model = "emoji") -> None:
    """Measure the start, the first gallery, later ones and the memory on this machine."""
    from dalle_mini.bench import measure

    typer.echo(measure(model))


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Serve the page: `python app.py` with the same options."""
    page = str(Path(__file__).parents[1] / "app.py")
    sys.argv = [page, *context.args]
    runpy.run_path(page, run_name="__main__")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written, got {str(out)!r}") from error


def _read_picture(path: Path) -> Image.Image:
    """Upright and in RGB, on white where it is transparent."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture must be an image that can be read, got {str(path)!r}") from error
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def _wanted(prompts: list[str], prompts_file: Path | None) -> list[str]:
    """All prompts of one command, none of them blank; blank lines of the file are skipped."""
    lines: list[str] = []
    if prompts_file is not None:
        try:
            lines = prompts_file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            rule = "prompts-file must be a text file in UTF-8 that can be read"
            raise ValueError(f"{rule}, got {str(prompts_file)!r}") from error
    wanted = [*prompts, *(line.strip() for line in lines if line.strip())]
    if not wanted:
        raise ValueError("prompt must be given, as PROMPT or with --prompts-file, got none")
    for prompt in wanted:  # all of them now: a bad one is not found in the middle of the night
        if not prompt.strip():
            raise ValueError(f"prompt must not be empty, got {prompt!r}")
    return wanted


def _checkpoint_error() -> type[Exception]:
    from vqgan.checkpoint import CheckpointError  # brings JAX along

    return CheckpointError


def _refuse(error: Exception) -> int:
    typer.echo("error: " + " ".join(line.strip() for line in str(error).splitlines()), err=True)
    return 2


def main(arguments: Sequence[str]) -> int:
    """Runs one command and gives the exit code."""
    try:
        return app(arguments or ["--help"], prog_name="python -m dalle_mini", standalone_mode=False) or 0
    except (typer.TyperException, ValueError) as error:
        return _refuse(error)
    except _checkpoint_error() as error:  # looked up only when an error gets this far
        return _refuse(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
