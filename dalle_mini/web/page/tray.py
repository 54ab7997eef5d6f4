"""What I can draw: the things a model knows, to be tapped to a sentence, and what it does not know of a prompt.

Only for models that list their words (dalle_mini/vocabulary.py).
"""

from collections.abc import Sequence
from typing import Any

import emoji

from dalle_mini.vocabulary import Vocabulary, forms
from dalle_mini.web.page import gr
from dalle_mini.web.page.drawing import OWN, Page
from dalle_mini.web.page.part import part

MOST = 500  # things that are shown
# What stands before a thing, and what after it; shown where a model knows all of its words.
BEFORE = ("two", "three", "four", "tiny", "small", "big", "huge")
BETWEEN = ("left of", "right of", "above", "under", "and")
COLOURS = ("a white", "a yellow", "a blue", "a green", "a pink", "a purple", "a red", "an orange", "a black")
AFTER = tuple(f"on {colour} background" for colour in COLOURS)


def tray(vocabulary: Vocabulary | None) -> gr.HTML:
    return part("tray", {"known": known(vocabulary) if vocabulary else None})


def known(vocabulary: Vocabulary) -> dict[str, Any]:
    """For the script: things as [name, plural, picture], and the words around them."""
    words = set(vocabulary.words)
    named = list(vocabulary.things.items())[:MOST]
    things = [[name, plural(name, others), picture(name, *others)] for name, others in named]
    around = {"before": BEFORE, "between": BETWEEN, "after": AFTER}
    return {"things": things} | {
        place: [phrase for phrase in phrases if words.issuperset(phrase.split())] for place, phrases in around.items()
    }


def plural(name: str, others: Sequence[str]) -> str:
    return next((other for other in others if name in forms(other)), others[0] if others else name)


def picture(*names: str) -> str:
    """The emoji of the first of these names that is one's, or nothing."""
    found = (emoji.emojize(f":{name.replace(' ', '_')}:", language="alias") for name in names)
    return next(filter(emoji.is_emoji, found), "")


def connect_tray(page: Page, shown: gr.HTML, vocabulary: Vocabulary | None) -> None:
    """While somebody types: the script asks when they pause."""

    def look(prompt: str | None) -> dict[str, Any]:
        notes = vocabulary.notes(prompt or "") if vocabulary else []
        return {"prompt": prompt, "notes": [note.to_dict() for note in notes]}

    shown.typed(look, page.prompt, shown, queue=False, trigger_mode="always_last", **OWN)
