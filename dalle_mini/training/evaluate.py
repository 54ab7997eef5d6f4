"""Is what was drawn what was asked? Judged without CLIP, by comparing with rendered templates of every object.

Contract: `evaluate` asks a pipeline for scenes whose combinations training never saw and gives percentages. A picture
is right if, in the place of each object, the nearest of all objects' templates (mean squared error) is the one asked
for and the rest of the picture is empty; its background is right if its colour is nearest to that one of the world.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dalle_mini.gallery import contact_sheet
from dalle_mini.pipeline import Pipeline
from dalle_mini.training.emoji import BACKGROUNDS, GRID, NAMES, Scene, World

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


def evaluate(
    pipeline: Pipeline, *, captions: int = 200, seed: int = 0, **settings: Any
) -> tuple[dict[str, Any], Image.Image]:
    """Percentages on held-out captions, for the best by CLIP, for the first candidate, and for the VQGAN alone.

    Also a sheet of the first pictures, as they came.
    """
    world = World(pipeline.resolution)
    rng = np.random.default_rng((seed, 1_000_003))  # not the stream that training's validation set is from
    scenes = [world.draw(rng, held=True) for _ in range(captions)]
    truth = np.stack([world.paint(scene) for scene in scenes])
    ceiling = pipeline.vqgan.decode(pipeline.vqgan.encode(truth))
    best, first = [], []
    for i, scene in enumerate(tqdm(scenes, unit="caption", mininterval=5)):
        gallery = pipeline.generate(scene.caption, seed=i, **settings)
        best.append(np.asarray(gallery[0].image))
        first.append(np.asarray(min(gallery, key=lambda candidate: candidate.index).image))
    report = {
        "captions": captions,
        "candidates": len(gallery),
        "best": _percentages(world, scenes, best),
        "first": _percentages(world, scenes, first),
        "vqgan": _percentages(world, scenes, list(ceiling)),
    }
    return report, contact_sheet([Image.fromarray(picture) for picture in best[:64]])


def _percentages(world: World, scenes: Sequence[Scene], pictures: Sequence[np.ndarray]) -> dict[str, float]:
    """Per kind of scene, how many percent have the right objects; and the background of all."""
    right = defaultdict(list)
    for scene, picture in zip(scenes, pictures, strict=True):
        verdict = judge(world, scene, picture)
        right[scene.kind].append(verdict.objects)
        right["background"].append(verdict.background)
    return {kind: round(100 * float(np.mean(values)), 1) for kind, values in sorted(right.items())}
