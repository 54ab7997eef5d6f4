"""The recipes of the embedded model: the networks of `assets/models/emoji`, trained on the emoji world.

Contract: each function trains one network from scratch, or on from its newest checkpoint, in its own folder of a
run, and writes the part of the model folder that `dalle_mini.load` reads. Sizes, settings and objects are those of a
recipe, recipes/emoji.toml; what is said here is what their data are.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import vqgan
from dalle_mini import device
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.dvae.train import train as fit_dvae
from dalle_mini.training.emoji.scene import Scene
from dalle_mini.training.emoji.spelling import Spelling
from dalle_mini.training.emoji.world import World
from dalle_mini.training.recipe import Recipe
from dalle_mini.training.run import begin, check_own_codec, once
from dalle_mini.training.run_tokenizer import load_tokenizer, make_tokenizer
from dalle_mini.training.tasks.text_to_code import train_text_to_code
from dalle_mini.training.vqgan.decoder import train_decoder as fit_decoder
from dalle_mini.training.vqgan.encoder import train_encoder as fit_encoder
from dalle_mini.training.vqgan.losses import same_cells
from dalle_mini.training.vqgan.train import train as fit_vqgan
from dalle_mini.training.vqgan.train_step import Batch
from dalle_mini.vocabulary import Vocabulary
from vqgan.config import VQGANConfig

SPRITES_PER_BATCH = 8  # few, so that a batch shows the same squares in many surroundings
OWN_SPELLINGS, STRANGE_PICTURES = 1000, 8000
SPELLING = Path("model", "spelling")  # folder of a run
AT_ONCE = 4096  # scenes in memory
TOKENIZER_CAPTIONS = 20_000
VALIDATION_SCENES = 500


def train_vqgan(run: Path, recipe: Recipe) -> None:
    """Pictures to codes and back."""
    device.set_up()
    sizes, config = recipe.vqgan(), recipe.vqgan_training()
    check_own_codec(run, "vqgan")
    world = World.open(recipe.world(), sizes.resolution)
    begin(run / "vqgan", {"sizes": dataclasses.asdict(sizes), **_facts(recipe, config)})
    objects = max(world.fewest, SPRITES_PER_BATCH // len(world.styles))

    def batches(step: int) -> Batch:
        rng = np.random.default_rng((config.seed, step))
        names = rng.choice(world.names, objects, replace=False).tolist()
        pixels = np.stack([world.paint(world.draw(rng, names)) for _ in range(config.batch_size)])
        return Batch(pixels, same_cells(pixels, sizes.downscale))

    held_out = np.stack([world.paint(scene) for scene in _held_out_scenes(world, 16)])
    params = fit_vqgan(sizes, config, batches, out=run / "vqgan", held_out=held_out)
    once(lambda: vqgan.save(run / "model" / "vqgan", sizes, params), "vqgan")


def train_dvae(run: Path, recipe: Recipe) -> None:
    """As `train_vqgan`, of a dVAE: for a run of its own."""
    device.set_up()
    sizes, config = recipe.dvae(), recipe.dvae_training()
    check_own_codec(run, "dvae")
    world = World.open(recipe.world(), sizes.resolution)
    begin(run / "dvae", {"sizes": dataclasses.asdict(sizes), **_facts(recipe, config)})

    def batches(step: int) -> np.ndarray:
        rng = np.random.default_rng((config.seed, step))
        return np.stack([world.paint(world.draw(rng)) for _ in range(config.batch_size)])

    held_out = np.stack([world.paint(scene) for scene in _held_out_scenes(world, 16)])
    params = fit_dvae(sizes, config, batches, out=run / "dvae", held_out=held_out)
    once(lambda: vqgan.save(run / "model" / "vqgan", sizes, params), "dvae")


def train_encoder(run: Path, recipe: Recipe) -> None:
    """The VQGAN's encoder alone, to write what it votes for: after `train_vqgan`, before the others."""
    device.set_up()
    config, (world, network) = recipe.encoder_training(), _load(run, recipe)
    sizes = _vqgan_sizes(network, "encoder")
    begin(run / "encoder", _facts(recipe, config))
    spelling = Spelling.of(world, network, run / SPELLING)

    def draw(rng: np.random.Generator, count: int) -> list[Scene]:
        scenes = [world.full(rng) if i % 2 else world.draw(rng) for i in range(count)]
        scenes[::4] = [scene.alone(int(rng.integers(len(scene.sprites)))) for scene in scenes[::4]]
        return scenes

    rng = np.random.default_rng((config.seed, 2))
    strange = np.stack([_strange(world.paint(world.draw(rng)), rng) for _ in range(STRANGE_PICTURES)])
    batches = _spelt_and_others(world, spelling, draw, (network, strange), (config.seed, 2), config.batch_size)
    shown = np.stack([world.paint(scene) for scene in _held_out_scenes(world, 16)])
    params = fit_encoder(sizes, config, network.params, batches, out=run / "encoder", held_out=shown)

    def keep() -> None:
        finished = run / "encoder" / "vqgan"
        vqgan.save(finished, sizes, params)
        spelling.keep(vqgan.load(finished), run / SPELLING)  # as a file rounds it, and before the model has it
        vqgan.save(run / "model" / "vqgan", sizes, params)

    once(keep, "vqgan")


def train_decoder(run: Path, recipe: Recipe) -> None:
    """The VQGAN's decoder alone, on the codes that the text-to-code model will write: after `train_vqgan`."""
    device.set_up()
    config, (world, network) = recipe.decoder_training(), _load(run, recipe)
    before = _vqgan_sizes(network, "decoder")
    begin(run / "decoder", _facts(recipe, config))
    spelling = Spelling.of(world, network, run / SPELLING)

    def draw(rng: np.random.Generator, count: int) -> list[Scene]:
        return [world.full(rng) if i % 3 else world.draw(rng) for i in range(count)]

    rng = np.random.default_rng((config.seed, 1))
    own = np.stack([world.paint(world.draw(rng)) for _ in range(OWN_SPELLINGS)])
    batches = _spelt_and_others(world, spelling, draw, (network, own), (config.seed, 1), config.batch_size)
    scenes = _held_out_scenes(world, 16)
    held_out = spelling.codes(scenes), np.stack([world.paint(scene) for scene in scenes])
    sizes, params = fit_decoder(before, config, network.params, batches, out=run / "decoder", held_out=held_out)
    once(lambda: vqgan.save(run / "model" / "vqgan", sizes, params), "vqgan")


def _spelt_and_others(
    world: World,
    spelling: Spelling,
    draw: Callable[[np.random.Generator, int], list[Scene]],
    others: tuple[vqgan.Codec, np.ndarray],
    seed: tuple[int, int],
    size: int,
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Codes and pixels by step: scenes as they are spelt, and a quarter of `others`, with the codes that they have.

    The VQGAN stays an auto-encoder by these.
    """
    network, pixels = others
    codes, quarter = network.encode(pixels), size // 4

    def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((*seed, step))
        scenes, some = draw(rng, size - quarter), rng.integers(len(pixels), size=quarter)
        painted = np.stack([world.paint(scene) for scene in scenes])
        return np.concatenate([spelling.codes(scenes), codes[some]]), np.concatenate([painted, pixels[some]])

    return batches


def _strange(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Off the grid, mirrored or not, in other colours."""
    moved = np.roll(pixels, rng.integers(len(pixels), size=2), axis=(0, 1))
    return (moved[:, :: rng.choice((1, -1))] * rng.uniform(0.5, 1, 3)).astype(np.uint8)


def _vqgan_sizes(network: vqgan.Codec, part: str) -> VQGANConfig:
    if not isinstance(network.config, VQGANConfig):
        raise ValueError(f"run must hold a VQGAN for train {part}, got a {network.name}")
    return network.config


def _held_out_scenes(world: World, count: int) -> list[Scene]:
    rng = np.random.default_rng(1)
    return [world.draw_held(rng) for _ in range(count)]


def _facts(recipe: Recipe, training: Any) -> dict[str, dict[str, Any]]:
    """What every stage of a run is begun with."""
    return {"recipe": dataclasses.asdict(training), "data": dataclasses.asdict(recipe.world())}


def _load(run: Path, recipe: Recipe) -> tuple[World, vqgan.Codec]:
    """The run's VQGAN, and the recipe's world at its resolution. Raises ValueError if there is none yet."""
    folder = run / "model" / "vqgan"
    if not folder.is_dir():
        raise ValueError(f"run must hold the VQGAN of the emoji world, which `train vqgan` makes, got none in {folder}")
    network = vqgan.load(folder)
    return World.open(recipe.world(), network.config.resolution), network


def _make_tokenizer(run: Path, recipe: Recipe, world: World, source: str = "") -> Path:
    """The byte-level BPE of the world's captions, made once for the text-to-code model and CLIP."""
    folder, sizes = run / "model" / "dalle", recipe.dalle()

    def captions() -> list[str]:
        rng = np.random.default_rng(0)
        return [world.draw(rng).caption for _ in range(TOKENIZER_CAPTIONS)]

    limits = {"vocab_size": sizes.encoder_vocab_size, "max_text_length": sizes.max_text_length}
    make_tokenizer(folder, captions, source=source, **limits)
    return folder


def train_dalle(run: Path, recipe: Recipe, *, tokenizer: str = "", track: str = "") -> None:
    """Captions to codes, on the codes of the VQGAN that `train_vqgan` left in `run`.

    tokenizer: a folder or hub id with one; that of the model to go on from, or one that is learned from the world's
    captions, when left out. track: trackio or wandb.
    """
    device.set_up()
    world, network = _load(run, recipe)
    sizes, rng = recipe.dalle(vqgan=network.config), np.random.default_rng(recipe.dalle_training().seed)
    source = tokenizer or recipe.dalle_training().init
    reader = load_tokenizer(_make_tokenizer(run, recipe, world, source), sizes)
    # The recipe says how many tokens there may be; the captions of this world fill less.
    sizes = dataclasses.replace(sizes, encoder_vocab_size=reader.vocab_size)
    begin(run / "dalle", {"sizes": sizes.to_dict(), **_facts(recipe, recipe.dalle_training())})
    spelling = Spelling.of(world, network, run / SPELLING)
    captions, codes = _examples(world, spelling, rng, recipe.world().examples)
    held = _held_out_scenes(world, VALIDATION_SCENES)
    shown = [scene.caption for scene in held]
    train_text_to_code(
        recipe,
        run,
        sizes,
        examples=Examples.of(captions, codes, reader),
        held_out=Examples.of(shown, spelling.codes(held), reader),
        shown=shown,
        vqgan=network,
        vocabulary=Vocabulary.of(captions, world.things()),
        track=track,
    )


def _examples(world: World, spelling: Spelling, rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
    """Captions and their codes, int32 [count, T]; the scenes themselves would fill the memory."""
    captions, codes = [], []
    for start in range(0, count, AT_ONCE):
        scenes = [world.draw(rng) for _ in range(min(AT_ONCE, count - start))]
        captions += [scene.caption for scene in scenes]
        codes.append(spelling.codes(scenes))
    return captions, np.concatenate(codes)


def train_clip(run: Path, recipe: Recipe) -> None:
    """Pictures and captions to one space, on pictures as the run's VQGAN paints them: after `train_decoder`."""
    device.set_up()
    from dalle_mini.training.clip.train import train as fit_clip

    config, (world, network) = recipe.clip_training(), _load(run, recipe)
    rng, count = np.random.default_rng(config.seed), recipe.world().clip_examples
    tokenizer_folder = _make_tokenizer(run, recipe, world)
    begin(run / "clip", _facts(recipe, config))
    spelling = Spelling.of(world, network, run / SPELLING)
    scenes: list[Scene] = []
    while len(scenes) < count:
        # Few objects in a stretch of a batch, so that order, relation, number, size, style and background have to tell.
        names = rng.choice(world.names, world.fewest, replace=False).tolist()
        scenes += [world.draw(rng, names) for _ in range(8)]
    codes = np.stack([spelling.codes(scenes), np.stack([spelling.spoiled(scene, rng) for scene in scenes])])
    # uint8 [right and spoiled, scenes, H, W, 3]
    pixels = np.stack([_paint(network, each, config.image_size) for each in codes])

    def batches(step: int) -> tuple[np.ndarray, list[str]]:
        stretches = np.random.default_rng((config.seed, step)).integers(count // 8, size=config.batch_size // 8)
        chosen = (8 * stretches[:, None] + np.arange(8)).ravel()
        return np.concatenate(pixels[:, chosen]), [scenes[i].caption for i in chosen]

    folder = fit_clip(config, batches, tokenizer_folder=tokenizer_folder, out=run / "clip")
    shutil.copytree(folder, run / "model" / "clip", dirs_exist_ok=True)


def _paint(network: vqgan.Codec, codes: np.ndarray, side: int) -> np.ndarray:
    """uint8 [codes, side, side, 3], made smaller as CLIP's own reader of pictures does it."""
    painted = np.empty((len(codes), side, side, 3), np.uint8)
    for start in tqdm(range(0, len(codes), 128), unit="batch", desc="painting", mininterval=5):
        for i, pixels in enumerate(network.decode(codes[start : start + 128]), start):
            painted[i] = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    return painted
