"""`generate`: pictures from prompts."""

from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer

from dalle_mini.commands.options import Model, make_folder, setting
from dalle_mini.gallery import read_recipe, slug
from dalle_mini.pictures import from_file
from dalle_mini.sampling_params import SamplingParams


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="A text file with one prompt a line.")] = None,
    candidates: Annotated[Any, setting("Pictures per prompt.")] = None,
    seed: Annotated[Any, setting("The same seed draws the same pictures; random when left out.")] = None,
    condition_scale: Annotated[Any, setting("How closely to follow the prompt.")] = None,
    temperature: Annotated[Any, setting("Higher is more varied.")] = None,
    top_k: Annotated[Any, setting("Draw among the k likeliest codes; 0 is off.")] = None,
    top_p: Annotated[Any, setting("Draw among the likeliest codes of this total probability; 1 is off.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to stay away from.", show_default=False)] = None,
    start: Annotated[Path | None, typer.Option(help="A picture to start from.", show_default=False)] = None,
    keep_rows: Annotated[Any, setting("Rows of its codes that are kept; half of them when left out.")] = None,
    vary: Annotated[
        Path | None, typer.Option(help="A PNG of ours, to draw others like it.", show_default=False)
    ] = None,
    strength: Annotated[Any, setting("Share of its codes that are given up, 0 to 1.")] = None,
    seamless: Annotated[str | None, typer.Option(help="Tiles along x, y or both.", show_default=False)] = None,
    show: Annotated[Any, setting("Of the candidates, keep so many of the best; all when left out.")] = None,
    seconds: Annotated[Any, setting("Draw no more after this time, where a candidate is whole.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    model: Model = "emoji",
    rerank: Annotated[bool, typer.Option("--rerank/--no-rerank", help="Rank the pictures with CLIP.")] = True,
) -> None:
    """Draw a gallery for each prompt: single PNGs (best first), a grid and a JSON of scores.

    Settings left out are the model's own. One prompt is saved in the folder itself, several in one sub-folder
    each; nothing is ever overwritten. --start draws the rest of a picture, or with --strength another like it.
    """
    if vary and (prompts or prompts_file or start):
        raise ValueError(
            f"vary must be given without a prompt and a start, which are those of its file, got {str(vary)!r}"
        )
    wanted = [read_recipe(vary)[0]["prompt"]] if vary else _wanted(prompts or [], prompts_file)
    settings = {
        "num_candidates": candidates,
        "seed": seed,
        "condition_scale": condition_scale,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "negative_prompt": negative,
        "seamless": seamless,
        "show": show,
        "seconds": seconds,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    SamplingParams(**settings)  # refuses a bad one now rather than after loading the model
    begin = {
        "start": None if start is None else from_file(start, setting="start"),
        "keep": keep_rows,
        "strength": strength,
    }
    begin = {name: value for name, value in begin.items() if value is not None}
    make_folder(out)

    import dalle_mini

    pipeline = dalle_mini.load(model, rerank=rerank)
    try:
        for place, prompt in enumerate(wanted, start=1):
            draw = pipeline.redraw(vary).vary if vary else partial(pipeline.generate, prompt)
            gallery = draw(**settings, **begin)
            folder = gallery.save(out if len(wanted) == 1 else out / f"{place:03d}-{slug(prompt)}")[0].parent
            best = "not ranked" if gallery[0].score is None else f"best score {gallery[0].score:.3f}"
            facts = [f"{len(gallery)} in {folder}", best, f"seed {gallery.params.seed}", f"{gallery.seconds:.1f} s"]
            typer.echo(f"{shorten(prompt, 60)!r}: " + ", ".join([*facts, *gallery.notes]))
    finally:
        pipeline.close()


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
