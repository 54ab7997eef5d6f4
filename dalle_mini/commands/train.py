"""`train vqgan`, `dvae`, `encoder`, `decoder`, `dalle`, `clip`: one's own data, or the emoji world, into a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dalle_mini.commands.options import make_folder

if TYPE_CHECKING:
    from dalle_mini.training.recipe import Recipe

train = typer.Typer(help="Train a network by a recipe; a stopped run goes on where it was.")

Run = Annotated[Path, typer.Option(help="Folder for checkpoints, metrics, sample sheets and the finished model.")]
RecipeName = Annotated[str, typer.Option(help="emoji, emoji-tiny, mini, mega or a TOML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Over the recipe's own, as often as needed."),
]
Pictures = Annotated[
    str,
    typer.Option(
        help="A folder of pictures, a table, tar shards or a Hugging Face dataset; of a recipe with a [world]: none."
    ),
]


@train.command("vqgan")
def train_vqgan(
    recipe: RecipeName = "emoji", data: Pictures = "", run: Run = Path("runs/emoji"), settings: Settings = None
) -> None:
    """Pictures to codes and back: the first to train."""
    from dalle_mini.training import recipe as recipes

    loaded = recipes.load(recipe, settings or [])
    make_folder(run, "run")
    if _own(loaded, data):
        from dalle_mini.training.tasks import from_pictures

        report = from_pictures.train_vqgan(data, run, sizes=loaded.vqgan(), config=loaded.vqgan_training())
        typer.echo(f"{data}: {report.summary()}; see {run}")
    else:
        from dalle_mini.training.tasks import from_emoji

        from_emoji.train_vqgan(run, loaded)


@train.command("dvae")
def train_dvae(
    recipe: RecipeName = "emoji", data: Pictures = "", run: Run = Path("runs/dvae"), settings: Settings = None
) -> None:
    """As vqgan, with OpenAI's network and loss: for a run of its own."""
    from dalle_mini.training import recipe as recipes

    loaded = recipes.load(recipe, settings or [])
    make_folder(run, "run")
    if _own(loaded, data):
        from dalle_mini.training.tasks import from_pictures

        report = from_pictures.train_dvae(data, run, sizes=loaded.dvae(), config=loaded.dvae_training())
        typer.echo(f"{data}: {report.summary()}; see {run}")
    else:
        from dalle_mini.training.tasks import from_emoji

        from_emoji.train_dvae(run, loaded)


@train.command("encoder")
def train_encoder(recipe: RecipeName = "emoji", run: Run = Path("runs/emoji"), settings: Settings = None) -> None:
    """The VQGAN of a run of the emoji world writes every object as it is spelt: after vqgan, before the rest."""
    from dalle_mini.training import recipe as recipes
    from dalle_mini.training.tasks import from_emoji

    loaded = recipes.load(recipe, settings or [])
    make_folder(run, "run")
    from_emoji.train_encoder(run, loaded)


@train.command("decoder")
def train_decoder(recipe: RecipeName = "emoji", run: Run = Path("runs/emoji"), settings: Settings = None) -> None:
    """The VQGAN of a run of the emoji world paints better, from the same codes: any time after vqgan."""
    from dalle_mini.training import recipe as recipes
    from dalle_mini.training.tasks import from_emoji

    loaded = recipes.load(recipe, settings or [])
    make_folder(run, "run")
    from_emoji.train_decoder(run, loaded)


@train.command("dalle")
def train_dalle(
    recipe: RecipeName = "emoji",
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that encode wrote, as often as needed; of a recipe with a [world]: none."),
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
    make_folder(run, "run")
    if distributed:
        from dalle_mini.training.dalle import sharding

        sharding.start_processes(distributed)
    if _own(loaded, data):
        from dalle_mini.training.tasks import from_shards

        typer.echo(from_shards.train_dalle(loaded, data or [], run, vqgan_name=vqgan, tokenizer=tokenizer, track=track))
    elif vqgan:
        raise ValueError(f"vqgan must be left out without --data: the emoji world has the run's own, got {vqgan!r}")
    else:
        from dalle_mini.training.tasks import from_emoji

        from_emoji.train_dalle(run, loaded, tokenizer=tokenizer, track=track)


@train.command("clip")
def train_clip(
    recipe: RecipeName = "emoji", data: Pictures = "", run: Run = Path("runs/emoji"), settings: Settings = None
) -> None:
    """Pictures and captions to one space, with the tokenizer of the run's text-to-code model."""
    from dalle_mini.training import recipe as recipes

    loaded = recipes.load(recipe, settings or [])
    make_folder(run, "run")
    if _own(loaded, data):
        from dalle_mini.training.tasks import from_pictures

        report = from_pictures.train_clip(data, run, config=loaded.clip_training())
        typer.echo(f"{data}: {report.summary()}; see {run}")
    else:
        from dalle_mini.training.tasks import from_emoji

        from_emoji.train_clip(run, loaded)


def _own(recipe: "Recipe", data: object) -> bool:
    """Whether to train on data of one's own rather than on the emoji world of a recipe that has one."""
    if not data and "world" not in recipe.tables:
        raise ValueError(f"data must be given with --data for recipe {recipe.name!r}, which has no [world], got none")
    return bool(data)
