"""What people call things: columns, entries of JSON files, suffixes, splits; and what their cells hold.

Contract: names are compared in lower case, with spaces and hyphens as underscores. A cell of captions gives all of
them; a cell of a picture gives where it is, or the reason why it is of no use.
"""

import ast
import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from dalle_mini.training.data.pictures import PICTURES
from dalle_mini.training.data.texts import decode

CAPTIONS = (".txt", ".caption", ".captions", ".json")  # files of them; of several that say something, the first
# Columns of tables and entries of JSON files; of several, the first of this order is taken.
CAPTION_NAMES: tuple[str, ...] = (
    "caption",
    "captions",
    "text",
    "texts",
    "txt",
    "prompt",
    "sentence",
    "sentences",
    "description",
)
CAPTION_NAMES += ("descriptions", "title", "raw", "comment", "alt", "alt_text", "tags", "keywords")
TAG_NAMES = ("tags", "keywords")  # whose lists are one caption
PICTURE_NAMES: tuple[str, ...] = (
    "image",
    "img",
    "jpg",
    "png",
    "webp",
    "jpeg",
    "avif",
    "heic",
    "tiff",
    "gif",
    "bytes",
    "image_bytes",
)
PICTURE_NAMES += ("path", "file", "file_name", "filename", "filepath", "file_path", "image_path", "img_path")
PICTURE_NAMES += ("image_file", "image_name", "image_filename", "image_file_name", "photo", "picture", "images")
PICTURE_NAMES += ("image_base64", "base64")
ADDRESS_NAMES = ("url", "image_url", "img_url", "image_link", "link", "uri")
KEY_NAMES = ("key", "__key__", "id")
SPLIT_NAMES = ("split", "subset", "partition")
# More columns of captions beside the first: caption_2, caption3, blip_caption.
MORE_CAPTIONS = re.compile(r"(?:caption|text|prompt|sentence|description)_?\d+|(?!negative)\w+_caption")
# Those of a split, between what is no letter; of all names, Hugging Face's.
TRAIN = re.compile(r"(?:^|[^a-z])(?:train|training)(?:[^a-z]|$)")
OTHER_SPLIT = re.compile(r"(?:^|[^a-z])(?:test|testing|val|valid|validation|dev|eval|evaluation)(?:[^a-z]|$)")
ADDRESS = re.compile(r"(?:https?|s3|gs|ftp|hf)://", re.IGNORECASE)
MAGIC = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AK")  # base64 of the first bytes of pictures


class Columns(NamedTuple):
    """Names of a table's columns, by what they hold."""

    captions: tuple[str, ...]
    picture: str | None
    key: str | None
    split: str | None

    @classmethod
    def of(cls, columns: Iterable[str]) -> "Columns":
        names = list(columns)
        first = find(CAPTION_NAMES, names)
        more = [name for name in names if name != first and MORE_CAPTIONS.fullmatch(plain(name))]
        picture = find(PICTURE_NAMES, names) or find(ADDRESS_NAMES, names)
        captions = tuple(name for name in (first, *more) if name and name != picture)
        return cls(captions, picture, find(KEY_NAMES, names), find(SPLIT_NAMES, names))


def plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def find(names: Sequence[str], columns: Iterable[str]) -> str | None:
    """The column whose name comes first in `names`."""
    by_name = {plain(column): column for column in columns if isinstance(column, str)}
    return next((by_name[name] for name in names if name in by_name), None)


def split_of(*names: str) -> str:
    """ "train", "other" or "", from names of folders and files, the innermost last."""
    for name in reversed(names):
        if TRAIN.search(name.lower()):
            return "train"
        if OTHER_SPLIT.search(name.lower()):
            return "other"
    return ""


def unnumbered(cell: str) -> str:
    """ "cat.jpg" of "cat.jpg#0", as Flickr8k numbers its captions."""
    return re.sub(r"#\d+\Z", "", cell) if suffix_of(cell.rpartition("#")[0]) else cell


def named_like_a_picture(cell: object) -> bool:
    return isinstance(cell, str) and bool(suffix_of(cell))


def suffix_of(name: str) -> str:
    """In lower case, if it is a picture's."""
    suffix = PurePosixPath(name.strip().lower()).suffix
    return suffix if suffix in PICTURES else ""


def captions_of(value: Any, *, tags: bool = False) -> list[str]:
    """All captions of a cell: text, bytes, lists, dicts with an entry of them, and lists written as text.

    Raises EncodingError for bytes, and ValueError if it holds something else.
    """
    if value is None or (isinstance(value, float) and value != value):
        return []
    if isinstance(value, bytes):
        return captions_of(decode(value)[0], tags=tags)
    if isinstance(value, str):
        listed = _written_list(value)
        return captions_of(listed, tags=tags) if listed is not None else [value] if value.strip() else []
    if isinstance(value, Mapping):
        name = find(CAPTION_NAMES, value)
        if name is None:
            raise ValueError("its entries have other names")
        return captions_of(value[name], tags=plain(name) in TAG_NAMES)
    if isinstance(value, list | tuple):
        parts = [caption for part in value for caption in captions_of(part)]
        return [", ".join(parts)] if tags and parts else parts
    raise ValueError(f"it holds {type(value).__name__}")


def _written_list(text: str) -> list[str] | None:
    """Of '["a cat", "a dog"]', as Python and JSON write lists."""
    text = text.strip()
    if not (text.startswith(("['", '["')) and text.endswith(("']", '"]'))):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            listed = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(listed, list) and all(isinstance(part, str) for part in listed):
            return listed
    return None


def picture_of(cell: Any) -> tuple[str | bytes | None, str]:
    """A path, or an encoded picture, or None; in the last case, why."""
    if isinstance(cell, list | tuple) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path") or cell.get("src")
    if isinstance(cell, bytes | str) and not cell:
        cell = None
    if isinstance(cell, str):
        cell = unnumbered(cell.strip())
        if ADDRESS.match(cell):
            return None, "address instead of a picture"
        encoded = cell.partition(",")[2] if cell.startswith("data:image/") else cell
        if encoded is not cell or (cell.startswith(MAGIC) and len(cell) > 64):
            try:
                return base64.b64decode(encoded, validate=True), ""
            except (binascii.Error, ValueError):
                return (None, "damaged base64") if encoded is not cell or len(cell) > 1024 else (cell, "")
    if isinstance(cell, bytes | str):
        return cell, ""
    return None, "no picture" if cell is None else "neither a picture nor a path"


def as_path(cell: str) -> str:
    """Windows' paths with our slashes."""
    return PureWindowsPath(cell).as_posix() if "\\" in cell else cell
