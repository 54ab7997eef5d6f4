"""`evaluate` and `publish`: how good a model is, and its files for others, with a model card."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_mini.commands.options import Model, make_folder, number, setting
from dalle_mini.sampling_params import SamplingParams


def evaluate(
    model: Model = "emoji",
    data: Annotated[str | None, typer.Option(help="Pictures with captions; else the emoji world.")] = None,
    shards: Annotated[list[Path] | None, typer.Option(help="What was trained on: its held-back rows.")] = None,
    captions: Annotated[int, typer.Option(help="Captions to draw.", min=1)] = 200,
    names: Annotated[int, typer.Option(help="Besides, of the emoji world: so many objects by name.", min=0)] = 0,
    recipe: Annotated[str, typer.Option(help="Whose emoji world it is.")] = "emoji",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Over the recipe's own.")
    ] = None,
    candidates: Annotated[Any, setting("Pictures per caption.")] = None,
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
    number_of = {} if candidates is None else {"num_candidates": candidates}
    SamplingParams(**number_of)  # refuses a bad one now rather than after loading the model
    make_folder(out)

    import dalle_mini
    from dalle_mini.loading import load_reranker
    from dalle_mini.training import recipe as recipes
    from dalle_mini.training.emoji.world import World
    from dalle_mini.training.report import evaluate

    world = recipes.load(recipe, settings or []).world()
    clip = load_reranker(features, setting="features") if features else None
    with dalle_mini.load(model, rerank=rerank) as pipeline:
        if data:
            questions = evaluate.source_questions(data, pipeline.resolution, captions=captions)
        else:
            asked = World.open(world, pipeline.resolution)
            questions = evaluate.emoji_questions(asked, captions=captions, names=names)
        report, picture = evaluate.evaluate(
            pipeline, questions, condition_scales=scales, shards=shards or [], features=clip, **number_of
        )
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    picture.save(out / "report.png")
    typer.echo(text)


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
