"""What page and API say: captions, errors, and other people's Markdown made harmless."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dalle_mini.gallery import Candidate
from dalle_mini.pipeline import Pipeline
from dalle_mini.serving.refusals import RefusedError
from dalle_mini.web.answers import StorageError
from dalle_mini.web.page import gr
from vqgan.files import CheckpointError


@contextmanager
def messages(pipeline: Pipeline) -> Iterator[None]:
    """What the pipeline refuses reaches the API's clients in its own sentence."""
    try:
        yield
    except (ValueError, CheckpointError, RefusedError) as error:
        if isinstance(error, StorageError):  # drawn or not, nobody gets it
            pipeline.metrics.ended("failed")
        raise gr.Error(str(error), duration=20, print_exception=False) from error


def caption(rank: int, candidate: Candidate) -> str:
    score = "" if candidate.score is None else f" · score {candidate.score:.3f}"
    return f"#{rank}{score} · seed {candidate.seed} · candidate {candidate.index}"


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
