"""What tests of sources share: pictures and captions that break no rule of `filter`, and reading a source whole."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle_mini.training.data.rows import Row, Sample, read_samples
from dalle_mini.training.data.skipped import Report
from dalle_mini.training.data.sources import open_source

CAPTIONS = [
    "a red car in front of a house",
    "a cat on the roof of a barn",
    "two dogs near a lake in the morning",
    "an old man with a hat on a bench",
    "a boat under the bridge at night",
    "a plate of soup on a wooden table",
]


def photo(number: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    rng = np.random.default_rng(number)
    parts = [
        Image.fromarray(rng.integers(256, size=(h, w, 3), dtype=np.uint8)).resize(size) for h, w in ((6, 8), (30, 40))
    ]
    return Image.blend(*parts, 0.3)


def encoded(image: Image.Image | int, kind: str = "JPEG", **settings: Any) -> bytes:
    file = io.BytesIO()
    (photo(image) if isinstance(image, int) else image).save(file, kind, **settings)
    return file.getvalue()


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def pictures(names: str = "{}.jpg", numbers: range = range(6)) -> dict[str, bytes]:
    """Files by name."""
    return {names.format(number): encoded(number) for number in numbers}


def tar(path: Path, files: dict[str, str | bytes], mode: str = "w") -> Path:
    """In this order."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def read(source: Path | str | list[Row], **settings: Any) -> tuple[list[Sample], Report]:
    report = Report()
    rows = source if isinstance(source, list) else open_source(source, **settings)
    return list(read_samples(rows, report)), report


def pairs(source: Path | str, **settings: Any) -> list[tuple[bytes, str]]:
    """Pictures with captions, of a source that loses nothing."""
    samples, report = read(source, **settings)
    assert report.skipped == {}, report.skipped
    return [(sample.file, sample.caption) for sample in samples]


EXPECTED = [(encoded(number), caption) for number, caption in enumerate(CAPTIONS)]
