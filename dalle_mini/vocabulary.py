"""The words that a model was trained on, and what to tell a person whose prompt holds others.

Contract: pure text, no network. words.json lies beside the tokenizer in a model's folder, written by training:

    things    what the model draws, by name, likeliest to be asked for first, each with its other names and plurals;
              {} where nobody said what the captions are about
    words     every other word of the captions, most frequent first

Prompts and captions are compared as `text.normalize` leaves them. A name of several words is known as a whole: who has
seen "ice cream" has not seen "ice". Published models have no such file, and nothing is said about them.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple, TypeGuard

from dalle_mini import text
from dalle_mini.notes import Note
from vqgan.files import CheckpointError, read_json, write_text

FILE = "words.json"
MOST = 50_000  # words of captions that are kept; rarer ones count as never seen
NAMED = 5  # unknown words and things that a sentence names
RELATED = Path(__file__).with_name("related_words.txt")  # a line of near words each, commonest first
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
ENDINGS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""))  # of plurals, and what they stand for


class Vocabulary:
    """What one model knows; see `load` and `of`. Safe to share between threads."""

    def __init__(self, things: Mapping[str, Sequence[str]], words: Sequence[str]) -> None:
        self.things, self.words = things, words
        self._names = _Names.of(things)
        self._known = self._names.texts | set(words)

    @classmethod
    def of(cls, captions: Iterable[str], things: Mapping[str, Sequence[str]] | None = None) -> "Vocabulary":
        """From the captions that a model is trained on. `things`: their names, each with its other names."""
        names, counts = _Names.of(things or {}), Counter[str]()
        for caption in captions:
            counts.update(phrase for phrase in names.split(caption) if phrase not in names.texts)
        common = sorted(counts, key=lambda word: (-counts[word], word))[:MOST]
        return cls(things or {}, common)

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary | None":
        """That of a model's folder, or None where it has none. Raises CheckpointError for a damaged one."""
        path = folder / FILE
        if not path.exists():
            return None
        content = read_json(path)
        things, words = content.get("things"), content.get("words")
        if isinstance(things, dict) and isinstance(words, list) and all(map(_all_texts, (words, *things.values()))):
            return cls(things, words)
        raise CheckpointError(f"{path} must hold things, names with lists of names, and words, a list of words")

    def save(self, folder: Path) -> None:
        content = {"things": self.things, "words": self.words}
        write_text(folder / FILE, json.dumps(content, indent=1) + "\n")

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that the model was never trained on, in their order, each once.

        A plural or possessive is known if what it is made from is.
        """
        phrases = self._names.split(prompt)
        return list(dict.fromkeys(phrase for phrase in phrases if self._known.isdisjoint(forms(phrase))))

    def nearest(self, word: str) -> str | None:
        """The known word that means something like `word`, or else is spelled like it, if there is one."""
        for form in forms(word):
            if form in _related():  # a word of its own, not a misspelled one
                return next((other for other in _related()[form] if other in self._known), None)
        alike = [known for known in self._by_initial.get(word[0], ()) if abs(len(known) - len(word)) <= 2]
        return next(iter(difflib.get_close_matches(word, alike, n=1, cutoff=0.8)), None)

    def notes(self, prompt: str) -> list[Note]:
        """A sentence for people about the unknown words of a prompt; none if there are none."""
        unknown = self.unknown(prompt)
        if not unknown:
            return []
        named = [(word, self.nearest(word)) for word in unknown[:NAMED]]
        facts = {"unknown": named, "more": len(unknown) - len(named)}
        if not self.things:
            return [Note("unknown-words", known=f"{len(self.words):,}", **facts)]
        return [Note("unknown", known=f"{len(self.things):,}", such=", ".join(list(self.things)[:NAMED]), **facts)]

    @cached_property
    def _by_initial(self) -> dict[str, list[str]]:
        words: dict[str, list[str]] = {}
        for word in sorted(self._known):
            if len(word) > 3:  # shorter ones are alike by chance
                words.setdefault(word[0], []).append(word)
        return words


class _Names(NamedTuple):
    """The names of all things, and how many words the longest has."""

    texts: set[str]
    longest: int

    @classmethod
    def of(cls, things: Mapping[str, Sequence[str]]) -> "_Names":
        texts = {name for thing, others in things.items() for name in (thing, *others)}
        return cls(texts, max((len(name.split()) for name in texts), default=1))

    def split(self, prompt: str) -> Iterator[str]:
        """The prompt in words, but a name of a thing in one piece, the longest where there are several."""
        words = WORD.findall(text.normalize(prompt.strip(), None))  # stripped, most need no rule
        at = 0
        while at < len(words):
            sizes = range(min(self.longest, len(words) - at), 1, -1)
            found = (" ".join(words[at : at + size]) for size in sizes)
            phrase = next((phrase for phrase in found if phrase in self.texts), words[at])
            yield phrase
            at += len(phrase.split())


def forms(word: str) -> list[str]:
    """The word, and what it may be the plural or possessive of."""
    bare = word.partition("'")[0]
    return [word, bare, *(bare.removesuffix(end) + stem for end, stem in ENDINGS if bare.endswith(end))]


@cache
def _related() -> dict[str, list[str]]:
    """Of every word of the table the others of its line; a word that is in several lines has those of the first."""
    related: dict[str, list[str]] = {}
    for line in RELATED.read_text(encoding="utf-8").splitlines():
        words = line.split()
        for word in words:
            related.setdefault(word, [other for other in words if other != word])
    return related


def _all_texts(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
