"""Records of tables as rows: captions, pictures and keys told apart by the names of their columns.

Contract: a row for every caption of a record; without a caption or a picture, one that says what is missing. Keys are
those of the key column, else the paths of the pictures, else places. A key that is empty, or that another picture has
had, is replaced by the place, and the report says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dalle_mini.training.data.found import Finder, pass_over
from dalle_mini.training.data.names import (
    ADDRESS_NAMES,
    CAPTION_NAMES,
    PICTURE_NAMES,
    TAG_NAMES,
    Columns,
    captions_of,
    picture_of,
    plain,
    split_of,
)
from dalle_mini.training.data.records import Record, Table
from dalle_mini.training.data.rows import Row
from dalle_mini.training.data.texts import EncodingError


class Keys:
    """Which picture has had which key."""

    def __init__(self) -> None:
        self._pictures: dict[int, int] = {}  # hashes: there may be millions

    def key(self, given: Any, picture: object, place: str) -> tuple[str, str]:
        """The key, or the place instead, and a note for the report."""
        name = "" if given is None or given != given else str(given).strip()
        if not name:
            return place, "no key: the place in the source instead"
        if self._pictures.setdefault(hash(name), hash(picture)) != hash(picture):
            return place, "key of another picture: the place in the source instead"
        return name, ""


def table_rows(table: Table, finder: Finder, keys: Keys, *, name: str, captioned: bool) -> Iterator[Row]:
    """name: of the table in the source."""
    columns = table.columns
    wanted = [
        column for column in (*columns.captions * captioned, columns.picture, columns.key, columns.split) if column
    ]
    split = columns.split or ""
    trained = split and any(split_of(str(record.values.get(split))) == "train" for record in table.records([split]))
    seen: set[int] = set()
    for record in table.records(wanted):
        place = f"{name}:{record.place}"
        if trained and split_of(str(record.values.get(split))) == "other":
            yield pass_over(place, "other split")
            continue
        for row in record_rows(record, columns, finder, keys, place=place, captioned=captioned):
            if not captioned and isinstance(row.file, Path):  # a picture with several captions
                if hash(row.file) in seen:
                    continue
                seen.add(hash(row.file))
            yield row


def record_rows(
    record: Record, columns: Columns, finder: Finder, keys: Keys, *, place: str, captioned: bool
) -> Iterator[Row]:
    if record.problem:
        yield Row(place, None, None, record.problem)
        return
    values = record.values
    cell, problem = picture_of(values.get(columns.picture or ""))
    file: Path | bytes | None = None
    if isinstance(cell, str):
        file, problem = finder.find(cell)
    elif isinstance(cell, bytes):
        file = cell
    key, note = cell if isinstance(cell, str) else place, ""
    if columns.key:
        key, note = keys.key(values.get(columns.key), cell, place)
    row = Row(key, None, file, problem or ("" if cell else "no picture"), place, note or record.note)
    if not captioned:
        yield row._replace(caption="not needed")
        return
    try:
        captions = _captions(values, columns)
    except EncodingError:
        yield row._replace(problem="caption in an unknown encoding")
    except ValueError:
        yield row._replace(problem="caption that is no text")
    else:
        yield from (row._replace(caption=caption) for caption in captions or [""])


def _captions(values: Mapping[str, Any], columns: Columns) -> list[str]:
    """Each once."""
    found: dict[str, None] = {}
    for column in columns.captions:
        found |= dict.fromkeys(captions_of(values.get(column), tags=plain(column) in TAG_NAMES))
    return list(found)


def check_columns(names: Iterable[str], source: object, *, captioned: bool) -> Columns:
    """Raises ValueError if there is no column of pictures or, where they are needed, of captions."""
    listed = list(names)
    columns = Columns.of(listed)
    for kind, found, known in (
        ("caption", columns.captions or not captioned, CAPTION_NAMES),
        ("picture", columns.picture, PICTURE_NAMES),
    ):
        if not found:
            raise ValueError(
                f"{source} must have a column of {kind}s ({', '.join(known)}), got {', '.join(listed) or 'none'}"
            )
    if columns.picture and plain(columns.picture) in ADDRESS_NAMES:
        raise ValueError(
            f"{source} must hold pictures or their paths, got addresses ({columns.picture}): "
            "download them with img2dataset"
        )
    return columns
