"""The objects of the emoji world, and how English says them: objects.csv and the rules for its words.

Contract: the file's columns, in the order in which people are likely to ask for the objects, so that its first 20, 66,
150, 300 rows are worlds inside each other:

    name     means one picture; all names, other names and plurals of the file are different
    also     other names, separated by semicolons; the Unicode name is one, as which a typed emoji is read
    plural   empty where English makes it regularly; "=" for bread and scissors, which are counted with the same word
    group    animals, food, people and so on
    icon     the picture's name in every set, empty where it is the name with dashes
    head     1 where something can be worn: the middle of its upper edge is its head
"""

import csv
import dataclasses
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("objects.csv")
IRREGULAR = {"kitty": "kitties", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "policeman": "policemen"}
IRREGULAR |= {"fireman": "firemen", "spaceman": "spacemen", "mouse": "mice", "foot": "feet", "tooth": "teeth"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Object:
    name: str
    also: tuple[str, ...]
    irregular: str  # the column plural
    group: str
    icon: str
    head: bool

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.also)

    @property
    def countable(self) -> bool:
        return self.irregular != "="

    def plural(self, name: str) -> str:
        """That of one of its names."""
        if not self.countable:
            return self.name
        return self.irregular if self.irregular and name == self.name else plural(name)

    def with_article(self, name: str) -> str:
        """Also "a bread": people say it. Not "a scissors"."""
        return article(name) if self.countable or not name.endswith("s") else name


@cache
def load(first: int | None = None) -> tuple[Object, ...]:
    """The first objects of the table, or all."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:first]
    return tuple(
        Object(
            name=row["name"],
            also=tuple(filter(None, row["also"].split(";"))),
            irregular=row["plural"],
            group=row["group"],
            icon=row["icon"] or row["name"].replace(" ", "-"),
            head=row["head"] == "1",
        )
        for row in rows
    )


def things(objects: tuple[Object, ...]) -> dict[str, list[str]]:
    """Every object with its plural, its other names and theirs, as `dalle_mini.vocabulary` has them."""
    return {
        each.name: list(dict.fromkeys([each.plural(each.name), *each.also, *map(each.plural, each.also)]))
        for each in objects
    }


def article(words: str) -> str:
    """With "a" or "an" before it."""
    vowel = words[0] in "aeiou" and not words.startswith(("uni", "ufo"))
    return f"an {words}" if vowel or words.startswith("hourglass") else f"a {words}"


def plural(name: str) -> str:
    """That of a noun, or of the first noun of "slice of pizza"."""
    head, of, rest = name.partition(" of ")
    if of:
        return plural(head) + of + rest
    *before, noun = name.split()
    if noun in IRREGULAR:
        noun = IRREGULAR[noun]
    elif noun.endswith("y") and noun[-2] not in "aeiou":
        noun = noun[:-1] + "ies"
    elif noun.endswith(("s", "x", "ch", "sh")):
        noun += "es"
    else:
        noun += "s"
    return " ".join([*before, noun])
