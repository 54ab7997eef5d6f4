"""How the VQGAN's encoder spells the objects and the backgrounds of a world: the codes of every scene."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from dalle_mini.training.data.shards import fingerprint
from dalle_mini.training.emoji.scene import GRID, Block, Scene
from dalle_mini.training.emoji.world import World
from vqgan import Codec

BARE = -1  # in a spelling: the background is here
COVERED = 0.05  # mean alpha up to which a square is the background's


class Spelling:
    """One spelling for every object in every style and size, and for every background.

    The encoder sees more than a square: at its edge, an object has somewhat different codes over every background. A
    text-to-code model would have to learn each of them. So one spelling is chosen for every block, by a vote over the
    backgrounds and places of training, and scenes are composed of these. Squares with next to nothing drawn have the
    one code of their background, and so has the emptiest one of every block of a size that can fill the grid: what four
    objects stand on could not be told otherwise. The decoder paints what is missing there after the squares beside it.
    Nothing that is held out is looked at.

    blocks: int [size, size] each, BARE where the background is. grounds: of every background, the code.
    """

    def __init__(self, world: World, blocks: dict[Block, np.ndarray], grounds: dict[str, int]) -> None:
        self._world, self.blocks, self.grounds = world, blocks, grounds

    @classmethod
    def vote(cls, world: World, vqgan: Codec) -> "Spelling":
        blocks: dict[Block, np.ndarray] = {}
        grounds: dict[str, list[np.ndarray]] = {colour: [] for colour in world.backgrounds}
        cell = vqgan.config.downscale
        for block in tqdm(world.blocks(), unit="block", desc="spelling", mininterval=5):
            size = block[-1]
            cover = world.sprite(*block)[..., 3].reshape(size, cell, size, cell).mean((1, 3))
            emptiest = cover.min() if size in (GRID // 2, GRID) else 0
            drawn = (cover > max(COVERED, emptiest)) | (cover == cover.max())
            scenes = world.alone(*block)
            codes = vqgan.encode(np.stack([world.paint(scene) for scene in scenes])).reshape(-1, GRID, GRID)
            seen = []
            for scene, grid in zip(scenes, codes, strict=True):
                (place,) = scene.sprites
                area = np.s_[place.row : place.row + size, place.column : place.column + size]
                seen.append(grid[area])
                grounds[scene.background].append(grid[area][~drawn])
            votes = np.apply_along_axis(lambda codes: np.bincount(codes).argmax(), 0, np.stack(seen))
            blocks[block] = np.where(drawn, votes, BARE)
        return cls(
            world, blocks, {colour: int(np.bincount(np.concatenate(seen)).argmax()) for colour, seen in grounds.items()}
        )

    @classmethod
    def of(cls, world: World, vqgan: Codec, folder: Path) -> "Spelling":
        """What `folder` keeps for this world and encoder; the vote, which it then keeps."""
        path, blocks = _path(world, vqgan, folder), world.blocks()
        if not path.exists():
            made = cls.vote(world, vqgan)
            made.keep(vqgan, folder)
            return made
        with np.load(path) as file:
            parts = np.split(file["blocks"], np.cumsum([size * size for *_, size in blocks])[:-1])
            grounds = {colour: int(code) for colour, code in zip(world.backgrounds, file["grounds"], strict=True)}
        squares = {block: part.reshape(block[-1], -1) for block, part in zip(blocks, parts, strict=True)}
        return cls(world, squares, grounds)

    def keep(self, vqgan: Codec, folder: Path) -> None:
        """For the next who asks `of` this world and encoder."""
        path = _path(self._world, vqgan, folder)
        flat = np.concatenate([self.blocks[block].ravel() for block in self._world.blocks()])
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(partial, blocks=flat, grounds=[self.grounds[colour] for colour in self._world.backgrounds])
        partial.replace(path)

    def codes(self, scenes: Sequence[Scene]) -> Int[np.ndarray, "M T"]:
        grids = np.full((len(scenes), GRID, GRID), BARE, np.int32)
        for grid, scene in zip(grids, scenes, strict=True):
            for sprite in scene.sprites:
                area = np.s_[sprite.row : sprite.row + sprite.size, sprite.column : sprite.column + sprite.size]
                grid[area] = self.blocks[sprite.name, scene.style, sprite.size]
            grid[grid == BARE] = self.grounds[scene.background]
        return grids.reshape(len(scenes), -1)

    def spoiled(self, scene: Scene, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        """Codes of a picture that is wrong for the scene's caption: a near miss, or one object with a fault.

        All or a half of the object is then missing, or another object's.
        """
        if miss := self._world.near_miss(rng, scene):
            return self.codes([miss])[0]
        (grid,) = self.codes([scene]).reshape(1, GRID, GRID)
        sprite = scene.sprites[rng.integers(len(scene.sprites))]
        own, half = self.blocks[sprite.name, scene.style, sprite.size], sprite.size // 2
        fault = np.full_like(own, BARE)
        if rng.random() < 0.7:
            alike = [(name, scene.style, sprite.size) for name in self._world.names if name != sprite.name]
            alike = [block for block in alike if block in self.blocks]
            fault = self.blocks[alike[rng.integers(len(alike))]] if alike else fault
        kept: Any = [np.s_[:0], np.s_[:half], np.s_[half:], np.s_[:, :half], np.s_[:, half:]][rng.integers(5)]
        fault = fault.copy()
        fault[kept] = own[kept]
        fault[fault == BARE] = self.grounds[scene.background]
        grid[sprite.row : sprite.row + sprite.size, sprite.column : sprite.column + sprite.size] = fault
        return grid.reshape(-1)


def _path(world: World, vqgan: Codec, folder: Path) -> Path:
    facts = json.dumps([fingerprint(vqgan), world.blocks(), list(world.backgrounds), COVERED])
    return folder / f"spelling-{zlib.crc32(facts.encode()):08x}.npz"
