"""The recipe of the embedded model: the three networks of `assets/models/emoji`, trained on the emoji world.

Contract: each function trains one network from scratch, or on from its newest checkpoint, in its own folder of a
run, and writes the part of the model folder that `dalle_mini.load` reads. Sizes and settings are those of a
recipe, recipes/emoji.toml; what is said here is what its data are.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np

import vqgan
from dalle_mini import device
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.emoji.spelling import Spelling
from dalle_mini.training.emoji.world import NAMES, Scene, World, held_out, things
from dalle_mini.training.recipe import Recipe
from dalle_mini.training.run import begin, once
from dalle_mini.training.run_tokenizer import load_tokenizer, make_tokenizer
from dalle_mini.training.tasks.text_to_code import train_text_to_code
from dalle_mini.training.vqgan.decoder import train_decoder as fit_decoder
from dalle_mini.training.vqgan.losses import same_cells
from dalle_mini.training.vqgan.train import train as fit_vqgan
from dalle_mini.training.vqgan.train_step import Batch
from dalle_mini.vocabulary import Vocabulary

OBJECTS_PER_BATCH = 8  # few, so that a batch shows the same squares in many surroundings
EXAMPLES = 150_000
OWN_SPELLINGS = 1000
CLIP_EXAMPLES = 32_768
TOKENIZER_CAPTIONS = 20_000
VALIDATION_SCENES = 500


def train_vqgan(run: Path, recipe: Recipe) -> None:
    """Pictures to codes and back."""
    device.set_up()
    sizes, config = recipe.vqgan(), recipe.vqgan_training()
    world = World(sizes.resolution)
    begin(run / "vqgan", {"sizes": dataclasses.asdict(sizes), "recipe": dataclasses.asdict(config)})

    def batches(step: int) -> Batch:
        rng = np.random.default_rng((config.seed, step))
        names = rng.choice(NAMES, OBJECTS_PER_BATCH, replace=False).tolist()
        pixels = np.stack([world.paint(world.draw(rng, names)) for _ in range(config.batch_size)])
        return Batch(pixels, same_cells(pixels, sizes.downscale))

    held_out = np.stack([world.paint(scene) for scene in _held_out_scenes(world, 16)])
    params = fit_vqgan(sizes, config, batches, out=run / "vqgan", held_out=held_out)
    once(lambda: vqgan.save(run / "model" / "vqgan", sizes, params), "vqgan")


def train_decoder(run: Path, recipe: Recipe) -> None:
    """The VQGAN's decoder alone, on the codes that the text-to-code model will write: after `train_vqgan`."""
    device.set_up()
    world, network = _load(run)
    spelling = Spelling(world, network)
    config = recipe.decoder_training()
    begin(run / "decoder", {"recipe": dataclasses.asdict(config)})
    seed = config.seed

    # A quarter of the pictures as the encoder itself spells them: it stays an auto-encoder.
    rng, quarter = np.random.default_rng((seed, 1)), config.batch_size // 4
    own_pixels = np.stack([world.paint(world.draw(rng)) for _ in range(OWN_SPELLINGS)])
    own_codes = network.encode(own_pixels)

    def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((seed, 1, step))
        scenes = [world.draw(rng) for _ in range(config.batch_size - quarter)]
        own = rng.integers(OWN_SPELLINGS, size=quarter)
        codes = np.concatenate([spelling.codes(scenes), own_codes[own]])
        return codes, np.concatenate([np.stack([world.paint(scene) for scene in scenes]), own_pixels[own]])

    scenes = _held_out_scenes(world, 16)
    held_out = spelling.codes(scenes), np.stack([world.paint(scene) for scene in scenes])
    params = fit_decoder(network.config, config, network.params, batches, out=run / "decoder", held_out=held_out)
    once(lambda: vqgan.save(run / "model" / "vqgan", network.config, params), "vqgan")


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
    network = vqgan.load(folder)
    return World(network.config.resolution), network


def _make_tokenizer(run: Path, recipe: Recipe, world: World, source: str = "") -> Path:
    """The byte-level BPE of the world's captions, made once for the text-to-code model and CLIP."""
    folder, sizes = run / "model" / "dalle", recipe.dalle()

    def captions() -> list[str]:
        rng = np.random.default_rng(0)
        return [world.draw(rng).caption for _ in range(TOKENIZER_CAPTIONS)]

    limits = {"vocab_size": sizes.encoder_vocab_size, "max_text_length": sizes.max_text_length}
    make_tokenizer(folder, captions, source=source, **limits)
    return folder


def train_dalle(run: Path, recipe: Recipe, *, examples: int = EXAMPLES, tokenizer: str = "", track: str = "") -> None:
    """Captions to codes, on the codes of the VQGAN that `train_vqgan` left in `run`.

    tokenizer: a folder or hub id with one; one is learned from the world's captions when left out. track: trackio or
    wandb.
    """
    device.set_up()
    world, network = _load(run)
    sizes, rng = recipe.dalle(vqgan=network.config), np.random.default_rng(recipe.dalle_training().seed)
    reader = load_tokenizer(_make_tokenizer(run, recipe, world, tokenizer), sizes)
    # The recipe says how many tokens there may be; the captions of this world fill less.
    sizes = dataclasses.replace(sizes, encoder_vocab_size=reader.vocab_size)
    settings = dataclasses.asdict(recipe.dalle_training())
    begin(run / "dalle", {"sizes": sizes.to_dict(), "recipe": settings, "data": {"examples": examples}})
    spelling = Spelling(world, network)
    trained, held = _scenes(world, rng, examples), _held_out_scenes(world, VALIDATION_SCENES)
    data, held_out = (
        Examples.of([scene.caption for scene in scenes], spelling.codes(scenes), reader) for scenes in (trained, held)
    )
    train_text_to_code(
        recipe,
        run,
        sizes,
        examples=data,
        held_out=held_out,
        shown=[scene.caption for scene in held],
        vqgan=network,
        vocabulary=Vocabulary.of([scene.caption for scene in trained], things()),
        track=track,
    )


def train_clip(run: Path, recipe: Recipe) -> None:
    """Pictures and captions to one space, on pictures as the run's VQGAN paints them: after `train_decoder`."""
    device.set_up()
    from dalle_mini.training.clip.train import train as fit_clip

    config, (world, network) = recipe.clip_training(), _load(run)
    spelling, rng = Spelling(world, network), np.random.default_rng(config.seed)
    tokenizer_folder = _make_tokenizer(run, recipe, world)
    begin(run / "clip", {"recipe": dataclasses.asdict(config)})
    scenes: list[Scene] = []
    while len(scenes) < CLIP_EXAMPLES:
        # Two objects in a stretch of a batch, so that order, relation, number, size and background have to tell.
        names = rng.choice(NAMES, 2, replace=False).tolist()
        scenes += [world.draw(rng, names) for _ in range(8)]
    codes = np.stack([spelling.codes(scenes), np.stack([spelling.spoiled(scene, rng) for scene in scenes])])
    # uint8 [right and spoiled, scenes, H, W, 3]
    pixels = np.stack([np.concatenate([network.decode(some) for some in np.split(each, 256)]) for each in codes])

    def batches(step: int) -> tuple[np.ndarray, list[str]]:
        stretches = np.random.default_rng((config.seed, step)).integers(CLIP_EXAMPLES // 8, size=config.batch_size // 8)
        chosen = (8 * stretches[:, None] + np.arange(8)).ravel()
        return np.concatenate(pixels[:, chosen]), [scenes[i].caption for i in chosen]

    folder = fit_clip(config, batches, tokenizer_folder=tokenizer_folder, out=run / "clip")
    shutil.copytree(folder, run / "model" / "clip", dirs_exist_ok=True)
