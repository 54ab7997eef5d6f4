"""The files of a folder: all of them once, what is hidden and what belongs to another split apart.

Contract: links are followed, and a folder that several lead to is read once. Of a folder with a split "train", whose
name is that of a folder or a table, the other splits are passed over; of a folder without one, nothing is. A path in a
table is looked for beside the table, then by the longest end of it that only one picture of the source has.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dalle_mini.training.data.names import as_path, split_of, suffix_of
from dalle_mini.training.data.records import TABLES
from dalle_mini.training.data.rows import Row

TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


class Found(NamedTuple):
    """Paths in one fixed order."""

    root: Path
    pictures: list[Path]
    tars: list[Path]
    others: list[Path]
    passed_over: list[Row]

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def find_files(root: Path) -> Found:
    paths: list[Path] = []
    passed: list[Path] = []
    for path in sorted(_walk(root, set())):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
        (passed if hidden else paths).append(path)
    rows = [pass_over(path.relative_to(root).as_posix(), "hidden") for path in passed]
    splits = {path: _split(path.relative_to(root)) for path in paths}
    if "train" in splits.values():
        rows += [
            pass_over(path.relative_to(root).as_posix(), "other split") for path in paths if splits[path] == "other"
        ]
        paths = [path for path in paths if splits[path] != "other"]
    found = Found(root, [], [], [], rows)
    for path in paths:
        kind = found.pictures if suffix_of(path.name) else found.tars if is_tar(path) else found.others
        kind.append(path)
    return found


def is_tar(path: Path) -> bool:
    return path.name.lower().endswith(TARS)


def pass_over(name: str, why: str) -> Row:
    return Row(name, None, None, why, passed_over=True)


def _split(name: Path) -> str:
    """Names of pictures and of their captions say nothing of it: "test.jpg" may show one."""
    of_many = is_tar(name) or (name.suffix.lower() in TABLES and name.suffix.lower() != ".txt")
    return split_of(*name.parts) if of_many else split_of(*name.parts[:-1])


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        entries = list(os.scandir(folder))
    except OSError:  # a link to nowhere, or not ours to read
        return
    for entry in sorted(entries, key=lambda entry: entry.is_symlink()):  # what is there before what leads there
        path = folder / entry.name
        if entry.is_dir():
            yield from _walk(path, seen)
        else:
            yield path


class Finder:
    """Pictures by what tables call them."""

    def __init__(self, folder: Path, pictures: Sequence[Path] | None = None) -> None:
        """pictures: all that a name may mean beside what is in `folder`; by default, those under it."""
        self._folder = folder
        self._pictures = pictures
        self._by_name: defaultdict[str, list[tuple[str, ...]]] | None = None

    def find(self, cell: str) -> tuple[Path, str]:
        """A path, and a problem if several pictures could be meant. One that is nowhere is one beside the table."""
        beside = self._folder / cell
        try:
            if os.path.lexists(beside) and not beside.is_dir():
                return beside, ""
        except (OSError, ValueError):  # a name that no file can have
            return beside, ""
        parts = [part for part in as_path(cell).lower().split("/") if part not in ("", ".", "..")]
        candidates = self._index()[parts[-1]] if parts else []
        for length in range(1, len(parts) + 1):
            closer = [
                path for path in candidates if tuple(part.lower() for part in path[-length:]) == tuple(parts[-length:])
            ]
            if not closer:
                break
            candidates = closer
        if not candidates:
            return self._folder / as_path(cell), ""
        return Path(*candidates[0]), "" if len(candidates) == 1 else "path that several pictures have"

    def _index(self) -> defaultdict[str, list[tuple[str, ...]]]:
        """By name, and by name without suffix, as identifiers are written."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for path in self._pictures if self._pictures is not None else find_files(self._folder).pictures:
                for name in {path.name.lower(), path.stem.lower()}:
                    self._by_name[name].append(path.parts)
        return self._by_name
