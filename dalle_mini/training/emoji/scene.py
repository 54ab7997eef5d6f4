"""Scenes of the emoji world, and what is held out of training.

Sprites stand on whole cells of the code grid, so that one object means the same codes wherever it is.
"""

import dataclasses
import zlib

GRID = 8  # cells along a side
Block = tuple[str, str, int]  # an object's name, its style and its cells along a side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sprite:
    """One object in a scene; `size`, `row` and `column` count cells of the grid."""

    name: str
    size: int
    row: int
    column: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """`others` are the layouts that the caption allows, too: in another place, with the same objects.

    look: the word by which the caption names the style, "" where it names none.
    """

    kind: str
    sprites: tuple[Sprite, ...]
    background: str
    caption: str
    names_background: bool
    style: str = ""
    look: str = ""
    others: tuple[tuple[Sprite, ...], ...] = ()

    def alone(self, number: int) -> "Scene":
        """With one of its objects, where it stands."""
        return dataclasses.replace(self, sprites=(self.sprites[number],))

    @property
    def names_style(self) -> bool:
        return bool(self.look)


def held_out(kind: str, *names: str) -> bool:
    """Whether a combination is kept for testing: kind is pair, background, count or style."""
    return zlib.crc32(":".join((kind, *sorted(names))).encode()) % 10 == 0
