"""`compare`: VQGANs and dVAEs on the same pictures."""

from pathlib import Path
from typing import Annotated

import typer

from dalle_mini.commands.options import make_folder


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="A preset, RUN, a folder or a hub id, of a VQGAN or dVAE.", show_default=False
        ),
    ],
    data: Annotated[
        str, typer.Option(help="Pictures with captions; held-out scenes of the emoji world if unset.")
    ] = "",
    pictures: Annotated[int, typer.Option(help="How many.", min=1)] = 200,
    recipe: Annotated[str, typer.Option(help="Whose emoji world it is.")] = "emoji",
    out: Annotated[Path, typer.Option(help="Folder for tokenizers.json, tokenizers.md and tokenizers.png.")] = Path(
        "out"
    ),
) -> None:
    """What tokenizers keep of the same pictures, and what that takes: a table and a sheet."""
    make_folder(out)

    import numpy as np

    from dalle_mini import device
    from dalle_mini.training import recipe as recipes
    from dalle_mini.training.data.shards import vqgan_location
    from dalle_mini.training.emoji.world import World
    from dalle_mini.training.report import evaluate, tokenizers
    from vqgan import load
    from vqgan.files import write_json

    def at(resolution: int) -> np.ndarray:
        if data:
            return evaluate.source_questions(data, resolution, captions=pictures).truth
        return evaluate.emoji_questions(World.open(world, resolution), captions=pictures).truth

    device.set_up()
    world = recipes.load(recipe).world()
    rows, picture = tokenizers.compare({name: load(vqgan_location(name)) for name in models}, at)
    write_json(out / "tokenizers.json", {"pictures": data or "held-out scenes of the emoji world", "tokenizers": rows})
    text = tokenizers.as_table(rows)
    (out / "tokenizers.md").write_text(text + "\n", encoding="utf-8")
    picture.save(out / "tokenizers.png")
    typer.echo(text)
