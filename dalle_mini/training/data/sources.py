"""Pictures with captions from wherever people keep them, opened by looking at the source.

Contract: `open_source` gives the rows of a source in one fixed order, pictures not decoded and one row in memory at a
time. A row that has no picture says why; only a source without anything that could be read is an error. Keys and
captions can be written as UTF-8, whatever the source has. A source is

    pictures      a folder, at any depth, with cat.txt or cat.json ({"caption": ...}) beside cat.jpg
    tables        .csv, .tsv, .jsonl or .parquet, one or a folder of them, or of a downloaded hub dataset the split
                  "train": a caption column and a picture column, which holds paths (relative to the table), encoded
                  pictures or Hugging Face's {"bytes", "path"}
    tar shards    as img2dataset writes them, one or a folder of them: 000000001.jpg, .txt and .json
    Hugging Face  a folder that `save_to_disk` wrote, or a hub id owner/name[@revision], streamed; the split "train"
"""

import csv
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from dalle_mini.text import without_surrogates
from dalle_mini.training.data.rows import Row
from dalle_mini.training.optional import optional

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
# Columns of tables and entries of JSON files; of several, the first of this order is taken.
CAPTION_NAMES = ("caption", "text", "txt", "prompt", "description", "title")
PICTURE_NAMES = ("image", "img", "jpg", "png", "bytes", "path", "file", "file_name", "filename", "filepath")
KEY_NAMES = ("key", "__key__", "id")
ROWS_AT_ONCE = 32  # read from a table


def open_source(source: str | Path) -> Iterator[Row]:
    """The rows of any source; see the legend at the top of the file.

    Raises ValueError if there is nothing that can be read, or a table has no column of captions or of pictures.
    """
    return map(_writable, _open(source))


def _writable(row: Row) -> Row:
    """File names may be any bytes. What is not UTF-8 in a key is spelled out, so that keys stay as different."""
    key = row.key.encode(errors="backslashreplace").decode()
    return row._replace(key=key, caption=None if row.caption is None else without_surrogates(row.caption))


def _open(source: str | Path) -> Iterator[Row]:
    path = Path(source)
    if not os.path.exists(source):  # unlike Path.exists, false for what is too long or odd to be a path
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(source)):
            raise ValueError(
                f"source must be an existing file or folder or a hub id like owner/name, got {str(source)!r}"
            )
        return _hugging_face(str(source))
    if path.suffix == ".tar":
        return _shards([path])
    if path.suffix in TABLES:
        return _tables([path])
    if not path.is_dir():
        raise ValueError(f"source must be a folder, a .tar or one of {', '.join(TABLES)}, got {str(source)!r}")
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _hugging_face(str(path))
    if shards := sorted(path.glob("*.tar")):
        return _shards(shards)
    # img2dataset also leaves tables without pictures beside those that it writes into folders.
    tables = sorted(table for table in path.iterdir() if table.suffix in TABLES)
    if tables and _find(PICTURE_NAMES, _columns(tables[0])):
        return _tables(tables)
    if tables := sorted(path.glob("data/train-*.parquet")):
        return _tables(tables)
    return _folder(path)


def _folder(folder: Path) -> Iterator[Row]:
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not pictures:
        raise ValueError(f"source must hold pictures, tar shards or tables with a picture column, got {str(folder)!r}")

    def beside(picture: Path, suffix: str) -> bytes | None:
        try:
            return picture.with_suffix(suffix).read_bytes()
        except OSError:  # most often because there is none
            return None

    return (
        Row(path.relative_to(folder).as_posix(), _caption(beside(path, ".txt"), beside(path, ".json")), path)
        for path in pictures
    )


def _caption(text: bytes | None, meta: bytes | None) -> str | None:
    """From the content of a .txt or else a .json file; of neither, what is blank or None."""
    caption = None
    with suppress(UnicodeDecodeError):
        caption = text.decode("utf-8-sig") if text else None
    if caption and caption.strip():
        return caption
    with suppress(ValueError, RecursionError):  # the latter for what is nested too deeply
        values = json.loads(meta or b"{}")
        name = _find(CAPTION_NAMES, values) if isinstance(values, dict) else None
        if name and isinstance(values[name], str):
            return values[name]
    return caption


def _shards(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        yield from _until_damaged(path, _tar_rows(path))


def _tar_rows(path: Path) -> Iterator[Row]:
    def stem(member: tarfile.TarInfo) -> str:
        folder, slash, name = member.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    with tarfile.open(path) as tar:
        for key, members in groupby((member for member in tar if member.isfile()), key=stem):
            parts = {}
            for member in members:
                content = tar.extractfile(member)
                assert content is not None, "it is a file"
                parts[member.name[len(key) :].lower()] = content.read()
            picture = next((parts[suffix] for suffix in PICTURES if suffix in parts), None)
            yield Row(key, _caption(parts.get(".txt"), parts.get(".json")), picture)


def _until_damaged(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """The rest of a damaged file is one row that says so."""
    try:
        yield from rows
    except (OSError, EOFError, ValueError, RecursionError, tarfile.TarError, csv.Error):
        yield Row(path.name, None, None, "damaged file")


def _tables(paths: Sequence[Path]) -> Iterator[Row]:
    columns = _columns(paths[0])
    _table_names(columns, paths[0])
    return (row for path in paths for row in _until_damaged(path, _table_rows(path)))


def _table_rows(path: Path) -> Iterator[Row]:
    names = _table_names(_columns(path), path)
    if path.suffix == ".parquet":
        with optional("pyarrow.parquet", f"to read {path}").ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[name for name in names if name])
            yield from _rows((record for batch in batches for record in batch.to_pylist()), names, path)
    else:
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield from _rows(_records(text, path.suffix), names, path)


def _records(text: Iterable[str], suffix: str) -> Iterator[Mapping[str, Any]]:
    """Of a table that is no Parquet file."""
    if suffix != ".jsonl":
        yield from csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",")
        return
    for line in filter(str.strip, text):
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"a line must be a JSON object, got {line[:40]!r}")
        yield record


def _columns(path: Path) -> list[str]:
    try:
        if path.suffix == ".parquet":
            return optional("pyarrow.parquet", f"to read {path}").read_schema(path).names
        with path.open(encoding="utf-8-sig", newline="") as text:
            if path.suffix == ".jsonl":
                return list(next(_records(text, path.suffix), {}))
            return next(csv.reader(text, delimiter="\t" if path.suffix == ".tsv" else ","), [])
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"source must be a table that can be read, got {str(path)!r}: {error}") from None


def _table_names(columns: Sequence[str], source: object) -> tuple[str, str, str | None]:
    """The names of the columns of captions, pictures and, if there is one, keys."""
    caption, picture, key = (_find(names, columns) for names in (CAPTION_NAMES, PICTURE_NAMES, KEY_NAMES))
    for kind, found, names in (("caption", caption, CAPTION_NAMES), ("picture", picture, PICTURE_NAMES)):
        if found is None:
            raise ValueError(
                f"{source} must have a column of {kind}s ({', '.join(names)}), got {', '.join(columns) or 'none'}"
            )
    assert caption
    assert picture
    return caption, picture, key


def _find(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """The column whose lower-case name comes first in `names`."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def _rows(
    records: Iterable[Mapping[str, Any]], names: tuple[str, str, str | None], source: Path | str
) -> Iterator[Row]:
    """Table rows; paths in them are relative to the folder of `source`."""
    caption, picture, key = names
    for number, record in enumerate(records):
        text, cell = record.get(caption), record.get(picture)  # a line of JSON may lack either
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        path = cell if isinstance(cell, str) and cell else None
        file = Path(source).parent / path if path else cell if isinstance(cell, bytes) and cell else None
        name = record.get(key) if key else path or f"{Path(source).name}:{number}"
        yield Row(str(name), text if isinstance(text, str) else None, file)


def _hugging_face(location: str) -> Iterator[Row]:
    here = "a Hugging Face dataset" if os.path.exists(location) else "no file or folder here, but may be a hub id"
    datasets = optional("datasets", f"to read {location!r}, which is {here}")
    repo, _, revision = location.partition("@")
    try:
        if os.path.exists(location):
            dataset = datasets.load_from_disk(location)
        else:
            dataset = datasets.load_dataset(repo, revision=revision or None, streaming=True)
        if isinstance(dataset, Mapping):  # by split
            dataset = dataset["train"]
        names = _table_names(dataset.column_names or list(next(iter(dataset), {})), location)
        dataset = dataset.cast_column(names[1], datasets.Image(decode=False))
        next(iter(dataset), None)  # what is streamed is only cast as it is read
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:  # the last two are pyarrow's
        rule = "source must be a dataset with a split 'train' and pictures in it"
        raise ValueError(f"{rule}, got {location!r}: {error}") from None
    return _rows(dataset, names, location)
