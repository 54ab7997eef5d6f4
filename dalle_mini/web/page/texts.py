"""What the page says: captions, status, footer, errors, and other people's Markdown made harmless."""

import html
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image

from dalle_mini.gallery import Candidate, Gallery
from dalle_mini.pictures import data_url
from dalle_mini.pipeline import Pipeline
from dalle_mini.serving.refusals import RefusedError
from dalle_mini.serving.request import Waiting
from dalle_mini.web.answers import StorageError
from dalle_mini.web.page import gr
from vqgan.files import CheckpointError


@contextmanager
def messages(pipeline: Pipeline, spell: Callable[[str], str] = str) -> Iterator[None]:
    """What the pipeline refuses reaches the page, which shows HTML, and the API's clients in its own sentence."""
    try:
        yield
    except (ValueError, CheckpointError, RefusedError) as error:
        if isinstance(error, StorageError):  # drawn or not, nobody gets it
            pipeline.metrics.ended("failed")
        raise gr.Error(spell(str(error)), duration=20, print_exception=False) from error


def caption(rank: int, candidate: Candidate) -> str:
    score = "" if candidate.score is None else f" · score {candidate.score:.3f}"
    return f"#{rank}{score} · seed {candidate.seed} · candidate {candidate.index}"


def status(text: str, row: int = 0, rows: int = 0) -> str:
    bar = f'<progress value="{row}" max="{rows}" aria-label="rows drawn"></progress>' if rows else ""
    return f"<span>{html.escape(text)}</span>{bar}"


def unfinished(images: list[Image.Image]) -> str:
    """Pictures inside the message itself: nine files a row would have to be kept and fetched."""
    shown = (f'<img src="{data_url(image)}" alt="candidate {i}, not finished yet">' for i, image in enumerate(images))
    return f"<div>{''.join(shown)}</div>"


def summary(gallery: Gallery) -> str:
    order = "as drawn" if gallery[0].score is None else "best first"
    return " · ".join([f"{len(gallery)} drawn in {gallery.seconds:.1f} s, {order}", *gallery.notes])


def line(event: Waiting) -> str:
    wait = "" if event.seconds is None else f", about {max(1, round(event.seconds))} s"
    return f"waiting: place {event.place} in line{wait}"


def footer(pipeline: Pipeline, gallery: Gallery | None = None) -> str:
    speed = f"{gallery.seconds / len(gallery):.2f}" if gallery else "not measured yet"
    facts = {"device": pipeline.device, "model": pipeline.name, "seconds per image": speed}
    return " · ".join(f"{name} <b>{html.escape(value)}</b>" for name, value in facts.items())


def tokenizer_line(pipeline: Pipeline) -> str:
    """Which network paints for the loaded model, and what the model card calls such a one unfit for."""
    codec = pipeline.vqgan
    sizes = f"{codec.side} × {codec.side} codes of {codec.codebook_size:,} for {codec.resolution} × {codec.resolution}"
    return (
        f"**The loaded model paints with a {codec.name}**: {sizes} pixels. Detail is lost: it is unfit for "
        "high-fidelity image processing, and as a general-purpose image compressor."
    )


def harmless(text: str) -> str:
    """A model card as Markdown without YAML, pictures and HTML, which might ask other hosts for something."""
    text = re.sub(r"\A\s*---[ \t]*\n(.*?\n)??---[ \t]*(\n|\Z)", "", text, flags=re.DOTALL)
    return re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])?|<(?!https?:)[/!]?[a-zA-Z-][^>]*>", "", text)
