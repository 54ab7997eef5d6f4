"""The recipe of the embedded model: the three networks of `assets/models/emoji`, trained on the emoji world.

Contract: each function trains one network from scratch, or on from its newest checkpoint, in its own folder of a
run directory, and writes the part of the model folder that `dalle_mini.load` reads. Sizes and settings are those of a
recipe, recipes/emoji.toml; what is said here is what its data are.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import vqgan
from dalle_mini import device, tokenizer
from dalle_mini.checkpoint import save_model
from dalle_mini.config import ModelConfig
from dalle_mini.gallery import contact_sheet
from dalle_mini.training.dalle.train import Examples, draw
from dalle_mini.training.dalle.train import train as fit_dalle
from dalle_mini.training.data.rows import check_same, write_json
from dalle_mini.training.emoji.world import COLOURS, GRID, NAMES, Scene, World, held_out, things
from dalle_mini.training.recipe import Recipe
from dalle_mini.training.vqgan.train import Batch, same_cells
from dalle_mini.training.vqgan.train import train as fit_vqgan
from dalle_mini.training.vqgan.train import train_decoder as fit_decoder
from dalle_mini.vocabulary import Vocabulary

OBJECTS_PER_BATCH = 8  # few, so that a batch shows the same squares in many surroundings
DECODER_STEPS = 4500
EXAMPLES = 150_000
OWN_SPELLINGS = 1000
CLIP_EXAMPLES = 32_768
BARE = -1  # in a spelling: nothing is drawn here


def train_vqgan(run: Path, recipe: Recipe) -> None:
    """Pictures to codes and back."""
    device.set_up()
    sizes, config = recipe.vqgan(), recipe.vqgan_training()
    world = World(sizes.resolution)
    _begin(run / "vqgan", {"sizes": dataclasses.asdict(sizes), "recipe": dataclasses.asdict(config)})

    def batches(step: int) -> Batch:
        rng = np.random.default_rng((config.seed, step))
        names = rng.choice(NAMES, OBJECTS_PER_BATCH, replace=False).tolist()
        pixels = np.stack([world.paint(world.draw(rng, names)) for _ in range(config.batch_size)])
        return Batch(pixels, same_cells(pixels, sizes.downscale))

    held_out = np.stack([world.paint(scene) for scene in _held_out_scenes(world, 16)])
    params = fit_vqgan(sizes, config, batches, out=run / "vqgan", held_out=held_out)
    vqgan.save(run / "model" / "vqgan", sizes, params)


def train_decoder(run: Path, recipe: Recipe) -> None:
    """The VQGAN's decoder alone, on the codes that the text-to-code model will write: after `train_vqgan`."""
    device.set_up()
    world, painter = _load(run)
    spelling = Spelling(world, painter)
    config = dataclasses.replace(recipe.vqgan_training(), steps=DECODER_STEPS)
    seed = config.seed

    # A quarter of the pictures as the encoder itself spells them: it stays an auto-encoder.
    rng, quarter = np.random.default_rng((seed, 1)), config.batch_size // 4
    own_pixels = np.stack([world.paint(world.draw(rng)) for _ in range(OWN_SPELLINGS)])
    own_codes = painter.encode(own_pixels)

    def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, 1, step))
        scenes = [world.draw(rng) for _ in range(config.batch_size - quarter)]
        own = rng.integers(OWN_SPELLINGS, size=quarter)
        codes = np.concatenate([spelling.codes(scenes), own_codes[own]])
        return codes, np.concatenate([np.stack([world.paint(scene) for scene in scenes]), own_pixels[own]])

    scenes = _held_out_scenes(world, 16)
    held_out = spelling.codes(scenes), np.stack([world.paint(scene) for scene in scenes])
    params = fit_decoder(painter.config, config, painter.params, batches, out=run / "decoder", held_out=held_out)
    vqgan.save(run / "model" / "vqgan", painter.config, params)


class Spelling:
    """How the VQGAN's encoder spells the objects and the backgrounds of the world.

    The encoder sees more than a square: at its edge, an object has somewhat different codes over every background. A
    text-to-code model would have to learn each of them. So one spelling is chosen for every object of every size, by a
    vote over the backgrounds and places of training, and scenes are composed of these; squares without anything drawn
    have the one code of their background. Nothing that is held out is looked at.
    """

    def __init__(self, world: World, painter: vqgan.VQGAN) -> None:
        self.blocks: dict[tuple[str, int], np.ndarray] = {}  # int [size, size], BARE where nothing is drawn
        grounds: dict[str, list[np.ndarray]] = {colour: [] for colour in COLOURS}
        cell = painter.config.downscale
        for (name, size), sprite in tqdm(world.sprites.items(), unit="object", desc="spelling", mininterval=5):
            drawn = sprite[..., 3].reshape(size, cell, size, cell).any((1, 3))
            scenes = world.alone(name, size)
            codes = painter.encode(np.stack([world.paint(scene) for scene in scenes])).reshape(-1, GRID, GRID)
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


def _begin(out: Path, recipe: dict[str, dict[str, Any]]) -> None:
    """A run goes on with the recipe it was begun with, or not at all."""
    check_same(out / "config.json", recipe)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", recipe)


def _held_out_scenes(world: World, count: int) -> list[Scene]:
    rng = np.random.default_rng(1)
    return [world.draw(rng, held=True) for _ in range(count)]


def _scenes(world: World, rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes for the text-to-code model, more than half of them pairs: which is where takes longest to learn.

    Captions without a background mostly mean white. A model that never sees an object on white, because that is held
    out, learns from them to avoid white for this object, even where a caption asks for it. So such captions are left
    out for such objects.
    """
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = world.draw(rng)
        if scene.kind != "pair" and rng.random() < 0.5:
            continue
        if scene.names_background or not any(held_out("background", each.name, "white") for each in scene.sprites):
            scenes.append(scene)
    return scenes


def _load(run: Path) -> tuple[World, vqgan.VQGAN]:
    """The run's VQGAN, and the world at its resolution. Raises ValueError if there is none yet."""
    folder = run / "model" / "vqgan"
    if not folder.is_dir():
        raise ValueError(f"run must hold the VQGAN of the emoji world, which `train vqgan` makes, got none in {folder}")
    painter = vqgan.load(folder)
    return World(painter.config.resolution), painter


def train_tokenizer(run: Path, world: World, sizes: ModelConfig) -> tokenizer.Tokenizer:
    """The byte-level BPE of the world's captions, made once for the text-to-code model and CLIP."""
    folder, length = run / "model" / "dalle", sizes.max_text_length
    if not (folder / "tokenizer.json").exists():
        rng = np.random.default_rng(0)
        captions = [world.draw(rng).caption for _ in range(20_000)]
        Vocabulary.of(captions, things()).save(folder)
        tokenizer.train(captions, folder, vocab_size=sizes.encoder_vocab_size, max_text_length=length)
    return tokenizer.Tokenizer.load(folder, max_text_length=length, normalize=sizes.normalize_text)


def _examples(scenes: Sequence[Scene], spelling: Spelling, reader: tokenizer.Tokenizer) -> Examples:
    empty_tokens, empty_mask = reader.encode_batch([""])
    tokens, mask = reader.encode_batch([scene.caption for scene in scenes])
    return Examples(tokens, mask, spelling.codes(scenes), (empty_tokens[0], empty_mask[0]))


def train_dalle(run: Path, recipe: Recipe, *, examples: int = EXAMPLES) -> None:
    """Captions to codes, on the codes of the VQGAN that `train_vqgan` left in `run`."""
    device.set_up()
    config, (world, painter) = recipe.dalle_training(), _load(run)
    sizes, rng = recipe.dalle(painter=painter.config), np.random.default_rng(config.seed)
    spelling, reader = Spelling(world, painter), train_tokenizer(run, world, sizes)
    # The recipe says how many tokens there may be; the captions of this world fill less.
    sizes = dataclasses.replace(sizes, encoder_vocab_size=reader.vocab_size)
    data = _examples(_scenes(world, rng, examples), spelling, reader)
    held_out = _examples(_held_out_scenes(world, 500), spelling, reader)
    folder, shown = run / "model" / "dalle", held_out.first(16)
    _begin(run / "dalle", {"sizes": sizes.to_dict(), "recipe": dataclasses.asdict(config)})

    def sheet(params: dict[str, Any]) -> Image.Image:
        save_model(folder, sizes, params, dtype="float16")  # each sheet leaves a usable model
        return contact_sheet([Image.fromarray(pixels) for pixels in painter.decode(draw(params, sizes, shown))])

    params = fit_dalle(sizes, config, data, held_out=held_out, out=run / "dalle", sheet=sheet)
    save_model(folder, sizes, params, dtype="float16")


def train_clip(run: Path, recipe: Recipe) -> None:
    """Pictures and captions to one space, on pictures as the run's VQGAN paints them: after `train_decoder`."""
    device.set_up()
    from dalle_mini.training.clip.train import train_clip as fit_clip

    config, (world, painter) = recipe.clip_training(), _load(run)
    spelling, rng = Spelling(world, painter), np.random.default_rng(config.seed)
    train_tokenizer(run, world, recipe.dalle())
    scenes: list[Scene] = []
    while len(scenes) < CLIP_EXAMPLES:
        # Two objects in a stretch of a batch, so that order, relation, number, size and background have to tell.
        names = rng.choice(NAMES, 2, replace=False).tolist()
        scenes += [world.draw(rng, names) for _ in range(8)]
    codes = np.stack([spelling.codes(scenes), np.stack([spelling.spoiled(scene, rng) for scene in scenes])])
    # uint8 [right and spoiled, scenes, H, W, 3]
    pixels = np.stack([np.concatenate([painter.decode(some) for some in np.split(each, 256)]) for each in codes])

    def batches(step: int) -> tuple[np.ndarray, list[str]]:
        stretches = np.random.default_rng((config.seed, step)).integers(CLIP_EXAMPLES // 8, size=config.batch_size // 8)
        chosen = (8 * stretches[:, None] + np.arange(8)).ravel()
        return np.concatenate(pixels[:, chosen]), [scenes[i].caption for i in chosen]

    folder = fit_clip(config, batches, tokenizer_folder=run / "model" / "dalle", out=run / "clip")
    shutil.copytree(folder, run / "model" / "clip", dirs_exist_ok=True)
