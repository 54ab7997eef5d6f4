"""The judge of the emoji world: whether a picture shows what a scene asks for, by templates and not by CLIP.

Contract: a picture is right if, in the place of each object, the nearest of all objects' templates (mean squared
error) is the one asked for and the rest of the picture is empty; its background is right if its colour is nearest to
that one of the world.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dalle_mini.training.emoji.world import BACKGROUNDS, GRID, NAMES, Scene, World

EMPTY_ERROR = 0.02  # mean squared error up to which a square without an object counts as empty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    objects: bool  # every object right, in its place, and nothing else
    background: bool


def judge(world: World, scene: Scene, picture: np.ndarray) -> Verdict:
    """Compare a uint8 picture [H, W, 3] with what `scene` asks for."""
    pixels, cell = picture.astype(np.float32) / 255, world.resolution // GRID
    bare = np.ones(pixels.shape[:2], bool)  # where nothing is drawn
    outside = bare.copy()  # squares without an object
    areas = []
    for sprite in scene.sprites:
        template = world.sprites[sprite.name, sprite.size]
        side = template.shape[0]
        area = np.s_[sprite.row * cell :, sprite.column * cell :]
        bare[area][:side, :side] &= template[..., 3] < 0.01
        outside[area][:side, :side] = False
        areas.append((sprite, pixels[area][:side, :side]))

    colour = np.median(pixels[bare], axis=0)
    palette = {name: np.array(rgb, np.float32) / 255 for name, rgb in BACKGROUNDS.items()}
    background = min(palette, key=lambda name: float(np.square(palette[name] - colour).sum()))
    error = np.square(pixels - palette[background]).reshape(GRID, cell, GRID, cell, 3).mean((1, 3, 4))
    empty = (error[outside[::cell, ::cell]] < EMPTY_ERROR).all()
    named = all(_nearest(world, area, sprite.size, palette[background]) == sprite.name for sprite, area in areas)
    return Verdict(objects=bool(named and empty), background=background == scene.background)


def _nearest(world: World, area: np.ndarray, size: int, background: np.ndarray) -> str:
    def error(name: str) -> float:
        template = world.sprites[name, size]
        return float(np.square(area - template[..., :3] - (1 - template[..., 3:]) * background).mean())

    return min(NAMES, key=error)


def percentages_right(world: World, scenes: Sequence[Scene], pictures: np.ndarray) -> dict[str, float]:
    """Per kind of scene, how many percent have the right objects; and the background of all."""
    right = defaultdict(list)
    for scene, picture in zip(scenes, pictures, strict=True):
        verdict = judge(world, scene, picture)
        right[scene.kind].append(verdict.objects)
        right["background"].append(verdict.background)
    return {kind: round(100 * float(np.mean(values)), 1) for kind, values in sorted(right.items())}
