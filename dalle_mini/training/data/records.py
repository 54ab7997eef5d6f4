"""Tables of every kind as records: what is under which name, and where that is in the source.

Contract: a record is read when it is asked for, one at a time; a table may be read as often as one likes. What cannot
be read is a record with a problem, and the rest of the table comes. A table of which nothing can be read is an error.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from dalle_mini.training.data.delimited import Delimited
from dalle_mini.training.data.names import CAPTION_NAMES, Columns, find, named_like_a_picture
from dalle_mini.training.data.pages import has_large_pages
from dalle_mini.training.data.pages import values as values_of
from dalle_mini.training.data.texts import decode, encoding_of
from dalle_mini.training.optional_packages import optional

TABLES = (".parquet", ".pq", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".psv", ".json", ".txt")
BLOCK = 2**20  # bytes read at once
BATCH_BYTES = 2**24  # of a Parquet file, decoded at once; at most BATCH_ROWS rows
BATCH_ROWS = 32
MOST_LOST = 10**6  # rows that are counted one by one: a damaged file may claim any number
FIRST = 64  # records whose names are a table's columns, where it does not list them


class Record(NamedTuple):
    place: str  # a line, a row or a name inside of the table
    values: Mapping[str, Any]
    problem: str = ""
    note: str = ""


class Table(NamedTuple):
    path: Path
    names: list[str]
    records: Callable[[Sequence[str]], Iterator[Record]]  # with the values of these columns at least

    @property
    def columns(self) -> Columns:
        return Columns.of(self.names)


class DamagedTableError(ValueError):
    """A table of which nothing can be read."""


def open_table(path: Path) -> Table:
    """Raises DamagedTableError, also for what is none."""
    suffix = path.suffix.lower()
    kinds = {".parquet": _parquet, ".pq": _parquet, ".jsonl": _lines_of_json, ".ndjson": _lines_of_json, ".json": _json}
    try:
        return kinds.get(suffix, _delimited)(path)
    except (OSError, ValueError, RecursionError, MemoryError, KeyError, TypeError) as error:
        rule = "source must be a table that can be read"
        raise DamagedTableError(f"{rule}, got {str(path)!r}: {error or type(error).__name__}") from None


def _delimited(path: Path) -> Table:
    table = Delimited.of(path)

    def records(_: Sequence[str]) -> Iterator[Record]:
        for line in table.rows():
            yield Record(str(line.number), line.cells, line.problem, line.note)

    return Table(path, table.names, records)


def _lines_of_json(path: Path) -> Table:
    with path.open("rb") as file:
        encoding = encoding_of(iter(lambda: file.read(BLOCK), b""))

    def records(_: Sequence[str]) -> Iterator[Record]:
        with path.open(encoding=encoding.name, errors=encoding.errors, newline="\n") as text:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield _record_of(line, str(number), encoding.note)

    names = _names_of(records([]))
    if not names and path.stat().st_size:
        raise ValueError("a line must be a JSON object")
    return Table(path, names, records)


def _record_of(line: str, place: str, note: str) -> Record:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return Record(place, {}, "damaged line")
    if not isinstance(values, dict):
        return Record(place, {}, "damaged line")
    if any("\udc80" <= character <= "\udcff" for character in line if not character.isascii()):
        return Record(place, {}, "not UTF-8")
    return Record(place, values, note=note)


def _names_of(records: Iterator[Record]) -> list[str]:
    names: dict[str, None] = {}
    for record, _ in zip(records, range(FIRST), strict=False):
        names |= dict.fromkeys(record.values)
    return list(names)


def _json(path: Path) -> Table:
    text, note = decode(path.read_bytes())
    found = _records_of(json.loads(text))

    def records(_: Sequence[str]) -> Iterator[Record]:
        for place, values in found:
            yield Record(place, values, note=note) if isinstance(values, dict) else Record(place, {}, "damaged entry")

    return Table(path, _names_of(records([])), records)


def _records_of(content: Any) -> list[tuple[str, Any]]:
    """Of a list of them, of COCO's two lists, of columns, and of what is named by its pictures."""
    if isinstance(content, list):
        return [(str(number), values) for number, values in enumerate(content)]
    if not isinstance(content, dict):
        raise ValueError("it must hold a list or an object")
    images, annotations = content.get("images"), content.get("annotations")
    if isinstance(images, list) and isinstance(annotations, list):
        return _coco(images, annotations)
    columns = Columns.of(content)
    if columns.captions and columns.picture:
        return _by_column(content)
    for part in content.values():
        if isinstance(part, list) and part and isinstance(part[0], dict) and Columns.of(part[0]).picture:
            return _records_of(part)
    named = sum(named_like_a_picture(name) or _captioned(value) for name, value in content.items())
    if not named or 2 * named < len(content):
        raise ValueError("it must hold a list of objects with pictures and captions")
    return [(name, {"image": name, "caption": value}) for name, value in content.items()]


def _captioned(value: Any) -> bool:
    return isinstance(value, dict) and find(CAPTION_NAMES, value) is not None


def _coco(images: list[Any], annotations: list[Any]) -> list[tuple[str, Any]]:
    captions: dict[Any, list[str]] = {}
    for annotation in annotations:
        name = find(CAPTION_NAMES, annotation) if isinstance(annotation, dict) else None
        if name and isinstance(annotation[name], str):
            captions.setdefault(str(annotation.get("image_id")), []).append(annotation[name])
    if not captions:
        raise ValueError("its annotations must have captions")
    records = [
        (str(image.get("id")), {**image, "caption": captions.pop(str(image.get("id")), [])})
        for image in images
        if isinstance(image, dict)
    ]
    return records + [(f"image_id {number}", {"caption": texts}) for number, texts in captions.items()]


def _by_column(content: dict[str, Any]) -> list[tuple[str, Any]]:
    parts = {name: part for name, part in content.items() if isinstance(part, list | dict)}
    lists = {name: list(part.values()) if isinstance(part, dict) else part for name, part in parts.items()}
    if (
        len({len(part) for part in lists.values()}) != 1
        or len({tuple(p) for p in parts.values() if isinstance(p, dict)}) > 1
    ):
        raise ValueError("its columns must have the same rows")
    return [(str(n), dict(zip(lists, row, strict=True))) for n, row in enumerate(zip(*lists.values(), strict=True))]


def _parquet(path: Path) -> Table:
    pq = optional("pyarrow.parquet", f"to read {path}")

    def records(columns: Sequence[str]) -> Iterator[Record]:
        with pq.ParquetFile(path, buffer_size=BLOCK) as file:
            number = 0
            for group in range(file.metadata.num_row_groups):
                end = number + file.metadata.row_group(group).num_rows
                try:
                    for values in _group(file, path, group, columns):
                        yield Record(str(number), values)
                        number += 1
                except (OSError, ValueError, NotImplementedError, MemoryError, StopIteration, RuntimeError):
                    for lost in range(number, min(end, number + MOST_LOST)):
                        yield Record(str(lost), {}, "damaged row")
                number = end

    return Table(path, pq.read_schema(path).names, records)


def _group(file: Any, path: Path, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a row group; leaves of the columns whose pages are larger than is good for the memory come one by one."""
    facts = file.metadata.row_group(group)
    leaves = [facts.column(number) for number in range(facts.num_columns)]
    wanted = [leaf for leaf in leaves if not columns or leaf.path_in_schema.partition(".")[0] in columns]
    with path.open("rb") as raw:
        large = [leaf for leaf in wanted if has_large_pages(raw, leaf) and not _repeated(file, leaves, leaf)]
    names = [leaf.path_in_schema for leaf in wanted if leaf not in large]
    each = sum(leaf.total_uncompressed_size for leaf in wanted if leaf not in large) // max(1, facts.num_rows)
    size = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, each)))
    batches = file.iter_batches(batch_size=size, row_groups=[group], columns=names, use_threads=False) if names else []
    rows = (row for batch in batches for row in batch.to_pylist()) if names else ({} for _ in range(facts.num_rows))
    with ExitStack() as stack:
        streams = [_stream(stack, file, path, leaves, leaf) for leaf in large]
        for row in rows:
            for leaf, stream in zip(large, streams, strict=True):
                _put(row, leaf.path_in_schema, next(stream))
            yield row


def _level(file: Any, leaves: list[Any], leaf: Any) -> Any:
    return file.schema.column(leaves.index(leaf))


def _repeated(file: Any, leaves: list[Any], leaf: Any) -> bool:
    return _level(file, leaves, leaf).max_repetition_level > 0


def _stream(stack: ExitStack, file: Any, path: Path, leaves: list[Any], leaf: Any) -> Iterator[Any]:
    level = _level(file, leaves, leaf)
    found = values_of(stack.enter_context(path.open("rb")), leaf, defined=level.max_definition_level)
    return (v.decode() if v is not None and level.logical_type.type == "STRING" else v for v in found)


def _put(row: dict[str, Any], path: str, value: Any) -> None:
    """A leaf of a column, or the column itself."""
    name, _, inner = path.partition(".")
    row[name] = {**(row.get(name) or {}), inner: value} if inner else value
