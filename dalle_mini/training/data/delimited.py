"""Tables of lines and separators, whoever wrote them: CSV, TSV and their relatives.

Contract: encoding, line ends, separator and quotes are decided on the whole file before the first row is used. The
separator is the one under which the header has columns that we know; a file without a header is told by the names of
pictures in it. Of the ways to quote ("doubled", "with \\" before it", 'single', none) the first one is taken under
which the fewest rows have too many or too few cells or no picture in the picture's column. A line that still fits in no
way, such as one with a quote that never closes, is refused by its number; the next line is read again from its start.
"""

import csv
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from dalle_mini.training.data.names import ADDRESS, Columns, named_like_a_picture, unnumbered
from dalle_mini.training.data.texts import Encoding, encoding_of

SEPARATORS = (",", "\t", ";", "|")
NONE = "\x1f"  # between the cells of a table of one column
LONGEST = 100, 10**6  # lines and characters of one row: beyond, its quote never closes
BLOCK = 2**20  # bytes
# Inside of quotes and of lines with a carriage return in them; csv takes either for the end of a row.
NEWLINE, RETURN = "\ue00a", "\ue00d"
OPEN, ODD, MANY = "quote that never closes", "quotes that do not fit", "more cells than columns"


class Quotes(NamedTuple):
    quote: str = ""  # none
    escape: str = ""  # a quote inside is doubled


class Line(NamedTuple):
    """A row by its column, or a problem; number: of its first line, from 1."""

    number: int
    cells: dict[str, str]
    problem: str = ""
    note: str = ""


class Delimited(NamedTuple):
    path: Path
    encoding: Encoding
    newline: str
    separator: str
    quotes: Quotes
    names: list[str]  # of the columns
    skipped: int  # lines before the first row

    @classmethod
    def of(cls, path: Path) -> "Delimited":
        """Raises EncodingError."""
        with path.open("rb") as file:
            encoding = encoding_of(iter(lambda: file.read(BLOCK), b""))
        table = cls(path, encoding, _newline(path, encoding), ",", Quotes(), [], 0)
        order = ("\t", ",", ";", "|") if path.suffix.lower() in (".tsv", ".tab") else SEPARATORS
        return _with_quotes(_with_header(table, order))

    def lines(self) -> Iterator[tuple[int, str]]:
        encoding = self.encoding
        with self.path.open(encoding=encoding.name, errors=encoding.errors, newline=self.newline) as text:
            for number, line in enumerate(text, 1):
                line = line.removesuffix(self.newline)
                yield number, line.removesuffix("\r") if self.newline == "\n" else line

    def rows(self) -> Iterator[Line]:
        columns = Columns.of(self.names)
        for number, cells in _records(islice(self.lines(), self.skipped, None), self.separator, self.quotes):
            yield self._row(number, cells, columns) if isinstance(cells, list) else Line(number, {}, cells)

    def _row(self, number: int, cells: list[str], columns: Columns) -> Line:
        if len(cells) > len(self.names):
            cells = self._trimmed(cells)
        note = self.encoding.note
        if len(cells) > len(self.names):
            cells = self._joined(cells, columns)
            note = "separators inside a caption without quotes"
        if len(cells) > len(self.names):
            return Line(number, {}, MANY)
        if any("\udc80" <= character <= "\udcff" for cell in cells if not cell.isascii() for character in cell):
            return Line(number, {}, "not UTF-8" if self.encoding.name == "utf-8" else f"not {self.encoding.name}")
        return Line(number, dict(zip(self.names, cells, strict=False)), note=note)

    def _trimmed(self, cells: list[str]) -> list[str]:
        while len(cells) > len(self.names) and not cells[-1].strip():
            cells = cells[:-1]
        return cells

    def _joined(self, cells: list[str], columns: Columns) -> list[str]:
        """Too many cells, where only the caption can have been cut, and where the picture is in its place."""
        names, more = self.names, len(cells) - len(self.names)
        if len(columns.captions) != 1 or columns.picture is None or any('"' in cell for cell in cells):
            return cells
        place = names.index(columns.captions[0])
        if place != len(names) - 1 and len(names) != 2:
            return cells
        whole = [*cells[:place], self.separator.join(cells[place : place + more + 1]), *cells[place + more + 1 :]]
        return whole if named_like_a_picture(whole[names.index(columns.picture)]) else cells


def _newline(path: Path, encoding: Encoding) -> str:
    """What ends the header: a lone carriage return, as on old Macs, or a line feed, with or without one before it."""
    with path.open(encoding=encoding.name, errors=encoding.errors, newline="") as text:
        start = text.read(BLOCK)
    end = re.search(r"\r\n|\n|\r", start)
    return "\r" if end and end[0] == "\r" else "\n"


def _with_header(table: Delimited, order: tuple[str, ...]) -> Delimited:
    """With the separator and the quotes under which the first line has the most columns that we know."""
    start = [(number, line) for number, line in islice(table.lines(), 50) if line.strip()]
    if start and (given := re.fullmatch(r"sep=(.)", start[0][1].strip())):  # as Excel writes it for itself
        order, start = (given[1],), start[1:]
    if not start:
        return table
    skipped, header = start[0]
    likely = max(order, key=header.count)
    names = [name.strip() for name in header.split(likely)]
    best, most = table._replace(separator=likely, names=names, skipped=skipped), 0
    for separator in order:
        for quote in '"', "'":
            cells = _cells(header, separator, Quotes(quote))
            names = [cell.strip() for cell in cells] if isinstance(cells, list) else []
            columns = Columns.of(names)
            known = 2 * bool(columns.picture) + bool(columns.captions)
            if known > most:
                separator = separator if len(names) > 1 else NONE
                best, most = best._replace(separator=separator, quotes=Quotes(quote), names=names), known
    if most >= 2 or not any(named_like_a_picture(part) for part in re.split(r"[,\t;|\"'#]", header)):
        return best
    return _without_header(best._replace(skipped=skipped - 1), [line for _, line in start], order)


def _without_header(table: Delimited, lines: list[str], order: tuple[str, ...]) -> Delimited:
    """Columns told by what is in them: names of pictures, and the texts with the most words."""
    for separator in (*order, NONE):
        rows = [cells for line in lines if isinstance(cells := _cells(line, separator, Quotes('"')), list)]
        width = min(map(len, rows), default=0)
        pictures = [n for n in range(width) if all(named_like_a_picture(unnumbered(row[n])) for row in rows)]
        if len(pictures) == 1 and (width > 1 or separator == NONE):
            words = {n: sum(len(row[n].split()) for row in rows) for n in range(width) if n != pictures[0]}
            caption = max(words, key=lambda n: words[n], default=None)
            names = [
                "image" if n == pictures[0] else "caption" if n == caption else f"column {n}" for n in range(width)
            ]
            return table._replace(separator=separator, names=names, quotes=Quotes('"'))
    return table


def _with_quotes(table: Delimited) -> Delimited:
    """With the first way of quoting under which the fewest rows are bad, of those whose signs are in the file."""
    signs = _signs(table)
    ways = [Quotes('"')] if '"' in signs else []
    ways += [Quotes('"', "\\")] if '\\"' in signs else []
    ways += [Quotes("'")] if "'" in signs else []
    if table.quotes.quote == "'":
        ways.reverse()
    ways.append(Quotes())
    best, fewest = ways[0], sys.maxsize
    for way in ways:
        if len(ways) > 1 and (bad := _bad_rows(table._replace(quotes=way), fewest)) < fewest:
            best, fewest = way, bad
    return table._replace(quotes=best)


def _signs(table: Delimited) -> set[str]:
    signs = set()
    beginning = re.compile(rf"(?:^|{re.escape(table.separator)})\s*'")
    for _, line in table.lines():
        if '"' in line:
            signs |= {'"', '\\"'} if '\\"' in line else {'"'}
        if "'" in line and beginning.search(line):
            signs.add("'")
    return signs


def _bad_rows(table: Delimited, enough: int) -> int:
    picture = Columns.of(table.names).picture
    first, bad = None, 0
    for row in table.rows():
        cell = row.cells.get(picture or "", "")
        shape = (named_like_a_picture(unnumbered(cell)), bool(ADDRESS.match(cell)), bool(cell.strip()))
        first = first or shape
        bad += bool(row.problem) or len(row.cells) != len(table.names) or (picture is not None and shape != first)
        if bad >= enough:
            break
    return bad


def _records(lines: Iterator[tuple[int, str]], separator: str, quotes: Quotes) -> Iterator[tuple[int, list[str] | str]]:
    """Cells, or a problem, of what may be several lines."""
    again: deque[tuple[int, str]] = deque()

    def take() -> tuple[int, str] | None:
        return again.popleft() if again else next(lines, None)

    while (first := take()) is not None:
        number, line = first
        if not line.strip():
            continue
        cells = _cells(line, separator, quotes)
        if cells == OPEN:
            cells, used = _closed(line, take, lambda text: _cells(text, separator, quotes), quotes.quote)
            if isinstance(cells, str) or _swallowed(cells, separator):
                cells = OPEN
                again.extendleft(reversed(used))
        yield number, cells


def _closed(
    line: str, take: Callable[[], tuple[int, str] | None], cells_of: Callable[[str], list[str] | str], quote: str
) -> tuple[list[str] | str, list[tuple[int, str]]]:
    """The cells of a row that goes on in the next lines, and these lines."""
    used: list[tuple[int, str]] = []
    text = line
    while len(used) < LONGEST[0] and len(text) < LONGEST[1] and (more := take()) is not None:
        used.append(more)
        text += NEWLINE + more[1]
        if quote in more[1] and (cells := cells_of(text)) != OPEN:
            return cells, used
    return OPEN, used


def _swallowed(cells: list[str], separator: str) -> bool:
    """Whether a cell of several lines has what looks like another row's picture in it."""
    parts = [part for cell in cells if "\n" in cell for line in cell.split("\n") for part in line.split(separator)]
    return any(named_like_a_picture(part.strip("\"'")) or ADDRESS.match(part.strip()) for part in parts)


def _cells(text: str, separator: str, quotes: Quotes) -> list[str] | str:
    """Of one row, or what is wrong with its quotes."""
    if not quotes.quote or quotes.quote not in text:
        return text.split(separator)
    csv.field_size_limit(sys.maxsize)  # a picture in base64 is longer than csv's own limit
    reader = csv.reader(
        [text.replace("\r", RETURN)],
        delimiter=separator,
        quotechar=quotes.quote,
        escapechar=quotes.escape or None,
        doublequote=not quotes.escape,
        skipinitialspace=separator != "\t" and separator + " " + quotes.quote in text,
        strict=True,
    )
    try:
        return [cell.replace(NEWLINE, "\n").replace(RETURN, "\r") for cell in next(reader, [])]
    except csv.Error as error:
        return OPEN if "unexpected end" in str(error) else ODD
