"""The embedded model's world: captioned pictures drawn from an open emoji font.

Contract: everything is a function of a numpy Generator; `World` draws scenes, writes their captions and paints them.
A sprite always stands on whole cells of the code grid, so that one object means the same codes wherever it is.
Every tenth pair of objects, object on a background and object in a number is held out: training never sees it,
and `dalle_mini.training.report.evaluate` asks for just these.

Pictures: Noto Color Emoji (SIL Open Font License 1.1); names follow the Unicode short names.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dalle_mini.training.emoji.scene import GRID, Block, Scene, Sprite, held_out

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian: fonts-noto-color-emoji
FONT_SIZE = 109  # the one size of the font's bitmaps

# name: (character, other names)
OBJECTS: dict[str, tuple[str, ...]] = {
    "cat": ("🐱", "kitten"), "dog": ("🐶", "puppy"), "mouse": ("🐭",), "rabbit": ("🐰", "bunny"), "fox": ("🦊",),
    "bear": ("🐻",), "panda": ("🐼",), "lion": ("🦁",), "cow": ("🐮",), "pig": ("🐷",), "frog": ("🐸",),
    "monkey": ("🐵",), "chicken": ("🐔",), "penguin": ("🐧",), "owl": ("🦉",), "unicorn": ("🦄",), "bee": ("🐝",),
    "ladybug": ("🐞",), "butterfly": ("🦋",), "turtle": ("🐢",), "octopus": ("🐙",), "fish": ("🐠",),
    "whale": ("🐳",), "elephant": ("🐘",), "crab": ("🦀",), "snail": ("🐌",), "apple": ("🍎", "red apple"),
    "banana": ("🍌",), "strawberry": ("🍓",), "watermelon": ("🍉",), "pineapple": ("🍍",), "avocado": ("🥑",),
    "lemon": ("🍋",), "carrot": ("🥕",), "mushroom": ("🍄",), "pizza": ("🍕", "slice of pizza"),
    "hamburger": ("🍔", "burger"), "donut": ("🍩", "doughnut"), "cookie": ("🍪",), "cake": ("🎂", "birthday cake"),
    "ice cream": ("🍦",), "car": ("🚗", "red car"), "bus": ("🚌",), "rocket": ("🚀",), "sailboat": ("⛵", "boat"),
    "sun": ("🌞",), "moon": ("🌙", "crescent moon"), "star": ("⭐",), "cloud": ("☁️",), "rainbow": ("🌈",),
    "snowman": ("⛄",), "tree": ("🌳",), "cactus": ("🌵",), "sunflower": ("🌻",), "rose": ("🌹",),
    "fire": ("🔥", "flame"), "house": ("🏠", "home"), "robot": ("🤖",), "ghost": ("👻",), "alien": ("👽",),
    "heart": ("❤️", "red heart"), "balloon": ("🎈",), "gift": ("🎁", "present"), "guitar": ("🎸",), "pumpkin": ("🎃",),
    "crown": ("👑",),
}  # fmt: skip

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "yellow": (255, 226, 110),
    "blue": (118, 180, 255),
    "green": (140, 214, 132),
    "pink": (255, 160, 196),
    "purple": (176, 140, 250),
}
PLAIN = 0.5  # how often a picture whose caption names no background is white; else any other

SMALL, NORMAL, HUGE = 4, 6, 8  # cells along a side of a sprite
SIZE_WORDS = {SMALL: ("small", "tiny", "little"), NORMAL: ("",), HUGE: ("big", "huge", "giant", "large")}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left of", "next to"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
NUMBERS = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
PREFIXES = ("", "", "", "", "a picture of", "a drawing of", "an emoji of", "an image of", "a painting of")
BACKGROUND_PHRASES = ("on a {} background", "on {}", "with a {} background", "in front of a {} background")
PLURALS = {
    "mouse": "mice", "fish": "fish", "butterfly": "butterflies", "puppy": "puppies", "bunny": "bunnies",
    "strawberry": "strawberries", "octopus": "octopuses", "cactus": "cactuses", "bus": "buses", "fox": "foxes",
    "snowman": "snowmen", "slice of pizza": "slices of pizza", "ladybug": "ladybugs", "ice cream": "ice creams",
}  # fmt: skip
CENTRES = {  # (row, column) of the upper left cell of every sprite
    "left": ((2, 0), (2, 4)),
    "right": ((2, 4), (2, 0)),
    "above": ((0, 2), (4, 2)),
    "below": ((4, 2), (0, 2)),
    2: ((2, 0), (2, 4)),
    3: ((0, 2), (4, 0), (4, 4)),
    4: ((0, 0), (0, 4), (4, 0), (4, 4)),
}
HELD_BY = {"single": "background", "pair": "pair", "count": "count"}
NAMES, COLOURS = tuple(OBJECTS), tuple(BACKGROUNDS)


def _held_in(scene: Scene) -> set[str]:
    """The kinds of held-out combinations in a scene."""
    names = [sprite.name for sprite in scene.sprites]
    found = {"background"} if any(held_out("background", name, scene.background) for name in names) else set()
    if scene.kind == "pair" and held_out("pair", *names):
        found.add("pair")
    if scene.kind == "count" and held_out("count", names[0], str(len(names))):
        found.add("count")
    return found


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" and not words.startswith("uni") else "a ") + words


def _plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


class World:
    """Draws scenes and paints them at `resolution` pixels (a multiple of the grid). Its one style has no name."""

    names: tuple[str, ...] = NAMES
    styles: tuple[str, ...] = ("",)
    backgrounds, fewest = BACKGROUNDS, 2

    def __init__(self, resolution: int = 64, font: Path = FONT) -> None:
        if not font.exists():
            raise FileNotFoundError(f"font must be Noto Color Emoji (Debian: fonts-noto-color-emoji), got {font}")
        self.resolution, self.font = resolution, font

    # Scenes and captions ------------------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator, names: Sequence[str] = (), *, held: bool = False) -> Scene:
        """One scene of training, or (`held`) one with exactly one combination that training never shows.

        A held single is held by its background, a held pair by its two objects, a held count by its number.
        """
        while True:
            scene = self._draw_any(rng, names or NAMES, held=held)
            if _held_in(scene) == ({HELD_BY[scene.kind]} if held else set()):
                return scene

    def draw_held(self, rng: np.random.Generator) -> Scene:
        return self.draw(rng, held=True)

    def example(self, rng: np.random.Generator) -> Scene:
        """A scene for the text-to-code model, more than half of them pairs: which is where takes longest to learn.

        Captions without a background mostly mean white. A model that never sees an object on white, because that is
        held out, learns from them to avoid white for this object, even where a caption asks for it. So such captions
        are left out for such objects.
        """
        while True:
            scene = self.draw(rng)
            if scene.kind != "pair" and rng.random() < 0.5:
                continue
            if scene.names_background or not any(held_out("background", each.name, "white") for each in scene.sprites):
                return scene

    def full(self, rng: np.random.Generator) -> Scene:
        return self.draw(rng)

    def near_miss(self, rng: np.random.Generator, scene: Scene) -> None:
        """This world spoils objects only."""

    def bare(self, name: str) -> Scene:
        sprite = Sprite(name=name, size=NORMAL, row=1, column=1)
        caption = _article(name)
        return Scene(kind="name", sprites=(sprite,), background="white", caption=caption, names_background=False)

    def _draw_any(self, rng: np.random.Generator, names: Sequence[str], *, held: bool) -> Scene:
        kind = rng.choice(["single", "count", "pair"], p=[0.4, 0.2, 0.4])
        named = held or rng.random() < 0.5
        background = str(rng.choice(COLOURS))
        if not named:
            background = "white" if rng.random() < PLAIN else str(rng.choice(COLOURS[1:]))
        if kind == "single":
            size = int(rng.choice([SMALL, NORMAL, HUGE], p=[0.2, 0.6, 0.2]))
            name = str(rng.choice(names))
            corner = (GRID - size) // 2
            sprites: tuple[Sprite, ...] = (Sprite(name=name, size=size, row=corner, column=corner),)
            words = " ".join(filter(None, (str(rng.choice(SIZE_WORDS[size])), self._say(rng, name))))
            text = _article(words) if rng.random() < 0.8 else words
        elif kind == "count":
            # Fours are for training only: an object seen in twos and fours is not learned as one that comes in twos.
            number, name = int(rng.choice([2, 3] if held else [2, 3, 4])), str(rng.choice(names))
            sprites = self._place([name] * number, CENTRES[number])
            text = f"{rng.choice(NUMBERS[number])} {_plural(self._say(rng, name))}"
        else:
            first, second = map(str, rng.choice(names, 2, replace=False))
            relation = str(rng.choice(list(RELATIONS)))
            sprites = self._place([first, second], CENTRES[relation])
            article = _article if rng.random() < 0.85 else str
            phrase = rng.choice(RELATIONS[relation])
            text = f"{article(self._say(rng, first))} {phrase} {article(self._say(rng, second))}"
        text = f"{rng.choice(PREFIXES)} {text}".strip()
        if named:
            text += " " + str(rng.choice(BACKGROUND_PHRASES)).format(background)
        return Scene(kind=str(kind), sprites=sprites, background=background, caption=text, names_background=named)

    def alone(self, name: str, style: str, size: int) -> list[Scene]:
        """An object by itself in every place it can have, over every background that is not held out for it."""
        middle = (GRID - size) // 2
        corners = {(middle, middle)}
        if size == SMALL:
            corners |= {corner for places in CENTRES.values() for corner in places}
        return [
            Scene(
                kind="single",
                sprites=(Sprite(name=name, size=size, row=row, column=column),),
                style=style,
                background=colour,
                caption=f"{name} on {colour}",
                names_background=True,
            )
            for colour in COLOURS
            for row, column in sorted(corners)
            if not held_out("background", name, colour)
        ]

    @staticmethod
    def things() -> dict[str, list[str]]:
        return {
            name: [*others, *dict.fromkeys(_plural(each) for each in (name, *others) if _plural(each) != each)]
            for name, (_, *others) in OBJECTS.items()
        }

    def blocks(self) -> list[Block]:
        return [(name, style, size) for name in NAMES for style in self.styles for size in SIZE_WORDS]

    @staticmethod
    def _say(rng: np.random.Generator, name: str) -> str:
        others = OBJECTS[name][1:]
        return str(rng.choice(others)) if others and rng.random() < 0.3 else name

    @staticmethod
    def _place(names: Sequence[str], corners: Sequence[tuple[int, int]]) -> tuple[Sprite, ...]:
        placed = zip(names, corners, strict=True)
        return tuple(Sprite(name=n, size=SMALL, row=row, column=column) for n, (row, column) in placed)

    # Pictures -----------------------------------------------------------------------------------------------

    @cached_property
    def _glyphs(self) -> dict[str, Image.Image]:
        font = ImageFont.truetype(str(self.font), FONT_SIZE)
        glyphs = {}
        for name, (character, *_) in OBJECTS.items():
            canvas = Image.new("RGBA", (160, 160))
            ImageDraw.Draw(canvas).text((10, 10), character, font=font, embedded_color=True)
            glyph = canvas.crop(canvas.getbbox())
            side = max(glyph.size)
            square = Image.new("RGBA", (side, side))
            square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
            glyphs[name] = square
        return glyphs

    @cached_property
    def sprites(self) -> dict[tuple[str, int], np.ndarray]:
        """(name, cells along a side) -> float32 [h, w, 4], colour premultiplied by alpha, all in [0, 1]."""
        cell, sprites = self.resolution // GRID, {}
        for name, glyph in self._glyphs.items():
            for size in (SMALL, NORMAL, HUGE):
                side = size * cell
                small = glyph.resize((side - side // 16, side - side // 16), Image.Resampling.LANCZOS)
                canvas = Image.new("RGBA", (side, side))
                canvas.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
                pixels = np.asarray(canvas, np.float32) / 255
                pixels[..., :3] *= pixels[..., 3:]
                sprites[name, size] = pixels
        return sprites

    def sprite(self, name: str, style: str, size: int) -> np.ndarray:
        return self.sprites[name, size]

    def paint(self, scene: Scene) -> np.ndarray:
        """The picture, uint8 [resolution, resolution, 3]."""
        drawn, ground = self._layer(scene), np.array(BACKGROUNDS[scene.background], np.float32) / 255
        pixels = drawn[..., :3] + (1 - drawn[..., 3:]) * ground
        return (pixels.clip(0, 1) * 255).round().astype(np.uint8)

    def _layer(self, scene: Scene) -> np.ndarray:
        """The sprites over nothing, float32 [resolution, resolution, 4], premultiplied; sprites do not overlap."""
        cell = self.resolution // GRID
        layer = np.zeros((self.resolution, self.resolution, 4), np.float32)
        for sprite in scene.sprites:
            drawn = self.sprites[sprite.name, sprite.size]
            top, left, side = sprite.row * cell, sprite.column * cell, drawn.shape[0]
            layer[top : top + side, left : left + side] = drawn
        return layer
