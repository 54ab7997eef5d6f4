"""The recipe of the embedded model: the three networks of `assets/models/emoji`, trained on the emoji world.

Contract: each function trains one network from scratch, or on from its newest checkpoint, in its own folder of a
run directory, and writes the part of the model folder that `dalle_mini.load` reads. Sizes are for two CPU cores.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

import vqgan
from dalle_mini import decode, device, tokenizer
from dalle_mini.checkpoint import save_model
from dalle_mini.config import ModelConfig, SamplingParams
from dalle_mini.gallery import contact_sheet
from dalle_mini.training.dalle import DalleTrainConfig, Examples
from dalle_mini.training.dalle import train as fit_dalle
from dalle_mini.training.emoji import NAMES, Scene, World
from vqgan.config import VQGANConfig
from vqgan.model import encode as encode_pixels
from vqgan.train import Batch, VQGANTrainConfig, same_cells
from vqgan.train import train as fit_vqgan
from vqgan.train import train_decoder as fit_decoder

VQGAN_SIZES = VQGANConfig(
    resolution=64,
    ch=16,
    ch_mult=(1, 2, 4, 4),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=64,
    n_embed=1024,
    embed_dim=8,
    num_groups=4,
)
OBJECTS_PER_BATCH = 5  # few, so that a batch shows the same squares in many surroundings


VQGAN_STEPS, DECODER_STEPS, DALLE_STEPS, CLIP_STEPS = 5000, 1500, 4000, 1000
TEXT_LENGTH = 32
VOCABULARY = 1024
EXAMPLES = 50_000


def train_vqgan(run: Path, *, steps: int = VQGAN_STEPS, seed: int = 0) -> None:
    """Pictures to codes and back."""
    device.set_up()
    world = World(VQGAN_SIZES.resolution)
    config = VQGANTrainConfig(steps=steps, warmup_steps=min(50, steps // 2), seed=seed)

    def batches(step: int) -> Batch:
        rng = np.random.default_rng((seed, step))
        names = rng.choice(NAMES, OBJECTS_PER_BATCH, replace=False).tolist()
        scenes = [world.draw(rng, names) for _ in range(config.batch_size)]
        content = np.stack([world.content(scene) for scene in scenes])
        return Batch(np.stack([world.paint(scene) for scene in scenes]), same_cells(content, VQGAN_SIZES.downscale))

    params = fit_vqgan(VQGAN_SIZES, config, batches, out=run / "vqgan", held_out=_held_out_pictures(world))
    vqgan.save(run / "model" / "vqgan", VQGAN_SIZES, params)


def train_decoder(run: Path, *, steps: int = DECODER_STEPS, seed: int = 0) -> None:
    """The VQGAN's decoder alone, for sharper pictures from the same codes: any time after `train_vqgan`."""
    device.set_up()
    world = World(VQGAN_SIZES.resolution)
    config = VQGANTrainConfig(steps=steps, warmup_steps=min(50, steps // 2), seed=seed)

    def pictures(step: int) -> np.ndarray:
        rng = np.random.default_rng((seed, 1, step))
        return np.stack([world.paint(world.draw(rng)) for _ in range(config.batch_size)])

    painter = vqgan.load(run / "model" / "vqgan")
    held_out = _held_out_pictures(world)
    params = fit_decoder(VQGAN_SIZES, config, painter.params, pictures, out=run / "decoder", held_out=held_out)
    vqgan.save(run / "model" / "vqgan", VQGAN_SIZES, params)


def _held_out_pictures(world: World) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([world.paint(world.draw(rng, held=True)) for _ in range(16)])


def train_tokenizer(run: Path) -> tokenizer.Tokenizer:
    """The byte-level BPE of the world's captions, made once for the text-to-code model and CLIP."""
    folder = run / "model" / "dalle"
    if not (folder / "tokenizer.json").exists():
        world, rng = World(VQGAN_SIZES.resolution), np.random.default_rng(0)
        captions = [world.draw(rng).caption for _ in range(20_000)]
        tokenizer.train(captions, folder, vocab_size=VOCABULARY, max_text_length=TEXT_LENGTH)
    return tokenizer.Tokenizer.load(folder, max_text_length=TEXT_LENGTH, normalize=True)


def _examples(run: Path, count: int, *, held: bool, seed: int) -> Examples:
    """Captions as tokens and pictures as codes, made once and kept in `run`."""
    file = run / ("codes-held-out.npz" if held else "codes.npz")
    if not file.exists():
        world, rng = World(VQGAN_SIZES.resolution), np.random.default_rng((seed, held))
        scenes = [world.draw(rng, held=held) for _ in range(count)]
        painter = vqgan.load(run / "model" / "vqgan")
        encode = jax.jit(lambda params, pixels: encode_pixels(params, VQGAN_SIZES, pixels.astype(jnp.float32) / 255))
        parts = [
            np.asarray(encode(painter.params, np.stack([world.paint(scene) for scene in scenes[i : i + 50]])))
            for i in tqdm(range(0, count, 50), unit_scale=50, unit="picture", desc=file.stem, mininterval=5)
        ]
        captions = np.array([scene.caption for scene in scenes])
        np.savez(file, codes=np.concatenate(parts).astype(np.uint16), captions=captions)
    made = np.load(file)
    reader = train_tokenizer(run)
    empty_tokens, empty_mask = reader.encode_batch([""])
    tokens, mask = reader.encode_batch(made["captions"].tolist())
    return Examples(tokens, mask, made["codes"].astype(np.int32), (empty_tokens[0], empty_mask[0]))


def train_dalle(run: Path, *, steps: int = DALLE_STEPS, examples: int = EXAMPLES, seed: int = 0) -> None:
    """Captions to codes, on the codes of the VQGAN that `train_vqgan` left in `run`."""
    device.set_up()
    data = _examples(run, examples, held=False, seed=seed)
    held_out = _examples(run, 500, held=True, seed=seed)
    folder = run / "model" / "dalle"
    reader = train_tokenizer(run)
    sizes = ModelConfig(
        encoder_vocab_size=reader.vocab_size,
        image_vocab_size=VQGAN_SIZES.n_embed,
        codebook_size=VQGAN_SIZES.n_embed,
        decoder_start_token_id=VQGAN_SIZES.n_embed,
        image_length=VQGAN_SIZES.side**2,
        max_text_length=TEXT_LENGTH,
        d_model=192,
        encoder_layers=2,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        normalize_text=True,
        sampling=SamplingParams(condition_scale=1.5, temperature=0.7),
    )
    painter = vqgan.load(run / "model" / "vqgan")

    @jax.jit
    def draw(params: dict[str, Any]) -> jax.Array:
        state = decode.empty_state(sizes, 16)
        tokens = jnp.stack([jnp.asarray(held_out.tokens[:16]), jnp.tile(held_out.empty[0], (16, 1))], 1)
        mask = jnp.stack([jnp.asarray(held_out.mask[:16]), jnp.tile(held_out.empty[1], (16, 1))], 1)
        prefix = decode.prefill(params, sizes, tokens.reshape(32, -1), mask.reshape(32, -1))
        scale = jnp.full(16, sizes.sampling.condition_scale)
        top_k = jnp.full(16, sizes.sampling.top_k)
        state = state._replace(cross=prefix, sampling=state.sampling._replace(condition_scale=scale, top_k=top_k))
        rows = []
        for _ in range(sizes.side):
            state, row = decode.decode_row(params, sizes, state)
            rows.append(row)
        return jnp.concatenate(rows, 1)

    def sheet(params: dict[str, Any]) -> Image.Image:
        save_model(folder, sizes, params, dtype="float16")  # each sheet leaves a usable model
        return contact_sheet([Image.fromarray(pixels) for pixels in painter.decode(np.asarray(draw(params)))])

    params = fit_dalle(
        sizes,
        DalleTrainConfig(steps=steps, batch_size=48, seed=seed),
        data,
        held_out=held_out,
        out=run / "dalle",
        sheet=sheet,
    )
    save_model(folder, sizes, params, dtype="float16")


def train_clip(run: Path, *, steps: int = CLIP_STEPS, batch_size: int = 128, seed: int = 0) -> None:
    """Pictures and captions to one space."""
    from clip_rerank.train import ClipTrainConfig
    from clip_rerank.train import train_clip as fit_clip

    world = World(VQGAN_SIZES.resolution)
    train_tokenizer(run)

    def batches(step: int) -> tuple[np.ndarray, list[str]]:
        rng = np.random.default_rng((seed, step))
        scenes: list[Scene] = []
        while len(scenes) < batch_size:
            # Two objects in a stretch of the batch, so that order, relation, number, size and background have to tell.
            names = rng.choice(NAMES, 2, replace=False).tolist()
            scenes += [world.draw(rng, names) for _ in range(8)]
        scenes = scenes[:batch_size]
        return np.stack([world.paint(scene) for scene in scenes]), [scene.caption for scene in scenes]

    config = ClipTrainConfig(steps=steps, warmup_steps=min(100, steps // 10), seed=seed)
    folder = fit_clip(config, batches, tokenizer_folder=run / "model" / "dalle", out=run / "clip")
    shutil.copytree(folder, run / "model" / "clip", dirs_exist_ok=True)
