"""Pictures with captions from wherever people keep them, opened by looking at the source.

Contract: `open_source` gives the rows of a source in one fixed order, pictures not decoded and one row in memory at a
time. A row that cannot be used says why, and so does what was not looked at; only a source without anything that could
be read is an error. Keys and captions can be written as UTF-8, whatever the source has. A source is

    pictures      a folder, at any depth, with captions in files beside them or in a folder of texts (beside)
    tables        of lines and separators, JSON or Parquet, one or a folder of them with the pictures (records, tables)
    tar shards    as webdataset and img2dataset write them, one or a folder of them (tars)
    Hugging Face  a folder that `save_to_disk` wrote, or a hub id owner/name[@revision], streamed (hub)

docs/train.md shows an example of each.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dalle_mini.text import without_surrogates
from dalle_mini.training.data.beside import folder_rows
from dalle_mini.training.data.found import Finder, Found, find_files, is_tar, pass_over
from dalle_mini.training.data.hub_datasets import hub_rows
from dalle_mini.training.data.records import TABLES, DamagedTableError, Table, open_table
from dalle_mini.training.data.rows import Row
from dalle_mini.training.data.tables import Keys, check_columns, table_rows
from dalle_mini.training.data.tars import tar_rows

ANNOTATIONS = ("annotations", "captions", "metadata")  # folders of tables, beside those of the pictures
UNNAMED = (".txt", ".json")  # most often the captions of one picture
MOST_OPENED = 20  # of these, to see whether they are tables


def open_source(source: str | Path, *, captioned: bool = True) -> Iterator[Row]:
    """The rows of any source; see the legend at the top of the file. Not captioned: a row a picture, captions not read.

    Raises ValueError if there is nothing that can be read, or a table has no column of captions or of pictures.
    """
    return map(_writable, _open(source, captioned=captioned))


def _writable(row: Row) -> Row:
    """File names may be any bytes. What is not UTF-8 in a key is spelled out, so that keys stay as different."""
    key, place = (text.encode(errors="backslashreplace").decode() for text in (row.key, row.place))
    return row._replace(key=key, place=place, caption=None if row.caption is None else without_surrogates(row.caption))


def _open(source: str | Path, *, captioned: bool) -> Iterator[Row]:
    path = Path(source)
    if not os.path.exists(source):  # unlike Path.exists, false for what is too long or odd to be a path
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(source)):
            raise ValueError(
                f"source must be an existing file or folder or a hub id like owner/name, got {str(source)!r}"
            )
        return hub_rows(str(source), captioned=captioned)
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return hub_rows(str(path), captioned=captioned)
        return _folder(path, captioned=captioned)
    if is_tar(path):
        return tar_rows([path], Keys(), captioned=captioned)
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"source must be a folder, a .tar or one of {', '.join(TABLES)}, got {str(source)!r}")
    table = open_table(path)
    check_columns(table.names, path, captioned=captioned)
    pictures = find_files(path.parent.parent).pictures if path.parent.name.lower() in ANNOTATIONS else None
    return table_rows(table, Finder(path.parent, pictures), Keys(), name=path.name, captioned=captioned)


def _folder(root: Path, *, captioned: bool) -> Iterator[Row]:
    found = find_files(root)
    if found.tars and not found.pictures:
        # img2dataset leaves tables without pictures beside its shards.
        return _chain(
            tar_rows(found.tars, Keys(), captioned=captioned),
            iter([pass_over(found.name(path), "file beside tar shards") for path in found.others]),
            iter(found.passed_over),
        )
    tables = _tables(found, captioned=captioned)
    if not found.pictures and not tables.usable:
        for error in (*tables.damaged.values(), *tables.others.values()):
            raise error
        raise ValueError(f"source must hold pictures, tar shards or tables with a picture column, got {str(root)!r}")
    return _chain(
        _tables_and_pictures(found, tables, captioned=captioned),
        (Row(found.name(path), None, None, "damaged file") for path in tables.damaged),
        (pass_over(found.name(path), "tar beside pictures") for path in found.tars),
        iter(found.passed_over),
    )


def _chain(*parts: Iterator[Row]) -> Iterator[Row]:
    for part in parts:
        yield from part


def _tables_and_pictures(found: Found, tables: "Tables", *, captioned: bool) -> Iterator[Row]:
    """First what tables say of pictures, then the pictures that none of them names."""
    taken = {table.path for table in tables.usable} | tables.damaged.keys()
    keys = Keys()
    said: set[int] = set()  # hashes of pictures and captions: the same table may be there in several formats
    for table in tables.usable:
        finder = Finder(table.path.parent, found.pictures)
        for row in table_rows(table, finder, keys, name=found.name(table.path), captioned=captioned):
            if isinstance(row.file, Path):
                path = Path(os.path.normpath(row.file))
                taken.add(path)
                if row.caption and hash((path, row.caption)) in said:
                    yield pass_over(row.place, "said by another table, too")
                    continue
                said.add(hash((path, row.caption)))
            yield row
    yield from folder_rows(found, frozenset(taken), captioned=captioned, listed=bool(tables.usable))


class Tables(NamedTuple):
    """Of a folder; usable: they say something of pictures; the rest do not, or cannot be read, and why."""

    usable: list[Table]
    damaged: dict[Path, ValueError]
    others: dict[Path, ValueError]


def _tables(found: Found, *, captioned: bool) -> Tables:
    tables = Tables([], {}, {})
    for path in _candidates(found):
        unnamed = path.suffix.lower() in UNNAMED
        try:
            table = open_table(path)
            check_columns(table.names, path, captioned=captioned)
        except DamagedTableError as error:
            tables.others.update({path: error}) if unnamed else tables.damaged.update({path: error})
        except ValueError as error:
            tables.others[path] = error
        else:
            tables.usable.append(table)
    return tables


def _candidates(found: Found) -> list[Path]:
    """Tables by their suffix, and of .txt and .json files those that are not the captions of one picture."""
    paths = sorted(
        (path for path in found.others if path.suffix.lower() in TABLES),
        key=lambda path: (path.parent, path.stem, TABLES.index(path.suffix.lower())),
    )
    stems = {name.lower() for path in found.pictures for name in (path.stem, path.name)}
    unnamed = [path for path in paths if path.suffix.lower() in UNNAMED and path.stem.lower() not in stems]
    named = [path for path in unnamed if re.search("caption|metadata|train|annotation|list", path.name.lower())]
    about = [path for path in named if "caption" in path.name.lower()]
    opened = set((about or named or unnamed)[:MOST_OPENED])
    return [path for path in paths if path.suffix.lower() not in UNNAMED or path in opened]
