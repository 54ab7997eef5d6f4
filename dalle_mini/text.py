"""Prompt normalisation: str -> str, what the published models' captions went through before training.

Contract: `normalize` is a pure function (same text, same result, in every process) and takes any str. A model
sees only what this file lets through, so the rules give the original's results, odd corners included. They
run in the order of `normalize`, each on the result of the one before, and take linear time.
"""

import hashlib
import html
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path

import emoji
import ftfy
import unidecode

from vqgan.files import CheckpointError

# What one `<person>` (a name that the makers of CC12M hid) becomes, with the original's weights.
PERSONS = {"a person": 282265, "someone": 121194, "somebody": 12219}

# Stand-ins for punctuation that the rules in between would destroy. They are the original's: made of word
# characters, which later rules see (`#it's` shows it), so other words would give other results.
DOT, QUOTE, SLASH = "xtokxdotxtokx", "xtokxquotextokx", "xtokxslashxtokx"

# Single-spaced lower-case words that no rule would change, as in most training captions: ten times faster.
PLAIN_WORDS = re.compile(r"(?!.*(?:(.)\1{3}|http|xtok))[a-z0-9]+(?: [a-z0-9]+)*")


class HashtagSplitter:
    """Cuts run-together words, `happybirthday` -> `happy birthday`, into the most probable known words.

    A word costs ln(its rank by frequency), Zipf's law up to a constant; the cheapest sequence wins (dynamic
    programming over its end position).
    """

    def __init__(self, words: list[str]) -> None:
        """`words`: most frequent first."""
        self._cost = {word: math.log(rank) for rank, word in enumerate(words, start=1)}
        self._longest = max(map(len, words))

    @classmethod
    def load(cls, path: Path) -> "HashtagSplitter":
        """Reads lines of `word count`, most frequent first. Raises CheckpointError where there are none."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is not a readable word list: {error}") from error
        words = [line.split()[0] for line in lines if line.strip()]
        if not words:
            raise CheckpointError(f"{path} is not a readable word list: it is empty")
        return cls(words)

    def split(self, joined: str) -> str:
        """The words of `joined`, separated by single spaces."""
        runs = re.split(r"[^a-zA-Z0-9']+", joined)
        return " ".join(word for run in runs for word in self._reattach(self._pieces(run)))

    def _pieces(self, run: str) -> list[str]:
        lower = run.lower()
        best = [0.0]  # best[end]: cost of the cheapest words that make up run[:end]
        lengths = [0]  # and the length of the last of them
        for end in range(1, len(run) + 1):
            known = (
                (best[end - length] + self._cost[lower[end - length : end]], length)
                for length in range(1, min(end, self._longest) + 1)
                if best[end - length] < math.inf and lower[end - length : end] in self._cost
            )
            # min prefers the shorter of two equal costs; what no words make up falls into single characters.
            cost, length = min(known, default=(math.inf, 1))
            best.append(cost)
            lengths.append(length)
        pieces, end = [], len(run)
        while end:
            pieces.append(run[end - lengths[end] : end])
            end -= lengths[end]
        return pieces[::-1]

    @staticmethod
    def _reattach(pieces: list[str]) -> list[str]:
        """Undoes cuts that are none: before `'s` and inside a number. A lone `'` is dropped."""
        words: list[str] = []
        for piece in pieces:
            if piece == "'":
                continue
            if words and (piece == "'s" or (words[-1][-1].isdigit() and piece[0].isdigit())):
                words[-1] += piece
            else:
                words.append(piece)
        return words


def without_surrogates(text: str) -> str:
    """Joins surrogate pairs and replaces lone surrogates, which have no UTF-8 form, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def readable(prompt: object) -> str:
    """The prompt without surrogates. Raises ValueError where there is nothing to be seen in it."""
    text = without_surrogates(prompt) if isinstance(prompt, str) else ""
    if not any(c.isprintable() and not c.isspace() for c in text):
        raise ValueError(f"prompt must not be empty, got {prompt!r}")
    return text


def normalize(text: str, splitter: HashtagSplitter | None) -> str:
    """The text as the published models were trained on it: lower-case ASCII after one leading space.

    Without a `splitter` (a tokenizer folder that has no word list) `#word` only loses its `#`.
    A `<person>` placeholder becomes a weighted choice that depends on `text` alone (see `_choose_persons`).
    """
    if PLAIN_WORDS.fullmatch(text):
        return " " + text
    text = without_surrogates(text)
    persons = _choose_persons(text)
    text = ftfy.fix_text(text)  # mojibake, curly quotes, ligatures, full-width forms, control characters
    text = html.unescape(html.unescape(text))  # twice: scraped captions hold `&amp;amp;`
    text = unidecode.unidecode(emoji.demojize(text)).lower()  # emoji as `:name:`
    text = _replace_persons(text, persons)
    text = _drop_markup(text)
    text = _protect_inner_punctuation(text)
    text = _open_up_words(text, splitter)
    text = _unify_punctuation(text)
    return " " + _squeeze(text)


def _choose_persons(text: str) -> Iterator[str]:
    """Replacements for the first, second ... `<person>`; the original draws them at random.

    Our choice: they are seeded by a hash of the text, so an image still depends on prompt and seed alone.
    """
    digest = hashlib.sha256(text.encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    while True:
        yield rng.choices(list(PERSONS), weights=list(PERSONS.values()))[0]


def _replace_persons(text: str, persons: Iterator[str]) -> str:
    text = re.sub(r"<person>(?:(?:[\s,]|and)*<person>)+", " people ", text)  # `<person>, <person> and <person>`
    return re.sub("<person>", lambda _: f" {next(persons)} ", text)


def _drop_markup(text: str) -> str:
    """What captions scraped from web pages carry and no picture shows."""
    text = re.sub(r"^\s*\[\d+\]|\[\d+\]\s*$", "", text)  # encyclopedia references, at the ends only
    text = re.sub(r"<[^<>]+>", " ", text)  # HTML tags, and so also `2 < 3 and 5 >`
    return re.sub(r"http\S+", "", text)


def _protect_inner_punctuation(text: str) -> str:
    """Hides punctuation that carries meaning inside words and numbers; `_unify_punctuation` brings it back.

    Matches do not overlap, so of `a.b.c` and `1/2/3` only the first mark is hidden, as in the original.
    """
    for _ in range(2):  # one pass leaves every second comma of 12,345,678
        text = re.sub(r"(\d),(\d{3})", r"\1\2", text)
    text = re.sub(r"(\w)\.(\w)", rf"\1{DOT}\2", text)
    text = re.sub(r"'(s|t|d|m|ll|re|ve)\b", rf"{QUOTE}\1", text)
    return re.sub(r"(\d)/(\d)", rf"\1{SLASH}\2", text)


def _open_up_words(text: str, splitter: HashtagSplitter | None) -> str:
    """Frees the words that hyphens, symbols, hashtags and identifiers join."""
    text = re.sub(r"(\w)-(\w)", r"\1 \2", text)
    text = re.sub(r"([%&/$*])", r" \1 ", text)
    text = re.sub(r"#(\w+)", lambda tag: splitter.split(tag[1]) if splitter else tag[1], text)
    return re.sub(r"[_#\\]", " ", text)


def _unify_punctuation(text: str) -> str:
    """Every quote becomes a free-standing `"`, all other punctuation a comma; runs of either become one."""
    text = re.sub(r"['\"`]", ' " ', text)
    text = re.sub(r"[()\[\].,|:;?!=+~\-/{}]", ",", text)
    for hidden, mark in ((DOT, "."), (QUOTE, "'"), (SLASH, "/")):
        text = text.replace(hidden, mark)
    text = re.sub(r"(\D)\1{3,}", r"\1", text)  # "soooooo" but not 1111
    return re.sub(r'"(?:\s*")+', '"', text)


def _squeeze(text: str) -> str:
    text = " ".join(text.split())
    text = re.sub(r" ?,[ ,]*", ", ", text).strip()
    return text.removeprefix(",").removesuffix(",").strip()
