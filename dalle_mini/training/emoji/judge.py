"""The judge of the emoji world: whether a picture shows what a scene asks for, by templates and not by CLIP.

Contract: a picture is right if, in the place of each object, the nearest of all objects' templates in all styles (mean
squared error) is the one asked for and the rest of the picture is empty. What the caption leaves open may be anything:
the style, one of several layouts, the background. A background is right if its colour is nearest to that one of the
world. A smaller object in the place of a larger one is not noticed.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from dalle_mini.training.emoji.scene import GRID, Scene, Sprite
from dalle_mini.training.emoji.world import World

EMPTY_ERROR = 0.02  # mean squared error up to which a square without an object counts as empty
FINEST = 8  # pixels along a cell that are compared: finer pictures are reduced to them
BARE_ALPHA = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    objects: bool  # every object right, in its place, and nothing else
    background: bool
    seen: tuple[object, ...] = ()  # where is what, in which style, over which background


class _Templates(NamedTuple):
    """All objects of one size in all styles: K of them, P pixels each."""

    looks: list[tuple[str, str]]  # name, style
    flat: Float32[np.ndarray, "K P*4"]  # premultiplied
    rgb_rgb: Float32[np.ndarray, " K"]  # sums over pixels of products
    rgb_alpha: Float32[np.ndarray, "K 3"]
    alpha_alpha: Float32[np.ndarray, " K"]


def judge(world: World, scene: Scene, picture: np.ndarray) -> Verdict:
    """Compare a uint8 picture [H, W, 3] with what `scene` asks for."""
    pixels = _reduce(picture.astype(np.float32) / 255, world)
    verdicts = [_judge_layout(world, scene, layout, pixels) for layout in (scene.sprites, *scene.others)]
    return max(verdicts, key=lambda verdict: (verdict.objects, verdict.background))


def _judge_layout(world: World, scene: Scene, layout: tuple[Sprite, ...], pixels: np.ndarray) -> Verdict:
    cell = len(pixels) // GRID
    bare = np.ones(pixels.shape[:2], bool)  # where nothing is drawn
    outside = bare.copy()  # squares without an object
    areas = []
    for sprite in layout:
        area = np.s_[sprite.row * cell :, sprite.column * cell :]
        side = sprite.size * cell
        bare[area][:side, :side] &= _is_bare(world, sprite.name, scene.style if scene.names_style else "", sprite.size)
        outside[area][:side, :side] = False
        areas.append((sprite, pixels[area][:side, :side]))

    palette = {name: np.array(rgb, np.float32) / 255 for name, rgb in world.backgrounds.items()}
    colour = np.median(pixels[bare], axis=0)
    background = min(palette, key=lambda name: float(np.square(palette[name] - colour).sum()))
    error = np.square(pixels - palette[background]).reshape(GRID, cell, GRID, cell, 3).mean((1, 3, 4))
    empty = (error[outside[::cell, ::cell]] < EMPTY_ERROR).all()
    found = [(_nearest(_templates(world, sprite.size), area, palette[background]), sprite) for sprite, area in areas]
    named = all(
        name == sprite.name and (style == scene.style or not scene.names_style) for (name, style), sprite in found
    )
    return Verdict(
        objects=bool(named and empty),
        background=background == scene.background or not scene.names_background,
        seen=(background, *found),
    )


def _nearest(templates: _Templates, area: np.ndarray, background: np.ndarray) -> tuple[str, str]:
    """The template T, alpha A, with the least sum of (area - background - (T - A * background))^2."""
    over = area - background
    probe = np.concatenate([over, -(over @ background)[..., None]], axis=-1)
    squares = (
        templates.rgb_rgb
        - 2 * templates.rgb_alpha @ background
        + float(background @ background) * templates.alpha_alpha
    )
    # Not a matrix product: its threads wait longer for each other than one thread takes.
    products = np.einsum("kp,p->k", templates.flat, probe.ravel())
    return templates.looks[int(np.argmin(squares - 2 * products))]


@lru_cache(maxsize=16)
def _templates(world: World, size: int) -> _Templates:
    looks = [(name, style) for name, style, cells in world.blocks() if cells == size]
    drawn = np.stack([_reduce(world.sprite(*look, size), world) for look in looks])
    flat = drawn.reshape(len(looks), -1, 4)
    rgb, alpha = flat[..., :3], flat[..., 3]
    return _Templates(
        looks,
        flat.reshape(len(looks), -1),
        np.square(rgb).sum((1, 2)),
        np.einsum("kpc,kp->kc", rgb, alpha),
        np.square(alpha).sum(1),
    )


@lru_cache(maxsize=4096)
def _is_bare(world: World, name: str, style: str, size: int) -> np.ndarray:
    """Where an object has nothing, bool [S, S]; without a style, where it has nothing in any."""
    drawn = [world.sprite(name, each, size) for each in ((style,) if style else world.styles)]
    return np.all([_reduce(sprite[..., 3:], world)[..., 0] < BARE_ALPHA for sprite in drawn], axis=0)


def _reduce(pixels: np.ndarray, world: World) -> np.ndarray:
    """[H, W, C] to the mean of squares, so that a cell has at most FINEST pixels along a side."""
    by = max(1, world.resolution // GRID // FINEST)
    height, width, channels = pixels.shape
    return pixels.reshape(height // by, by, width // by, by, channels).mean((1, 3)) if by > 1 else pixels


def different_right(world: World, scene: Scene, pictures: Sequence[np.ndarray]) -> int:
    """How many of the pictures are right and differ: in what is where, in its style or over which colour."""
    verdicts = [judge(world, scene, picture) for picture in pictures]
    return len({verdict.seen for verdict in verdicts if verdict.objects and verdict.background})


def percentages_right(world: World, scenes: Sequence[Scene], pictures: np.ndarray) -> dict[str, float]:
    """Per kind of scene, how many percent have the right objects; and the background of all that name one."""
    right = defaultdict(list)
    for scene, picture in zip(scenes, pictures, strict=True):
        verdict = judge(world, scene, picture)
        right[scene.kind].append(verdict.objects)
        if scene.names_background:
            right["background"].append(verdict.background)
    return {kind: round(100 * float(np.mean(values)), 1) for kind, values in sorted(right.items())}
