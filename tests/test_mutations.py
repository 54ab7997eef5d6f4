"""Files that were cut, bent or called something else end no run and bring no pair that was not there."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import CAPTIONS, EXPECTED, encoded, photo, pictures, tar, write

from dalle_mini.__main__ import main

KINDS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"]
SUFFIXES = [".jpg", ".png", ".tif", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ".tar", ".txt", ".heic", ".tga"]


def wholes(folder: Path) -> dict[str, bytes]:
    """One file of every kind, each of which is a source with the pictures that lie beside it."""
    rows = "".join(f'{n}.jpg,"{caption}, of ""old"""\n' for n, caption in enumerate(CAPTIONS))
    files = {
        "t.csv": ("file_name,caption\n" + rows).encode(),
        "t.tsv": b"file_name\tcaption\n" + rows.replace(",", "\t", 1).encode(),
    }
    lines = [json.dumps({"file_name": f"{n}.jpg", "text": caption}) for n, caption in enumerate(CAPTIONS)]
    files |= {"t.jsonl": "\n".join(lines).encode(), "t.json": ("[" + ",\n".join(lines) + "]").encode()}
    table = pa.table({"image": [picture for picture, _ in EXPECTED], "caption": CAPTIONS})
    for name, compression in (("t.parquet", "snappy"), ("u.parquet", "zstd")):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression=compression)
        files[name] = sink.getvalue()
    files["t.tar"] = tar(
        folder / "t.tar", pictures() | {f"{n}.txt": caption for n, caption in enumerate(CAPTIONS)}
    ).read_bytes()
    files |= {f"a.{kind.lower()}": encoded(photo(0), kind) for kind in KINDS}
    return files


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    bent = bytearray(content)
    match rng.integers(4):
        case 0:
            return bytes(bent[: rng.integers(len(bent))])
        case 1:
            start = int(rng.integers(len(bent)))
            del bent[start : start + int(rng.integers(1, 200))]
        case 2:
            start = int(rng.integers(len(bent)))
            bent[start : start + 40] = rng.bytes(40)
        case _:
            for place in rng.integers(len(bent), size=int(rng.integers(1, 6))):
                bent[place] ^= 1 << int(rng.integers(8))
    return bytes(bent)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(int(os.environ.get("MUTATED_SETS", "1"))))
def test_five_hundred_mutated_files_end_no_run_and_bring_no_other_pair(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    check(500, seed, tmp_path, capsys)


@pytest.mark.filterwarnings("ignore")
def test_some_mutated_files_end_no_run_and_bring_no_other_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    check(30, 99, tmp_path, capsys)


def check(count: int, seed: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(seed)
    files = wholes(folder)
    source = write(folder / "source", pictures())
    settings = [
        "--set",
        "language_odds=1e9",
        "--set",
        "short_language_odds=1e9",
        "--set",
        "min_words=1",
        "--set",
        "min_side=8",
    ]
    names = list(files)
    for _ in range(count):
        name = names[rng.integers(len(names))]
        content = mutated(files[name], rng)
        target = source / (
            f"x{SUFFIXES[rng.integers(len(SUFFIXES))]}" if rng.random() < 0.2 else f"x{Path(name).suffix}"
        )
        target.write_bytes(content)
        for extra in (source / "x.jpg.txt", source / f"{target.name}.txt"):
            if name.startswith("a."):
                extra.write_text("a caption of its own")
        for given in (target, source) if not name.startswith("a.") else (source,):
            code = main(["filter", str(given), "--out", str(folder / "out"), *settings])
            told = capsys.readouterr()
            assert code in (0, 2), told
            assert "Traceback" not in told.err
            if code == 0:
                assert_paired(folder / "out" / "filtered.parquet", content)
        for path in source.glob("x*"):
            path.unlink()


def assert_paired(table: Path, content: bytes) -> None:
    """A picture that is whole has its own caption, or the one that a line of the bent file says in so many words."""
    numbers = {picture: n for n, (picture, _) in enumerate(EXPECTED)}
    for row in pq.read_table(table).to_pylist():
        number = numbers.get(row["image"]["bytes"])
        if number is not None and row["caption"] != "a caption of its own":
            others = [likeness(row["caption"], caption) for n, caption in enumerate(CAPTIONS) if n != number]
            words = [row["caption"].split()[place].strip(',"').encode() for place in (0, -1)]
            said = any(all(part in line for part in (row["key"].encode(), *words)) for line in content.split(b"\n"))
            assert said or likeness(row["caption"], CAPTIONS[number]) >= max(others), (row["key"], row["caption"])


def likeness(caption: str, other: str) -> int:
    return len(set(caption.lower().replace(",", " ").split()) & set(other.split()))
