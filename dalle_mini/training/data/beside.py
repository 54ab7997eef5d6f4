"""Captions in files beside the pictures, under the same name: texts, a caption a line, and JSON.

Contract: of cat.txt, cat.caption and cat.json (in any case, or called cat.jpg.txt), the first that says something has
the captions. What has no file beside it may have one under the same name in another folder, as data sets that keep
texts and images apart have them, if both are the only ones of that name.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from dalle_mini.training.data.found import Found, pass_over
from dalle_mini.training.data.names import CAPTIONS, captions_of
from dalle_mini.training.data.records import TABLES
from dalle_mini.training.data.rows import Row
from dalle_mini.training.data.texts import EncodingError, decode


def folder_rows(found: Found, taken: frozenset[Path], *, captioned: bool, listed: bool) -> Iterator[Row]:
    """Of the pictures that are not in `taken`, and what is left of the other files.

    listed: where tables say what belongs to the source, a picture without a caption beside it does not.
    """
    files = {_plain(path): path for path in found.others if path.suffix.lower() in CAPTIONS}
    used: set[Path] = set()
    pictures = [path for path in found.pictures if path not in taken]
    stems = _only_ones(pictures)
    named = {_plain(path.with_name(name)) for path in pictures for name in (path.name, path.stem)}
    orphans = _only_ones([path for path in files.values() if _plain(path.with_name(path.stem)) not in named])
    for path in pictures:
        beside = {
            suffix: file
            for suffix in CAPTIONS
            for name in (path.name + suffix, path.stem + suffix)
            if (file := files.get(_plain(path.with_name(name))))
        }
        stem = path.stem.lower()
        if not beside and stem in stems and stem in orphans:
            beside = {orphans[stem].suffix.lower(): orphans[stem]}
        used |= set(beside.values())
        if listed and not (beside and captioned):
            yield pass_over(found.name(path), "picture that no table names")
            continue
        texts = {suffix: _content(file) for suffix, file in beside.items()} if captioned else {}
        yield from caption_rows(Row(found.name(path), None, path), texts, captioned=captioned)
    left = [path for path in found.others if path not in used and path not in taken]
    pictures = [path for path in found.pictures if left and path in taken]
    described = {_plain(path.with_name(name)) for path in pictures for name in (path.name, path.stem)}
    for path in left:
        said = _plain(path.with_name(path.stem)) in described
        yield pass_over(found.name(path), "captions that a table says instead" if said else _unused(path))


def caption_rows(row: Row, texts: Mapping[str, bytes], *, captioned: bool) -> Iterator[Row]:
    """A row for each caption in `texts`, which are the contents of files by suffix."""
    if not captioned:
        yield row._replace(caption="not needed")
        return
    problem = ""
    for suffix in CAPTIONS:
        try:
            captions, note = _captions(texts.get(suffix, b""), suffix)
        except EncodingError:
            problem = "caption in an unknown encoding"
            continue
        except (ValueError, RecursionError):
            problem = problem or f"damaged {suffix}"
            continue
        if captions:
            yield from (row._replace(caption=caption, note=row.note or note) for caption in captions)
            return
    yield row._replace(problem=row.problem or problem)


def _captions(content: bytes, suffix: str) -> tuple[list[str], str]:
    if not content:
        return [], ""
    text, note = decode(content)
    if suffix == ".json":
        values = json.loads(text) if text.strip() else None
        with suppress(ValueError):  # it is about something else
            return captions_of(values), note
        return [], note
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    return list(dict.fromkeys(line for line in lines if line)), note


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _plain(path: Path) -> str:
    return str(path.parent / path.name.lower())


def _only_ones(paths: list[Path]) -> dict[str, Path]:
    """By name without suffix, in lower case, those whose is no other's."""
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_stem[path.stem.lower()].append(path)
    return {stem: some[0] for stem, some in by_stem.items() if len(some) == 1}


def _unused(path: Path) -> str:
    if path.suffix.lower() in TABLES and path.suffix.lower() not in CAPTIONS:
        return "table without pictures or captions"
    if path.suffix.lower() in CAPTIONS:
        return f"{path.suffix.lower()} without a picture"
    return f"other suffix {path.suffix.lower() or '(none)'}"
