"""How the VQGAN's encoder spells the objects and the backgrounds of the world: the codes of every scene."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from dalle_mini.training.emoji.world import COLOURS, GRID, NAMES, Scene, World
from vqgan import VQGAN

BARE = -1  # in a spelling: nothing is drawn here


class Spelling:
    """One spelling for every object of every size, and for every background.

    The encoder sees more than a square: at its edge, an object has somewhat different codes over every background. A
    text-to-code model would have to learn each of them. So one spelling is chosen for every object of every size, by a
    vote over the backgrounds and places of training, and scenes are composed of these; squares without anything drawn
    have the one code of their background. Nothing that is held out is looked at.
    """

    def __init__(self, world: World, vqgan: VQGAN) -> None:
        self.blocks: dict[tuple[str, int], np.ndarray] = {}  # int [size, size], BARE where nothing is drawn
        grounds: dict[str, list[np.ndarray]] = {colour: [] for colour in COLOURS}
        cell = vqgan.config.downscale
        for (name, size), sprite in tqdm(world.sprites.items(), unit="object", desc="spelling", mininterval=5):
            drawn = sprite[..., 3].reshape(size, cell, size, cell).any((1, 3))
            scenes = world.alone(name, size)
            codes = vqgan.encode(np.stack([world.paint(scene) for scene in scenes])).reshape(-1, GRID, GRID)
            seen = []
            for scene, grid in zip(scenes, codes, strict=True):
                (place,) = scene.sprites
                area = np.s_[place.row : place.row + size, place.column : place.column + size]
                seen.append(grid[area])
                grounds[scene.background].append(grid[area][~drawn])
            votes = np.apply_along_axis(lambda codes: np.bincount(codes).argmax(), 0, np.stack(seen))
            self.blocks[name, size] = np.where(drawn, votes, BARE)
        self.grounds = {colour: int(np.bincount(np.concatenate(seen)).argmax()) for colour, seen in grounds.items()}

    def codes(self, scenes: Sequence[Scene]) -> np.ndarray:
        """int32 [scenes, GRID * GRID]."""
        grids = np.full((len(scenes), GRID, GRID), BARE, np.int32)
        for grid, scene in zip(grids, scenes, strict=True):
            for sprite in scene.sprites:
                area = np.s_[sprite.row : sprite.row + sprite.size, sprite.column : sprite.column + sprite.size]
                grid[area] = self.blocks[sprite.name, sprite.size]
            grid[grid == BARE] = self.grounds[scene.background]
        return grids.reshape(len(scenes), -1)

    def spoiled(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """Codes of the scene with a fault: of one object, all or a half is missing or another object's."""
        (grid,) = self.codes([scene]).reshape(1, GRID, GRID)
        sprite = scene.sprites[rng.integers(len(scene.sprites))]
        own, half = self.blocks[sprite.name, sprite.size], sprite.size // 2
        fault = np.full_like(own, BARE)
        if rng.random() < 0.7:
            fault = self.blocks[str(rng.choice([name for name in NAMES if name != sprite.name])), sprite.size]
        kept: Any = [np.s_[:0], np.s_[:half], np.s_[half:], np.s_[:, :half], np.s_[:, half:]][rng.integers(5)]
        fault = fault.copy()
        fault[kept] = own[kept]
        fault[fault == BARE] = self.grounds[scene.background]
        grid[sprite.row : sprite.row + sprite.size, sprite.column : sprite.column + sprite.size] = fault
        return grid.reshape(-1)
