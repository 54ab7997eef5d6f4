"""The command line: `python -m dalle_mini generate "a cat left of a pizza" --candidates 9 --seed 7 --out out/`.

Contract: a thin layer over the public Python surface. Bad input gives exit code 2 and one line on standard error
that names the setting, the rule and the value. Defaults are the loaded model's own: an option left out stays out.
Nothing heavy is imported before a command runs, so that --help is quick.
"""

import json
import runpy
import subprocess
import sys
import tempfile
import warnings
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


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of pictures and captions, a table, tar shards or a Hugging Face dataset.",
        show_default=False,
    ),
]


@app.command("filter")
def filter_source(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for filtered.parquet and report.json.")] = Path("runs/filtered"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A threshold, as often as needed.")
    ] = None,
) -> None:
    """Keep the samples that are worth training on, e.g. --set min_side=256 --set language=de."""
    from dalle_mini.training.data.filters import FilterConfig, filter_samples

    config = FilterConfig.parse(settings or [])
    _make_folder(out)
    typer.echo(f"{source}: {filter_samples(source, out, config).summary()}; see {out}")


@app.command()
def encode(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for shards, statistics and a sheet.")] = Path("runs/encoded"),
    vqgan: Annotated[str, typer.Option(help="A preset, a folder or a hub id of a VQGAN.")] = "emoji",
) -> None:
    """Write captions and the codes of their pictures to shards; a stopped run goes on where it was."""
    from dalle_mini import device
    from dalle_mini.training.data import shards as encode
    from vqgan import load

    _make_folder(out)
    device.set_up()
    report = encode.encode(source, load(encode.vqgan_location(vqgan)), out=out)
    typer.echo(f"{source}: {report.summary()}; see {out}")


train = typer.Typer(help="Train a network by a recipe; a stopped run goes on where it was.")
app.add_typer(train, name="train")
Run = Annotated[Path, typer.Option(help="Folder for checkpoints, metrics, sample sheets and the finished model.")]
RecipeName = Annotated[str, typer.Option(help="emoji, emoji-tiny, mini, mega or a TOML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Over the recipe's own, as often as needed."),
]
Pictures = Annotated[
    str,
    typer.Option(help="A folder of pictures, a table, tar shards or a Hugging Face dataset; of recipe emoji: none."),
]


@train.command("vqgan")
def train_vqgan(
    recipe: RecipeName = "emoji", data: Pictures = "", run: Run = Path("runs/emoji"), settings: Settings = None
) -> None:
    """Pictures to codes and back: the first to train."""
    from dalle_mini.training import recipe as recipes

    loaded = recipes.load(recipe, settings or [])
    _make_folder(run, "run")
    if _own(recipe, data):
        from dalle_mini.training.tasks import from_pictures as pictures

        report = pictures.train_vqgan(data, run, sizes=loaded.vqgan(), config=loaded.vqgan_training())
        typer.echo(f"{data}: {report.summary()}; see {run}")
    else:
        from dalle_mini.training.tasks import from_emoji as embedded

        embedded.train_vqgan(run, loaded)


@train.command("decoder")
def train_decoder(run: Run = Path("runs/emoji")) -> None:
    """The VQGAN of a run of the emoji world paints better, from the same codes: any time after vqgan."""
    from dalle_mini.training import recipe as recipes
    from dalle_mini.training.tasks import from_emoji as embedded

    _make_folder(run, "run")
    embedded.train_decoder(run, recipes.load("emoji"))


@train.command("dalle")
def train_dalle(
    recipe: RecipeName = "emoji",
    data: Annotated[
        list[Path] | None, typer.Option(help="A folder that encode wrote, as often as needed; of recipe emoji: none.")
    ] = None,
    run: Run = Path("runs/emoji"),
    settings: Settings = None,
    vqgan: Annotated[str, typer.Option(help="What the data were encoded with; the run's own or emoji if unset.")] = "",
    tokenizer: Annotated[str, typer.Option(help="A folder or hub id; learned from the captions if unset.")] = "",
    distributed: Annotated[str, typer.Option(help="auto, or ADDRESS:PORT,PROCESSES,PROCESS: one of many hosts.")] = "",
    track: Annotated[str, typer.Option(help="Send metrics to trackio or wandb, too.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and train nothing.")] = False,
    devices: Annotated[int | None, typer.Option(help="Of a dry run; those of this machine if unset.", min=1)] = None,
) -> None:
    """Captions to codes: after vqgan, or on what encode wrote."""
    from dalle_mini import device
    from dalle_mini.training import recipe as recipes

    loaded = recipes.load(recipe, settings or [])
    device.set_up()
    if dry_run:
        from dalle_mini.training.dalle import plan

        typer.echo(plan.dry_run(loaded.dalle(), loaded.dalle_training(), devices))
        return
    _make_folder(run, "run")
    if distributed:
        from dalle_mini.training.dalle import sharding

        sharding.start_processes(distributed)
    if _own(recipe, data):
        from dalle_mini.training.tasks import from_shards as own

        typer.echo(own.train_dalle(loaded, data or [], run, painter=vqgan, reader=tokenizer, track=track))
    else:
        from dalle_mini.training.tasks import from_emoji as embedded

        embedded.train_dalle(run, loaded)


@train.command("clip")
def train_clip(
    recipe: RecipeName = "emoji", data: Pictures = "", run: Run = Path("runs/emoji"), settings: Settings = None
) -> None:
    """Pictures and captions to one space, with the tokenizer of the run's text-to-code model."""
    from dalle_mini.training import recipe as recipes

    loaded = recipes.load(recipe, settings or [])
    _make_folder(run, "run")
    if _own(recipe, data):
        from dalle_mini.training.tasks import from_pictures as pictures

        report = pictures.train_clip(data, run, config=loaded.clip_training())
        typer.echo(f"{data}: {report.summary()}; see {run}")
    else:
        from dalle_mini.training.tasks import from_emoji as embedded

        embedded.train_clip(run, loaded)


def _own(recipe: str, data: object) -> bool:
    """Whether to train on data of one's own rather than on the emoji world, which only its own recipe is made for."""
    if not data and recipe != "emoji":
        raise ValueError(f"data must be given with --data for recipe {recipe!r} (only 'emoji' has its own), got none")
    return bool(data)


@app.command()
def evaluate(
    model: Model = "emoji",
    data: Annotated[str | None, typer.Option(help="Pictures with captions; else the emoji world.")] = None,
    shards: Annotated[list[Path] | None, typer.Option(help="What was trained on: its held-back rows.")] = None,
    captions: Annotated[int, typer.Option(help="Captions to draw.", min=1)] = 200,
    candidates: Annotated[Any, _setting("Pictures per caption.")] = None,
    condition_scale: Annotated[
        list[str] | None, typer.Option(metavar="NUMBER", help="How closely to follow the prompt; several: a curve.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="A folder, MODEL/TAG or hf-hub:owner/name of the CLIP.")] = None,
    rerank: Annotated[bool, typer.Option("--rerank/--no-rerank", help="Rank the pictures with CLIP.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.png.")] = Path("out"),
) -> None:
    """Measure a model on captions whose pictures are known, e.g. --condition-scale 1 --condition-scale 3.

    CLIP score and FID are by the model's own CLIP, or by the one that --features names; template accuracy, without
    CLIP's opinion, is for the emoji world.
    """
    scales = [SamplingParams(condition_scale=number(text)).condition_scale for text in condition_scale or []]  # type: ignore[arg-type]
    settings = {} if candidates is None else {"num_candidates": candidates}
    SamplingParams(**settings)  # refuses a bad one now rather than after loading the model
    _make_folder(out)

    import dalle_mini
    from dalle_mini.training.report import evaluate

    clip = evaluate.load_clip(features) if features else None
    with dalle_mini.load(model, rerank=rerank) as pipeline:
        if data:
            questions = evaluate.source_questions(data, pipeline.resolution, captions=captions)
        else:
            questions = evaluate.emoji_questions(pipeline.resolution, captions=captions)
        report, picture = evaluate.evaluate(
            pipeline, questions, condition_scales=scales, shards=shards or [], features=clip, **settings
        )
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    picture.save(out / "report.png")
    typer.echo(text)


@app.command()
def publish(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="RUN/model, another folder, a preset or a hub id.")],
    out: Annotated[Path, typer.Option(help="A new or an empty folder.", show_default=False)],
    layout: Annotated[str, typer.Option(help="safetensors, or msgpack as DALL·E mini was published.")] = "safetensors",
    stacked: Annotated[bool, typer.Option("--stacked", help="msgpack: all layers of a kind in one array.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float16 or float32; as it is when left out.")] = None,
    report: Annotated[Path | None, typer.Option(help="report.json of evaluate, for the model card.")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="statistics.json of encode, or its folder; else RUN's.")
    ] = None,
) -> None:
    """Write a model for others, with a model card: a folder for --model, for the hub or for the original code."""
    from dalle_mini.training.report.publish import publish

    publish(model, out, layout=layout, stacked=stacked, dtype=dtype, report=report, statistics=statistics)
    typer.echo(f"{model}: {out}; read {out / 'README.md'} before you share it")


@app.command()
def bench(model: Model = "emoji") -> None:
    """Measure the start, the first gallery, later ones, a crowd and the memory on this machine."""
    from dalle_mini.bench import measure

    try:
        typer.echo(measure(model))
    except subprocess.CalledProcessError as error:  # it has said why itself
        raise typer.Exit(2) from error


@app.command()
def load(
    clients: Annotated[int, typer.Option(help="Visitors at once.")] = 64,
    minutes: Annotated[float, typer.Option(help="How long they come.")] = 5,
    cancelled: Annotated[float, typer.Option(help="Share of the requests that are stopped at a random moment.")] = 0.2,
    dropped: Annotated[float, typer.Option(help="Share of the requests whose connection is closed.")] = 0.05,
    model: Model = "emoji",
) -> None:
    """Start a server of its own on this machine, send it a crowd and check every answer; exit code 1 on a fault."""
    from dalle_mini.serving.crowd import crowd

    report = crowd(clients=clients, seconds=60 * minutes, cancelled=cancelled, dropped=dropped, model=model)
    typer.echo(report.table())
    raise typer.Exit(bool(report.faults))


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Serve the page: `python app.py` with the same options."""
    page = str(Path(__file__).parents[1] / "app.py")
    sys.argv = [page, *context.args]
    runpy.run_path(page, run_name="__main__")


def _make_folder(out: Path, name: str = "out") -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"{name} must be a folder that can be written, got {str(out)!r}") from error


def _read_picture(path: Path) -> Image.Image:
    """Upright and in RGB, on white where it is transparent."""
    from dalle_mini.training.data.rows import PictureError, decode_picture

    rule = f"picture must be an image that can be read, got {str(path)!r}"
    try:
        return decode_picture(path.read_bytes())[0]
    except OSError as error:
        raise ValueError(rule) from error
    except PictureError as error:
        raise ValueError(f"{rule} ({error})") from error


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
    from dalle_mini.text import readable

    for prompt in wanted:  # all of them now: a bad one is not found in the middle of the night
        readable(prompt)
    return wanted


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
    try:
        return app(arguments or ["--help"], prog_name="python -m dalle_mini", standalone_mode=False) or 0
    except typer.BadParameter as error:
        return _refuse(ValueError(error.format_message()))  # which names the option
    except (typer.TyperException, ValueError, OSError) as error:
        return _refuse(error)
    except MemoryError as error:
        return _refuse(MemoryError(f"the memory must hold a whole step, got {error}: lower batch_size"))
    except _checkpoint_error() as error:  # looked up only when an error gets this far
        return _refuse(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
