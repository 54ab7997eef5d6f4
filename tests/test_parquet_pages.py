"""A Parquet whose pages do not fit the memory gives the same rows as pyarrow does, in little memory."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import read

from dalle_mini.training.data import pages
from dalle_mini.training.data.records import open_table

ROWS = 120


def column(shape: str) -> pa.Array:
    rng = np.random.default_rng(0)
    cells: list[Any] = [rng.bytes(int(rng.integers(3000))) for _ in range(ROWS)]
    cells[::3] = [b"abcabcab" * int(rng.integers(200)) for _ in cells[::3]]  # which compress
    cells[7] = cells[3]
    cells[5] = cells[-1] = None
    if shape == "text":
        return pa.array([None if cell is None else cell.hex() for cell in cells], pa.string())
    if shape == "struct":
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.array([{"bytes": cell, "path": str(n)} for n, cell in enumerate(cells)], kind)
    return pa.array(cells, pa.binary())


CASES = list(
    itertools.product(["none", "snappy", "zstd", "gzip", "brotli", "lz4"], [True, False], ["bytes", "struct", "text"])
)


@pytest.mark.parametrize(("codec", "dictionary", "shape"), CASES)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_large_pages_give_the_rows_that_pyarrow_gives(
    codec: str, dictionary: bool, shape: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pages, "LARGE", 2000)
    table = pa.table({"image": column(shape), "caption": [str(n) for n in range(ROWS)]})
    settings: dict[str, Any] = {"compression": codec, "use_dictionary": dictionary, "data_page_version": version}
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, **settings)
    with pq.ParquetFile(tmp_path / "a.parquet") as file, (tmp_path / "a.parquet").open("rb") as raw:
        large = pages.has_large_pages(raw, file.metadata.row_group(0).column(0))
    assert large == (version == "1.0" and codec != "lz4")
    records = list(open_table(tmp_path / "a.parquet").records(["image", "caption"]))
    assert {record.problem for record in records} == {""}
    assert [record.values for record in records] == table.to_pylist()


def test_a_damaged_large_page_loses_its_rows_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pages, "LARGE", 2000)
    pq.write_table(pa.table({"image": column("bytes"), "caption": ["x"] * ROWS}), tmp_path / "a.parquet")
    whole, rng = (tmp_path / "a.parquet").read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        bent = bytearray(whole)
        bent[rng.integers(4, len(bent) - 2000)] ^= 1 << rng.integers(8)
        (tmp_path / "a.parquet").write_bytes(bent)
        report = read(tmp_path / "a.parquet")[1]
        assert report.read == ROWS
        assert set(report.skipped) <= {"not a picture", "no picture", "damaged row"}


def test_pictures_in_one_large_page_are_read_in_little_memory(tmp_path: Path):
    rng = np.random.default_rng(0)
    table = pa.table({"image": [rng.bytes(1_000_000) for _ in range(200)], "caption": ["a cat"] * 200})
    pq.write_table(table, tmp_path / "a.parquet")
    script = (
        "import resource, sys, pyarrow.parquet; from dalle_mini.training.data.sources import open_source\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak(); assert sum(len(row.file) == 1_000_000 for row in open_source(sys.argv[1])) == 200\n"
        "print(peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.parquet")], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 120  # MiB, of a file of 200; as a whole, it would take 400 and more
