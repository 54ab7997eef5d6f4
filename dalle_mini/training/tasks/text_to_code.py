"""A text-to-code network into RUN/model/dalle, whatever the examples are of.

Contract: RUN/dalle has the checkpoints, metrics and sample sheets; sheets.txt says which captions these are, row by
row.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from dalle_mini.checkpoint import save_model
from dalle_mini.config import ModelConfig
from dalle_mini.gallery import contact_sheet
from dalle_mini.model import Params
from dalle_mini.training.dalle.draw import draw, gathered
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.dalle.train import train
from dalle_mini.training.recipe import Recipe
from dalle_mini.training.run import once, tracker
from dalle_mini.vocabulary import Vocabulary
from vqgan import Codec
from vqgan.files import write_text

SHOWN = 16  # captions on a sheet


def train_text_to_code(
    recipe: Recipe,
    run: Path,
    sizes: ModelConfig,
    *,
    examples: Examples,
    held_out: Examples,
    shown: Sequence[str],
    vqgan: Codec,
    vocabulary: Vocabulary,
    track: str = "",
) -> None:
    """Train, or go on with, what `begin` began. shown: captions of the first of `held_out`; vocabulary: of the
    captions of `examples`; track: see `tracker`.
    """
    config, out, folder = recipe.dalle_training(), run / "dalle", run / "model" / "dalle"
    once(lambda: write_text(out / "sheets.txt", "".join(f"{caption}\n" for caption in shown[:SHOWN])), "captions")
    once(lambda: vocabulary.save(folder), "words")
    params = train(
        sizes,
        config,
        examples,
        held_out=held_out,
        out=out,
        sheet=_sheets(folder, sizes, vqgan, held_out),
        track=tracker(track, run, {"recipe": recipe.name, **dataclasses.asdict(config)}),
    )
    _keep(folder, sizes, params)


def _sheets(folder: Path, sizes: ModelConfig, vqgan: Codec, held_out: Examples) -> Callable[[Params], Image.Image]:
    """Draws the first captions that were held back, and leaves a usable model in `folder` each time."""
    captions = held_out.first(SHOWN)

    def sheet(params: Params) -> Image.Image:
        _keep(folder, sizes, params)
        return contact_sheet([Image.fromarray(pixels) for pixels in vqgan.decode(draw(params, sizes, captions))])

    return sheet


def _keep(folder: Path, sizes: ModelConfig, params: Params) -> None:
    """As `dalle_mini.load` reads it; params may be on many hosts."""
    whole = gathered(params)  # by all processes
    once(lambda: save_model(folder, sizes, whole, dtype="float16"), "model")
