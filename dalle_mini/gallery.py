"""What a request gives back: candidates, best first, as pictures and as files that can be made again.

Contract: knows nothing about the networks. A candidate's PNG carries everything that recreates it as text chunks
and nothing else that varies (no time, no host), so that the same candidate is the same bytes. `read_metadata` is
the inverse. Keys of the text, in the order of `Candidate.metadata`:

    prompt      as typed, to 10,000 characters    settings    JSON of the SamplingParams
    seed        the one that was used             model       e.g. "emoji"
    candidate   its index, counted from 0         score       CLIP's cosine similarity; absent without reranking
    software    who wrote the file
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image, PngImagePlugin

from dalle_mini.notes import Note
from dalle_mini.sampling_params import MAX_CANDIDATES, STRENGTH, SamplingParams, whole

SOFTWARE = "DALL·E mini"
_SHEET_GAP = 2  # pixels between the pictures of a contact sheet


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One picture, its codes and what recreates it."""

    image: Image.Image
    codes: np.ndarray  # int32 [codes a picture], row by row
    index: int  # counted from 0, before ranking: the number that the rng is folded with
    score: float | None  # None without reranking; higher is better
    prompt: str
    params: SamplingParams  # with the seed that was used, never None
    model: str
    generate: "Callable[..., Gallery] | None" = dataclasses.field(default=None, repr=False)  # of its pipeline

    def vary(self, strength: float = STRENGTH, **settings: Any) -> "Gallery":
        """Other pictures like this one: each draws a share of its codes again, and what then no longer fits.

        The settings are its own, with another seed, as far as no others are given.
        """
        assert self.generate is not None, "only a pipeline's candidates can be varied"
        own = {name: value for name, value in self.params.to_dict().items() if name not in ("seed", "start")}
        return self.generate(self.prompt, start=self, strength=strength, **own | settings)

    @property
    def seed(self) -> int:
        assert self.params.seed is not None, "the pipeline draws a seed before it draws a picture"
        return self.params.seed

    def metadata(self) -> dict[str, str]:
        """What the PNG says about itself; see the legend at the top of the file."""
        score = {} if self.score is None else {"score": f"{self.score:.4f}"}
        return {
            "prompt": self.prompt,
            "seed": str(self.seed),
            "candidate": str(self.index),
            "settings": json.dumps(self.params.to_dict()),
            "model": self.model,
            **score,
            "software": SOFTWARE,
        }

    def save_png(self, path: Path | str) -> None:
        """Writes a PNG with `metadata()` inside. The same candidate gives the same bytes."""
        text = PngImagePlugin.PngInfo()
        for key, value in self.metadata().items():
            text.add_text(key, value)  # iTXt (UTF-8) where Latin-1 does not hold it
        self.image.save(path, format="PNG", pnginfo=text)


def read_metadata(path: Path | str) -> dict[str, str]:
    """What `Candidate.save_png` wrote into a file; empty for a PNG of somebody else.

    Raises ValueError when the file is not a PNG that can be read.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            assert isinstance(image, PngImagePlugin.PngImageFile)
            text = {key: str(value) for key, value in image.text.items()}
    # Pillow raises any of these for a damaged file, the last for a small file that claims to be a huge picture.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture must be a PNG file that can be read, got {str(path)!r}") from error
    return text if text.get("software") == SOFTWARE else {}


def read_recipe(path: Path | str) -> tuple[dict[str, Any], int, str]:
    """What draws a PNG of ours again: prompt and settings, which of the candidates, the model. Raises ValueError."""
    text = read_metadata(path)
    try:
        settings = SamplingParams(**json.loads(text["settings"])).to_dict()
        index = whole("candidate", int(text["candidate"]), 0, MAX_CANDIDATES - 1)
        return {"prompt": text["prompt"], **settings}, index, text["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"picture must be a PNG that says how it was drawn, got {str(path)!r}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """The pictures so far: `row` of `rows` rows of codes are drawn, `painted` of them are to be seen.

    The rest of each picture is neutral grey.
    """

    images: list[Image.Image]
    row: int
    rows: int
    painted: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Gallery(Sequence[Candidate]):
    """The candidates of one request, best first (in drawn order without reranking), and how they came about."""

    candidates: Sequence[Candidate]  # at least one, in any order
    seconds: float
    notes: Sequence[Note] = ()

    def __post_init__(self) -> None:
        ranked = sorted(self.candidates, key=lambda c: (0.0 if c.score is None else -c.score, c.index))
        object.__setattr__(self, "candidates", tuple(ranked))

    @property
    def prompt(self) -> str:
        return self[0].prompt

    @property
    def params(self) -> SamplingParams:
        """The settings, with the seed that was used."""
        return self[0].params

    @property
    def model(self) -> str:
        return self[0].model

    @overload
    def __getitem__(self, rank: int) -> Candidate: ...
    @overload
    def __getitem__(self, rank: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, rank: int | slice) -> Candidate | Sequence[Candidate]:
        return self.candidates[rank]

    def __len__(self) -> int:
        return len(self.candidates)

    def grid(self) -> Image.Image:
        """All pictures on one sheet, best first, row by row."""
        return contact_sheet([candidate.image for candidate in self])

    def save(self, folder: Path | str) -> list[Path]:
        """Writes 01.png (the best), 02.png, ..., grid.png and scores.json; gives their paths in that order.

        Nobody's pictures are overwritten: where `folder` already holds files of these names, a new folder
        inside it is used (`folder/2`, `folder/3`, ...).
        """
        pictures = [f"{rank:02d}.png" for rank in range(1, len(self) + 1)]
        names = [*pictures, "grid.png", "scores.json"]
        folder = next(f for f in _subfolders(Path(folder)) if not any((f / name).exists() for name in names))
        folder.mkdir(parents=True, exist_ok=True)
        for candidate, name in zip(self, pictures, strict=True):
            candidate.save_png(folder / name)
        self.grid().save(folder / "grid.png")
        scores = [
            {"rank": rank, "score": c.score, "seed": c.seed, "candidate": c.index, "file": name}
            for rank, (c, name) in enumerate(zip(self, pictures, strict=True), start=1)
        ]
        (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        return [folder / name for name in names]


def contact_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size on one white, nearly square sheet, row by row."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    size = (columns * (width + _SHEET_GAP) - _SHEET_GAP, rows * (height + _SHEET_GAP) - _SHEET_GAP)
    sheet = Image.new("RGB", size, "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        sheet.paste(image, (column * (width + _SHEET_GAP), row * (height + _SHEET_GAP)))
    return sheet


def slug(prompt: str) -> str:
    """A short name for files and folders: the prompt's letters and digits, the rest as single dashes."""
    return re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "prompt"


def _subfolders(folder: Path) -> Iterator[Path]:
    """`folder`, `folder/2`, `folder/3`, ... without end."""
    yield folder
    yield from (folder / str(number) for number in count(2))
