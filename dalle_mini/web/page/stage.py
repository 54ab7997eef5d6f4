"""The stage: what is being drawn and what was drawn, in the browser the work of stage.js, gallery.js and opened.js.

Contract: each of its values is a dict about one drawing, which the tab has given a name. One of

    {drawing, place, seconds}                       in line
    {drawing, row, rows, pictures, painted}         pictures: of every candidate a JPEG, of which `painted` rows count
    {drawing, prompt, seed, model, settings, seconds, notes, tiles}
                                                    drawn; a tile is {picture, name, score, ranks, codes}: equal
                                                    pictures are one, its picture the PNG file of the first of them;
                                                    a note is {name, facts}, see dalle_mini/notes.py
    {drawing, refused, setting}                     a sentence, and which setting it is about, if any
    {drawing, stopped}
    {nothing}                                       who has come back to a tab finds nothing

Pictures are data URLs. What has not changed is None: a reader keeps what it had.
"""

import base64
import dataclasses
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dalle_mini.gallery import Gallery, Preview
from dalle_mini.pictures import data_url
from dalle_mini.sampling_params import SamplingParams
from dalle_mini.serving.refusals import RefusedError
from dalle_mini.serving.request import Waiting
from vqgan.files import CheckpointError

SETTINGS = ("prompt", "keep", "strength", *(field.name for field in dataclasses.fields(SamplingParams)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What is shown of a gallery: its facts, and tiles whose pictures are in files, not in memory."""

    facts: dict[str, Any]
    tiles: list[tuple[Path, dict[str, Any]]]


def answer(gallery: Gallery, paths: list[Path]) -> Answer:
    """`paths`: the file of every candidate, best first."""
    ranks: dict[bytes, list[int]] = {}
    for rank, candidate in enumerate(gallery, 1):
        ranks.setdefault(candidate.image.tobytes(), []).append(rank)
    facts = {
        "prompt": gallery.prompt,
        "seed": gallery.params.seed,
        "model": gallery.model,
        "settings": gallery.params.to_dict(),
        "seconds": gallery.seconds,
        "notes": [note.to_dict() for note in gallery.notes],
    }
    tiles = []
    for same in ranks.values():
        first = gallery[same[0] - 1]
        tiles.append((paths[same[0] - 1], {"score": first.score, "ranks": same, "codes": first.codes.tolist()}))
    return Answer(facts=facts, tiles=tiles)


def values(drawing: str, events: Iterable[Waiting | Preview | Answer]) -> Iterator[dict[str, Any]]:
    """Of what a visit tells. Events repeat themselves, so that Gradio finds out who has gone."""
    try:
        yield from ({"drawing": drawing, **value} for value in _told(events))
    except (ValueError, CheckpointError, RefusedError) as error:
        named = str(error).partition(" ")[0]
        yield {"drawing": drawing, "refused": str(error), "setting": named if named in SETTINGS else None}
    except Exception:
        logging.getLogger(__name__).exception("a drawing failed")
        yield {"drawing": drawing, "refused": "something went wrong on the server: please try again", "setting": None}


def _told(events: Iterable[Waiting | Preview | Answer]) -> Iterator[dict[str, Any]]:
    shown = None
    for event in events:
        if isinstance(event, Waiting):
            yield {"place": event.place, "seconds": event.seconds}
        elif isinstance(event, Preview):
            pictures = None if event.images is shown else [data_url(image) for image in event.images]
            shown = event.images
            yield {"row": event.row, "rows": event.rows, "pictures": pictures, "painted": event.painted}
        else:
            try:
                tiles = [{"picture": png_url(path), "name": path.name, **tile} for path, tile in event.tiles]
            except FileNotFoundError:  # it was kept longer than its files; the browser may have them
                yield {"nothing": True}
                return
            yield {**event.facts, "tiles": tiles}
            return
    yield {"stopped": True}


def png_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
