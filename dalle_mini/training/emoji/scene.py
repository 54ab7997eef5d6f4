"""What the emoji worlds share: scenes, what is held out of training, and what a task asks of a world.

There are two: world.py, which the embedded model is trained on, and scenes.py, the larger one. Both place sprites on
whole cells of the code grid, so that one object means the same codes wherever it is.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8

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
    """`others` are the layouts that the caption allows, too: in another place, with the same objects."""

    kind: str
    sprites: tuple[Sprite, ...]
    background: str
    caption: str
    names_background: bool
    style: str = ""
    names_style: bool = False
    others: tuple[tuple[Sprite, ...], ...] = ()


class EmojiWorld(Protocol):
    """Everything it draws is a function of a numpy Generator."""

    resolution: int
    names: tuple[str, ...]  # of the objects, likeliest to be asked for first
    styles: tuple[str, ...]
    backgrounds: dict[str, tuple[int, int, int]]
    fewest: int  # names that `draw` can do with

    def __hash__(self) -> int: ...

    def draw(self, rng: np.random.Generator, names: Sequence[str] = ()) -> Scene:
        """A scene of training, of these objects or of any."""

    def draw_held(self, rng: np.random.Generator) -> Scene:
        """A scene that training never shows, because of one kind of combination."""

    def example(self, rng: np.random.Generator) -> Scene:
        """A scene for the text-to-code network to learn from."""

    def full(self, rng: np.random.Generator) -> Scene:
        """A scene for a decoder to learn from."""

    def near_miss(self, rng: np.random.Generator, scene: Scene) -> Scene | None:
        """A scene that looks like this one and is wrong for its caption; None to spoil one of its objects instead."""

    def bare(self, name: str) -> Scene:
        """An object whose caption says nothing else."""

    def blocks(self) -> list[Block]:
        """All that there are."""

    def alone(self, name: str, style: str, size: int) -> list[Scene]:
        """An object by itself, as training may show it: over many backgrounds, in the places it can have."""

    def sprite(self, name: str, style: str, size: int) -> Float32[np.ndarray, "S S 4"]:
        """Colour premultiplied by alpha, all in [0, 1]."""

    def paint(self, scene: Scene) -> UInt8[np.ndarray, "H W 3"]: ...

    def things(self) -> dict[str, list[str]]:
        """Every object with its other names and all plurals, as `dalle_mini.vocabulary` has them."""


def held_out(kind: str, *names: str) -> bool:
    """Whether a combination is kept for testing: kind is pair, background, count or style."""
    return zlib.crc32(":".join((kind, *sorted(names))).encode()) % 10 == 0
