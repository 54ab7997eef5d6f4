"""Bytes to text, in the encoding that they tell.

Contract: a byte order mark decides; else UTF-8, if all of it is; else UTF-16 by its zeros; else charset-normalizer,
asked for the encodings that people's tables have. Who reads text as anything but UTF-8 or by a mark is told so. What is
left open is refused: nobody trains on letters that were not written. A file whose lines are UTF-8 for the most part is
UTF-8 with damaged lines, which come with surrogates in them.
"""

import codecs
import re
from collections.abc import Iterable
from typing import NamedTuple

from dalle_mini.training.optional_packages import optional

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LATIN = ("cp1252", "cp1250", "cp1254")  # of equally good ones the first: Excel's in most of Europe
OTHERS = ("cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "cp932", "euc_jp", "gb18030", "big5", "cp949")
SAMPLE = 2**15  # bytes of lines that are not ASCII, for the detector


class Encoding(NamedTuple):
    name: str
    errors: str = "strict"
    note: str = ""  # for the report, where it was guessed


class EncodingError(ValueError):
    """No one encoding that these bytes could be in."""


def decode(content: bytes) -> tuple[str, str]:
    """Text, and a note for the report if its encoding was guessed. Raises EncodingError."""
    encoding = encoding_of([content])
    try:
        return content.decode(encoding.name), encoding.note
    except UnicodeDecodeError as error:
        raise EncodingError(f"it is no {encoding.name}: {error.reason}") from None


def encoding_of(chunks: Iterable[bytes]) -> Encoding:
    """Of a whole file, read once, part by part. Raises EncodingError."""
    scan = _Scan()
    for chunk in chunks:
        scan.feed(chunk)
        if scan.mark:
            # Of what was cut in the middle of a character, the rest is still read.
            return Encoding(scan.mark, "surrogateescape" if scan.mark == "utf-8-sig" else "replace")
    return scan.encoding()


class _Scan:
    """What the lines of a file say about its encoding."""

    def __init__(self) -> None:
        self.mark = ""
        self._first = b""
        self._rest = b""  # of a line that goes on in the next chunk
        self._good = self._bad = 0  # lines that are not ASCII, and UTF-8 or not
        self._sample = bytearray()

    def feed(self, chunk: bytes) -> None:
        if not self._first:
            self._first = chunk[:4096]
            self.mark = next((name for mark, name in MARKS if chunk.startswith(mark)), "")
        if not (chunk.isascii() and self._rest.isascii()):
            lines = (self._rest + chunk).split(b"\n")
            self._rest = lines.pop()
            for line in lines:
                self._line(line)
        else:
            self._rest = chunk[chunk.rfind(b"\n") + 1 :]

    def _line(self, line: bytes) -> None:
        if line.isascii():
            return
        try:
            line.decode()
            self._good += 1
        except UnicodeDecodeError:
            self._bad += 1
            self._sample += line[: SAMPLE - len(self._sample)]

    def encoding(self) -> Encoding:
        self._line(self._rest)
        self._rest = b""
        if wide := _wide(self._first):
            return Encoding(wide, "replace", f"read as {wide}")
        if not self._bad:
            return Encoding("utf-8")
        if self._good > self._bad:
            return Encoding("utf-8", "surrogateescape")
        name = _guess(bytes(self._sample))
        return Encoding(name, "surrogateescape", f"read as {name}")


def _wide(first: bytes) -> str:
    """UTF-16 without a mark: every other byte of what is mostly ASCII is zero."""
    pairs = len(first) // 2
    if pairs and first[1 : 2 * pairs : 2].count(0) > pairs / 2 > 2 * first[: 2 * pairs : 2].count(0):
        return "utf-16-le"
    if pairs and first[: 2 * pairs : 2].count(0) > pairs / 2 > 2 * first[1 : 2 * pairs : 2].count(0):
        return "utf-16-be"
    return ""


def _guess(sample: bytes) -> str:
    runs = re.findall(rb"[\x80-\xff]+", sample)
    foreign = (
        sum(len(run) for run in runs if len(run) > 2) > sum(map(len, runs)) / 2
    )  # Latin has accents here and there
    names = OTHERS if foreign else LATIN
    matches = optional("charset_normalizer", "to read text that is not UTF-8").from_bytes(
        sample, cp_isolation=list(names), threshold=0.3, enable_fallback=False
    )
    found = [
        (round(match.chaos - match.coherence * (names is OTHERS), 2), names.index(name))
        for match in matches
        for name in match.could_be_from_charset
        if name in names
    ]
    found.sort()
    if not found or (names is OTHERS and len(found) > 1 and found[1][0] - found[0][0] < 0.05):
        raise EncodingError("its text is neither UTF-8 nor plainly in another encoding")
    return names[found[0][1]]
