"""The emoji world: captioned scenes of the objects of objects.csv in the styles of an atlas.

Contract: everything is a function of a numpy Generator. What a caption does not name (style, background, place, size)
is drawn at random, in equal shares, so that one caption has many right pictures. A sprite stands on whole cells of the
code grid and overlaps no other. Every tenth pair of objects, object on a background and object in a number is held out,
and so is every tenth object beside the first word of each style: of all, or its name would stand for the other style.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from dalle_mini.training.emoji.atlas import STYLES, Atlas, fit
from dalle_mini.training.emoji.config import WorldConfig
from dalle_mini.training.emoji.objects import article, things
from dalle_mini.training.emoji.scene import GRID, Block, Scene, Sprite, held_out

Item = TypeVar("Item")

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "yellow": (255, 226, 110),
    "blue": (118, 180, 255),
    "green": (140, 214, 132),
    "pink": (255, 160, 196),
    "purple": (176, 140, 250),
    "red": (232, 72, 72),
    "orange": (255, 164, 66),
    "black": (24, 24, 28),
}
COLOURS = tuple(BACKGROUNDS)
WORN, SMALL, NORMAL, HUGE = 2, 4, 6, 8  # cells along a side of a sprite
SIZE_WORDS = {SMALL: ("small", "tiny", "little"), NORMAL: ("",), HUGE: ("big", "huge", "giant", "large")}
CENTRES = {  # (row, column) of the upper left cell of every sprite
    "left": ((2, 0), (2, 4)),
    "right": ((2, 4), (2, 0)),
    "above": ((0, 2), (4, 2)),
    "below": ((4, 2), (0, 2)),
}
ROWS = {  # two, three and four, as one reads; a third stands between the others, above or below them
    2: (((2, 0), (2, 4)),),
    3: (((0, 2), (4, 0), (4, 4)), ((0, 0), (0, 4), (4, 2))),
    4: (((0, 0), (0, 4), (4, 0), (4, 4)),),
}
BETWEEN = (((0, 2), (4, 0), (4, 4)), ((4, 2), (0, 0), (0, 4)))
PLACES = {  # of the sprites of each size, all that there are
    WORN: ((0, 3),),
    SMALL: tuple(sorted({(2, 2), *(place for some in (*CENTRES.values(), *ROWS[3], *ROWS[4]) for place in some)})),
    NORMAL: ((1, 1), (2, 1)),
    HUGE: ((0, 0),),
}
RELATIONS = {  # phrase: the places it allows
    "left of": ("left",), "to the left of": ("left",), "on the left of": ("left",),
    "right of": ("right",), "to the right of": ("right",), "on the right of": ("right",),
    "above": ("above",), "over": ("above",), "on top of": ("above",), "on": ("above",),
    "below": ("below",), "under": ("below",), "beneath": ("below",),
    "and": ("left", "right"), "next to": ("left", "right"), "beside": ("left", "right"), "with": ("left", "right"),
}  # fmt: skip
# What leaves the side open takes longest to learn (which object is there already?), and is said twice as often.
SAID = (*RELATIONS, *(phrase for phrase, places in RELATIONS.items() if len(places) > 1))
NUMBERS = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
PREFIXES = ("", "", "", "", "a picture of", "a drawing of", "an emoji of", "an image of", "a painting of")
STYLE_PHRASES = ("in {} style", "in a {} style")
BACKGROUND_PHRASES = ("on {a} background", "on {colour}", "with {a} background", "in front of {a} background")
HATS = ("hat", "crown", "cap", "graduation cap")
HELD = ("pair", "background", "count", "style")
KINDS = {"single": 0.22, "pair": 0.32, "count": 0.11, "list": 0.2, "between": 0.1, "wearing": 0.05}


def _held_in(scene: Scene) -> set[str]:
    """The kinds of held-out combinations in a scene."""
    names = [sprite.name for sprite in scene.sprites]
    found = {"background"} if any(held_out("background", name, scene.background) for name in names) else set()
    if scene.look == STYLES[scene.style][0] and any(held_out("style", name) for name in names):
        found.add("style")
    if scene.kind == "count":
        return found | ({"count"} if held_out("count", names[0], str(len(names))) else set())
    pairs = ((one, other) for i, one in enumerate(names) for other in names[i + 1 :])
    return found | ({"pair"} if any(held_out("pair", *pair) for pair in pairs) else set())


class World:
    """Draws scenes of an atlas's objects and paints them at `resolution` pixels, a multiple of the grid."""

    backgrounds, fewest = BACKGROUNDS, 4

    def __init__(self, atlas: Atlas, resolution: int) -> None:
        self.resolution, self.objects = resolution, {each.name: each for each in atlas.objects}
        self._atlas, self._row = atlas, {each.name: i for i, each in enumerate(atlas.objects)}
        self.names, self.styles = tuple(self.objects), atlas.styles
        self._heads = [each.name for each in atlas.objects if each.head]
        self._hats = [name for name in HATS if name in self.objects]
        some = any(held_out("style", name) for name in self.names)  # of few objects there may be none
        self._held = tuple(kind for kind in HELD if some or kind != "style")
        kinds = KINDS if self._hats else {kind: share for kind, share in KINDS.items() if kind != "wearing"}
        self._kinds, shares = tuple(kinds), np.array(list(kinds.values()))
        self._shares = (shares / shares.sum()).cumsum()
        self.sprite = lru_cache(maxsize=None)(self._sprite)

    @classmethod
    def open(cls, config: WorldConfig, resolution: int) -> "World":
        """Of a recipe, at `resolution` pixels. Raises ValueError or FileNotFoundError for an atlas that is none."""
        return cls(Atlas.load(Path(config.atlas), config.first, config.styles), resolution)

    # Scenes and captions ------------------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator, names: Sequence[str] = (), *, held: str = "") -> Scene:
        """One scene of training, or one with held-out combinations of exactly the kind `held`.

        names: the objects it may show, at least four; all when left out.
        """
        while True:
            scene = self._draw_any(rng, names or self.names)
            if _held_in(scene) == ({held} if held else set()):
                return scene

    def draw_held(self, rng: np.random.Generator) -> Scene:
        return self.draw(rng, held=_one(rng, self._held))

    def full(self, rng: np.random.Generator) -> Scene:
        """One without a caption, for a decoder: four small objects, or as large a one as there may be."""
        size, kind = _one(rng, (SMALL, NORMAL, HUGE)), "single"
        while True:
            if size == SMALL:
                sprites, kind = _place(_some(rng, self.names, 4), ROWS[4][0]), "list"
            else:
                row, column = _one(rng, PLACES[size])
                sprites = (Sprite(name=_one(rng, self.names), size=size, row=row, column=column),)
            background = _one(rng, COLOURS)
            scene = Scene(kind=kind, sprites=sprites, style=_one(rng, self.styles), background=background, caption="",
                          names_background=False)  # fmt: skip
            if not _held_in(scene):
                return scene

    def near_miss(self, rng: np.random.Generator, scene: Scene) -> Scene | None:
        """Half of the time: another place or number, style, background or size than the caption names.

        What is held out is not shown, not even as wrong.
        """
        if rng.random() < 0.5:
            return None
        misses = [dataclasses.replace(scene, sprites=sprites, others=()) for sprites in _misplaced(scene)]
        if scene.names_style:
            misses += [dataclasses.replace(scene, style=style) for style in self.styles if style != scene.style]
        if scene.names_background:
            misses.append(dataclasses.replace(scene, background=_one(rng, COLOURS)))
        allowed = [miss for miss in misses if miss != scene and not _held_in(miss)]
        return _one(rng, allowed) if allowed else None

    def bare(self, name: str) -> Scene:
        sprite = Sprite(name=name, size=NORMAL, row=1, column=1)
        caption = self.objects[name].with_article(name)
        return Scene(kind="name", sprites=(sprite,), background=COLOURS[0], caption=caption, names_background=False,
                     style=self.styles[0])  # fmt: skip

    def things(self) -> dict[str, list[str]]:
        return things(tuple(self.objects.values()))

    def blocks(self) -> list[Block]:
        sizes = {name: (SMALL, NORMAL, HUGE, *((WORN,) if name in HATS else ())) for name in self.names}
        return [(name, style, size) for name in self.names for style in self.styles for size in sizes[name]]

    def _draw_any(self, rng: np.random.Generator, names: Sequence[str]) -> Scene:
        kind = self._kinds[int(np.searchsorted(self._shares, rng.random()))]
        style, background = _one(rng, self.styles), _one(rng, COLOURS)
        names_background = rng.random() < 0.5
        look = _one(rng, STYLES[style]) if rng.random() < 0.4 else ""
        before = look if rng.random() < 0.6 and kind in ("single", "count") else ""
        draw: Callable[..., tuple[str, tuple[tuple[Sprite, ...], ...]]] = getattr(self, f"_{kind}")
        text, layouts = draw(rng, names, before)
        words = [_one(rng, PREFIXES), text]
        if look and not before:
            words.append(_one(rng, STYLE_PHRASES).format(look))
        if names_background:
            words.append(_one(rng, BACKGROUND_PHRASES).format(a=article(background), colour=background))
        chosen = int(rng.random() * len(layouts))
        return Scene(
            kind=kind,
            sprites=layouts[chosen],
            style=style,
            background=background,
            caption=" ".join(filter(None, words)),
            look=look,
            names_background=names_background,
            others=layouts[:chosen] + layouts[chosen + 1 :],
        )

    def _single(self, rng: np.random.Generator, names: Sequence[str], look: str) -> tuple[str, tuple]:
        name, at = _one(rng, names), rng.random()
        size = SMALL if at < 0.15 else HUGE if at > 0.7 else NORMAL  # large ones are many codes, and in no other scene
        corner = (GRID - size) // 2
        words = " ".join(filter(None, (_one(rng, SIZE_WORDS[size]), look, self._say(rng, name))))
        text = (
            article(words)
            if (self.objects[name].countable or not words.endswith("s")) and rng.random() < 0.8
            else words
        )
        return text, ((Sprite(name=name, size=size, row=corner, column=corner),),)

    def _pair(self, rng: np.random.Generator, names: Sequence[str], look: str) -> tuple[str, tuple]:
        first, second = _some(rng, names, 2)
        phrase = _one(rng, SAID)
        # "on orange" is a background, "on an orange" is not
        text = f"{self._a(rng, first)} {phrase} {self._a(rng, second, always=phrase == 'on')}"
        return text, tuple(_place((first, second), CENTRES[place]) for place in RELATIONS[phrase])

    def _count(self, rng: np.random.Generator, names: Sequence[str], look: str) -> tuple[str, tuple]:
        number, name = 2 + int(rng.random() * 3), _one(rng, names)
        many = self.objects[name].plural(self._say(rng, name))
        text = " ".join(filter(None, (_one(rng, NUMBERS[number]), look, many)))
        return text, tuple(_place((name,) * number, corners) for corners in ROWS[number])

    def _list(self, rng: np.random.Generator, names: Sequence[str], look: str) -> tuple[str, tuple]:
        number = 3 + int(rng.random() * 2)
        some = _some(rng, names, number)
        said = [self._a(rng, name) for name in some]
        text = f"{', '.join(said[:-1])} and {said[-1]}"
        return text, tuple(_place(some, corners) for corners in ROWS[number])

    def _between(self, rng: np.random.Generator, names: Sequence[str], look: str) -> tuple[str, tuple]:
        middle, left, right = _some(rng, names, 3)
        text = f"{self._a(rng, middle)} between {self._a(rng, left)} and {self._a(rng, right)}"
        return text, tuple(_place((middle, left, right), corners) for corners in BETWEEN)

    def _wearing(self, rng: np.random.Generator, names: Sequence[str], look: str) -> tuple[str, tuple]:
        """On the middle of its upper edge; of few names all with a head, or else any that has one."""
        wearer = _one(rng, [name for name in names if self.objects[name].head] or self._heads)
        worn = _one(rng, self._hats)
        text = f"{self._a(rng, wearer)} {_one(rng, ('wearing', 'with', 'in'))} {self._a(rng, worn)}"
        if " with " in text:
            text += " on its head"
        hat = Sprite(name=worn, size=WORN, row=0, column=(GRID - WORN) // 2)
        return text, ((Sprite(name=wearer, size=NORMAL, row=GRID - NORMAL, column=1), hat),)

    def _say(self, rng: np.random.Generator, name: str) -> str:
        also = self.objects[name].also
        return _one(rng, also) if also and rng.random() < 0.3 else name

    def _a(self, rng: np.random.Generator, name: str, *, always: bool = False) -> str:
        said = self._say(rng, name)
        return self.objects[name].with_article(said) if always or rng.random() < 0.85 else said

    def alone(self, name: str, style: str, size: int) -> list[Scene]:
        """Over every background that is not held out for the object, over each in another place."""
        places, look = PLACES[size], STYLES[style][-1]
        return [
            Scene(
                kind="single",
                sprites=(Sprite(name=name, size=size, row=row, column=column),),
                style=style,
                background=colour,
                caption=f"{name} in {look} style on {colour}",
                look=look,
                names_background=True,
            )
            for i, colour in enumerate(COLOURS)
            for row, column in (places[i % len(places)],)
            if not held_out("background", name, colour)
        ]

    # Pictures -----------------------------------------------------------------------------------------------

    def _sprite(self, name: str, style: str, size: int) -> Float32[np.ndarray, "S S 4"]:
        """Colour premultiplied by alpha, all in [0, 1], with a margin of a 32nd on every side."""
        side = size * self.resolution // GRID
        drawn = Image.fromarray(self._atlas.sprites[self._row[name], self.styles.index(style)])
        pixels = np.zeros((side, side, 4), np.float32)
        inner = side - 2 * (side // 32)
        start = (side - inner) // 2
        pixels[start : start + inner, start : start + inner] = np.asarray(fit(drawn, inner), np.float32) / 255
        if size == WORN:  # it sits on what is below it
            drawn_rows = np.flatnonzero(pixels[..., 3].any(axis=1))
            pixels = np.roll(pixels, side - 1 - drawn_rows[-1], axis=0)
        pixels[..., :3] *= pixels[..., 3:]
        return pixels

    def paint(self, scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
        cell = self.resolution // GRID
        pixels = np.empty((self.resolution, self.resolution, 3), np.float32)
        pixels[:] = np.array(BACKGROUNDS[scene.background], np.float32) / 255
        for each in scene.sprites:
            drawn = self.sprite(each.name, scene.style, each.size)
            top, left, side = each.row * cell, each.column * cell, drawn.shape[0]
            area = pixels[top : top + side, left : left + side]
            area *= 1 - drawn[..., 3:]
            area += drawn[..., :3]
        return (pixels * 255 + 0.5).astype(np.uint8)


def _place(names: Sequence[str], corners: Sequence[tuple[int, int]]) -> tuple[Sprite, ...]:
    placed = zip(names, corners, strict=True)
    return tuple(Sprite(name=name, size=SMALL, row=row, column=column) for name, (row, column) in placed)


def _misplaced(scene: Scene) -> list[tuple[Sprite, ...]]:
    """The same objects in places, or in a number, that the caption does not allow."""
    names = [sprite.name for sprite in scene.sprites]
    if scene.kind == "single":
        (sprite,) = scene.sprites
        corner = (GRID - NORMAL) // 2
        return [(dataclasses.replace(sprite, size=NORMAL, row=corner, column=corner),)]
    if scene.kind == "count":
        return [_place((names[0],) * number, corners) for number in ROWS if number != len(names)
                for corners in ROWS[number]]  # fmt: skip
    if scene.kind == "pair":
        placed = [_place(names, corners) for corners in CENTRES.values()]
    elif scene.kind == "wearing":
        return []
    else:
        turned = (*names[1:], names[0])
        placed = [_place(turned, [(each.row, each.column) for each in scene.sprites])]
    return [each for each in placed if each not in (scene.sprites, *scene.others)]


def _one(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """As rng.choice, thirty times faster."""
    return items[int(rng.random() * len(items))]


def _some(rng: np.random.Generator, items: Sequence[str], count: int) -> tuple[str, ...]:
    """Different ones, in any order."""
    some: list[str] = []
    while len(some) < count:
        if (one := _one(rng, items)) not in some:
            some.append(one)
    return tuple(some)
