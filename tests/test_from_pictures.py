"""A VQGAN and a CLIP of a folder of pictures: every loss at work, resumed to the bit, on one device or eight."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patience import eventually
from PIL import Image

import dalle_mini.training.tasks.from_pictures as training
import dalle_mini.training.vqgan.train
import vqgan
from clip_rerank import Reranker
from dalle_mini.training.clip.config import ClipTrainConfig
from dalle_mini.training.data.encode import encode
from dalle_mini.training.data.shards import read_codes
from dalle_mini.training.loop import LoopConfig
from dalle_mini.training.tasks.from_pictures import read_pictures, train_clip, train_vqgan
from dalle_mini.training.vqgan import discriminator, train_step
from dalle_mini.training.vqgan.config import VQGANTrainConfig
from dalle_mini.training.vqgan.discriminator import DiscriminatorConfig
from dalle_mini.training.vqgan.losses import reconstruction_loss
from dalle_mini.training.vqgan.train_step import Batch
from vqgan import model
from vqgan.config import VQGANConfig

SIZES = VQGANConfig(
    resolution=16,
    ch=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=8,
    n_embed=32,
    embed_dim=4,
    num_groups=2,
)
# Everything that photographs need, each from its own step on.
RECIPE = VQGANTrainConfig(
    steps=30,
    batch_size=8,
    learning_rate=5e-3,
    warmup_steps=2,
    continuous_steps=3,
    restart_every=4,
    consistency_weight=0,
    perceptual_weight=0.5,
    discriminator_weight=0.5,
    discriminator_start=8,
    discriminator=DiscriminatorConfig(channels=8, layers=2, learning_rate=1e-3),
    ema_decay=0.9,
)
CLIP = ClipTrainConfig(
    steps=10,
    batch_size=8,
    warmup_steps=2,
    image_size=16,
    patch_size=4,
    context_length=16,
    width=32,
    heads=2,
    vision_layers=1,
    text_layers=1,
    embed_dim=16,
)
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 40, 220), "grey": (120, 120, 120)}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimised")]


class StopError(Exception):
    """Ends a run in its middle."""


def photograph(number: int, width: int = 24, height: int = 20) -> Image.Image:
    """A textured rectangle before a gradient."""
    rng = np.random.default_rng(number)
    pixels = np.linspace(rng.integers(256, size=3), rng.integers(256, size=3), width)[None].repeat(height, 0)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = list(COLOURS.values())[number % 4]
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """59 pictures with captions, and four of no use: broken, small, without a caption, with a blank one."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(63):
        photograph(number).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a {list(COLOURS)[number % 4]} square number {number}")
    (folder / "10.png").write_bytes((folder / "10.png").read_bytes()[:200])
    photograph(20, 24, 15).save(folder / "20.png")
    (folder / "30.txt").unlink()
    (folder / "40.txt").write_text(" \n")
    return folder


def batches(step: int) -> Batch:
    pixels = [np.asarray(photograph(number, 16, 16)) for number in np.random.default_rng(step).integers(40, size=8)]
    return Batch(np.stack(pixels))


def fit(out: Path, recipe: VQGANTrainConfig = RECIPE, *, devices: Any = (), **loop: Any) -> dict[str, Any]:
    """A run that logs every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dalle_mini.training.vqgan.train, "LoopConfig", partial(LoopConfig, log_every=1, **loop))
        held_out = batches(99).pixels
        return dalle_mini.training.vqgan.train.train(
            SIZES, recipe, batches, out=out, held_out=held_out, devices=devices
        )


def metrics(out: Path) -> list[dict[str, float]]:
    """Without the only one that is not the same every time."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "examples_per_second"} for row in rows]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run and its params."""
    out = tmp_path_factory.mktemp("run")
    return out, fit(out)


def test_the_loss_falls_in_30_steps_with_the_discriminator_on(run: tuple[Path, dict[str, Any]]):
    rows = metrics(run[0])
    before, after = np.mean([row["psnr"] for row in rows[:3]]), np.mean([row["psnr"] for row in rows[-3:]])
    assert after > before + 2
    # The critic's first steps, before the painter answers.
    judged = [row["discriminator"] for row in rows]
    assert judged[RECIPE.discriminator_start + 2] < judged[RECIPE.discriminator_start]
    assert all(0 < row["adaptive_weight"] < 1e4 for row in rows)


def test_the_moving_average_is_the_result_and_lags_behind_the_last_step(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
):
    """The same steps are taken, and the codebook is that of the last one."""
    last = fit(tmp_path, dataclasses.replace(RECIPE, ema_decay=0))
    assert metrics(tmp_path) == metrics(run[0])
    np.testing.assert_array_equal(
        last["quantize"]["embedding"]["embedding"], run[1]["quantize"]["embedding"]["embedding"]
    )
    kernels = [params["decoder"]["conv_out"]["kernel"] for params in (last, run[1])]
    assert 1e-6 < np.abs(kernels[0] - kernels[1]).max() < 0.1


def test_the_adaptive_weight_is_that_of_whole_gradients(run: tuple[Path, dict[str, Any]]):
    """Of the first step, from gradients of everything, of which the last kernel's are looked at."""
    optimiser = train_step.make_optimiser(RECIPE)
    state = train_step.init_state(SIZES, RECIPE, optimiser)
    target = jnp.asarray(batches(0).pixels, jnp.float32) / 255

    def painted(params: Any) -> jax.Array:
        z = model.latents(params, SIZES, target)  # the first steps are not quantised
        return model.paint(params, SIZES, z / jnp.sqrt(jnp.square(z).sum(-1, keepdims=True) + 1e-8))

    def rebuilt(params: Any) -> jax.Array:
        return reconstruction_loss(painted(params), target, RECIPE)

    def judged(params: Any) -> jax.Array:
        return -discriminator.logits(state.critic.params, RECIPE.discriminator, painted(params)).mean()

    norms = [
        jnp.linalg.norm(jax.jit(jax.grad(loss))(state.params)["decoder"]["conv_out"]["kernel"].ravel())
        for loss in (rebuilt, judged)
    ]
    assert metrics(run[0])[0]["adaptive_weight"] == pytest.approx(float(norms[0] / (norms[1] + 1e-6)), rel=1e-3)


def test_bfloat16_trains_float32_params_to_nearly_the_same_loss(run: tuple[Path, dict[str, Any]], tmp_path: Path):
    params = fit(tmp_path, dataclasses.replace(RECIPE, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    pairs = zip(metrics(tmp_path)[:5], metrics(run[0])[:5], strict=True)
    assert all(short["loss"] == pytest.approx(long["loss"], rel=0.05) for short, long in pairs)
    assert metrics(tmp_path) != metrics(run[0])


EIGHT_DEVICES = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import conftest
import jax
jax.config.update("jax_disable_most_optimizations", True)
import test_from_pictures
from dataclasses import replace
# Without codes, whose choice a rounding can change, and at the recipes' pace.
recipe = replace(test_from_pictures.RECIPE, steps=20, learning_rate=8e-4, continuous_steps=20)
assert len(jax.devices()) == 8
for name, devices in (("one", ()), ("eight", jax.devices())):
    params = test_from_pictures.fit(Path(sys.argv[1]) / name, recipe, devices=devices)
    assert len(params["decoder"]["conv_out"]["kernel"].devices()) == max(1, len(devices))
"""


def start(script: str, *arguments: Any, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, env={**os.environ, **environment})


def test_eight_devices_give_the_loss_curve_of_one(tmp_path: Path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    assert start(EIGHT_DEVICES, tmp_path, XLA_FLAGS=flags, JAX_PLATFORMS="cpu").wait() == 0
    one, eight = ([row["loss"] for row in metrics(tmp_path / name)] for name in ("one", "eight"))
    assert len(one) == 20
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)


RUN_TO_BE_KILLED = """
import sys
import time
from pathlib import Path
sys.path.insert(0, "tests")
import conftest
import jax
jax.config.update("jax_disable_most_optimizations", True)
import test_from_pictures
batches = test_from_pictures.batches
test_from_pictures.batches = lambda step: time.sleep(0.2) or batches(step)  # or it would have ended before it is killed
test_from_pictures.fit(Path(sys.argv[1]), save_seconds=-1)
"""


def test_a_killed_run_goes_on_from_a_whole_checkpoint(run: tuple[Path, dict[str, Any]], tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    killed = start(RUN_TO_BE_KILLED, tmp_path)
    under_way = eventually(lambda: killed.poll() or (log.exists() and len(log.read_text().splitlines()) >= 12), 300)
    killed.send_signal(signal.SIGKILL)
    assert (under_way, killed.wait()) == (True, -signal.SIGKILL)
    resumed = fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, run[1])
    assert metrics(tmp_path)[-1] == metrics(run[0])[-1]


# From a folder of pictures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN after `train_vqgan` and `train_clip`."""
    folder = tmp_path_factory.mktemp("trained")
    report = train_vqgan(source, folder, sizes=SIZES, config=dataclasses.replace(RECIPE, steps=10))
    assert report.skipped == {"truncated": ["10.png"], "smaller than 16 pixels": ["20.png"]}
    assert report.kept == 61  # those without a caption, too
    report = train_clip(source, folder, config=CLIP)
    assert report.kept == 59
    return folder


def test_a_folder_of_pictures_becomes_codes_of_its_own_vqgan(trained: Path, source: Path, tmp_path: Path):
    painter = vqgan.load(trained / "model" / "vqgan")
    assert painter.config == SIZES
    encode(source, painter, out=tmp_path / "codes")
    captions, codes, *_ = read_codes([tmp_path / "codes"])
    assert (len(captions), codes.shape[1]) == (60, 64)  # `encode` enlarges the small one
    assert len(np.unique(codes)) > 4


def test_a_clip_of_the_same_folder_scores_pictures(trained: Path):
    reranker = Reranker.load(str(trained / "model" / "clip"))
    scores = reranker.score("a red square", np.stack([np.asarray(photograph(number)) for number in range(4)]))
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) == 4
    told = json.loads((trained / "clip" / "config.json").read_text())["recipe"]
    assert (told["steps"], told["batch_size"]) == (CLIP.steps, CLIP.batch_size)  # which a model card says


def test_the_pictures_are_those_that_encode_shows(trained: Path, source: Path):
    from PIL import ImageOps

    data = read_pictures(source, trained / "clip", side=16, captioned=True)
    kept = [number for number in range(63) if number not in (10, 20, 30, 40)]
    assert data.captions == [f"a {list(COLOURS)[number % 4]} square number {number}" for number in kept]
    expected = np.stack([np.asarray(ImageOps.fit(photograph(number), (16, 16))) for number in kept])
    np.testing.assert_array_equal(data.pixels, expected)
    assert isinstance(data.pixels, np.memmap)


def test_a_run_goes_on_without_its_source(trained: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "open_source", None)
    monkeypatch.chdir(source.parent)
    before = (trained / "model" / "vqgan" / "model.safetensors").read_bytes()
    for name in (source, source.name):
        train_vqgan(name, trained, sizes=SIZES, config=dataclasses.replace(RECIPE, steps=10))
    source.rename(source.with_name("gone"))
    try:
        train_vqgan(source.name, trained, sizes=SIZES, config=dataclasses.replace(RECIPE, steps=10))
    finally:
        source.with_name("gone").rename(source)
    assert (trained / "model" / "vqgan" / "model.safetensors").read_bytes() == before


def test_a_half_read_source_is_read_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_json", stop)
        with pytest.raises(StopError):
            read_pictures(source, tmp_path, side=16, captioned=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures.npy"]
    assert len(read_pictures(source, tmp_path, side=16, captioned=True).pixels) == 59
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures.json", "pictures.npy"]


def test_moved_and_mirrored_pictures_are_mostly_the_picture():
    pixels = np.arange(4 * 16 * 16 * 3).reshape(4, 16, 16, 3).astype(np.uint8)
    moved = training._shift_and_flip(pixels, np.random.default_rng(0), farthest=2)
    assert (moved.shape, moved.dtype) == (pixels.shape, np.uint8)
    found = []
    for one, other in zip(pixels, moved, strict=True):
        padded = np.pad(one, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        views = [padded[y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        views += [view[:, ::-1] for view in views]
        found.append([i for i, view in enumerate(views) if (view == other).all()])
    assert all(found)
    assert len({places[0] for places in found}) > 1
    again = training._shift_and_flip(pixels, np.random.default_rng(0), farthest=2)
    np.testing.assert_array_equal(again, moved)


def test_clip_reads_text_as_the_text_to_code_model_does(source: Path, trained: Path, tmp_path: Path):
    """If there is one; else it learned a tokenizer from the captions."""
    from dalle_mini import tokenizer

    assert (trained / "clip" / "tokenizer" / "tokenizer.json").exists()
    tokenizer.train(["a few words"], tmp_path / "model" / "dalle", vocab_size=300, max_text_length=16)
    train_clip(source, tmp_path, config=dataclasses.replace(CLIP, steps=3, warmup_steps=1))
    used = (tmp_path / "model" / "clip" / "tokenizer.json").read_bytes()
    assert used == (tmp_path / "model" / "dalle" / "tokenizer.json").read_bytes()


def test_clip_keeps_the_tokenizer_it_began_with(source: Path, trained: Path):
    """Also when a text-to-code model with another one has come meanwhile."""
    from dalle_mini import tokenizer

    before = (trained / "model" / "clip" / "tokenizer.json").read_bytes()
    tokenizer.train(["a few words"], trained / "model" / "dalle", vocab_size=300, max_text_length=16)
    train_clip(source, trained, config=CLIP)
    shutil.rmtree(trained / "model" / "dalle")
    assert (trained / "model" / "clip" / "tokenizer.json").read_bytes() == before


# Refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"perceptual_weight": -1}, "perceptual_weight must be >= 0, got -1"),
        ({"discriminator_start": -5}, "discriminator_start must be >= 0, got -5"),
        ({"consistency_steps": (5, 5)}, r"consistency_steps must be two rising steps, got \(5, 5\)"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0, got 0.0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
    ],
)
def test_wrong_settings_of_the_vqgan_are_named(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 1}, "batch_size must be >= 2, .* got 1"),
        ({"image_size": 18}, "image_size must be a multiple of patch_size = 4, got 18"),
        ({"width": 33}, "width must be a multiple of heads = 2, got 33"),
        ({"context_length": 2}, "context_length must be >= 3, .* got 2"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"learning_rate": -1.0}, "learning_rate must be > 0, got -1.0"),
    ],
)
def test_wrong_settings_of_clip_are_named(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CLIP, **values)


LARGE = VQGANConfig(resolution=64, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), num_groups=2)
LITTLE = dataclasses.replace(SIZES, resolution=8)


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        (SIZES, {"consistency_weight": 1.0}, "consistency_weight must be 0 for one's own pictures, got 1.0"),
        (LITTLE, {"discriminator_weight": 0}, "resolution must be >= 11 for perceptual_weight, got 8"),
        (LITTLE, {"perceptual_weight": 0}, "resolution must be >= 12 for 2 discriminator.layers, got 8"),
        (LARGE, {}, "at least 2 pictures of 64 pixels or more, got 0 of 63 kept, 62 smaller than 64 pixels"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name_before_anything_is_allocated(
    sizes: VQGANConfig, values: dict[str, Any], message: str, source: Path, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setattr(training, "fit_vqgan", None)
    with pytest.raises(ValueError, match=message):
        train_vqgan(source, tmp_path, sizes=sizes, config=dataclasses.replace(RECIPE, **values))


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 devices, got 8"):
        dalle_mini.training.vqgan.train.check(SIZES, RECIPE, devices=3)


def test_another_recipe_or_source_needs_another_run_folder(trained: Path, source: Path, tmp_path: Path):
    other = dataclasses.replace(RECIPE, steps=10, perceptual_weight=0)
    with pytest.raises(ValueError, match=r"perceptual_weight must be 0.5, as .*config.json says, got 0: use a new run"):
        train_vqgan(source, trained, sizes=SIZES, config=other)
    with pytest.raises(ValueError, match=r"must hold the pictures of .* at 16 pixels, got those of"):
        train_vqgan(tmp_path, trained, sizes=SIZES, config=dataclasses.replace(RECIPE, steps=10))


def test_the_vqgan_of_a_text_to_code_model_is_not_replaced(trained: Path, source: Path, tmp_path: Path):
    """A run that took one from elsewhere, as `train dalle` does, keeps it."""
    taken = shutil.copytree(trained / "model" / "vqgan", tmp_path / "model" / "vqgan")
    with pytest.raises(ValueError, match=rf"^run must not have a VQGAN or dVAE from elsewhere, got {taken}: "):
        train_vqgan(source, tmp_path, sizes=SIZES, config=dataclasses.replace(RECIPE, steps=10))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_source_without_enough_pictures_is_refused(source: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="source must hold pictures, tar shards or tables"):
        train_vqgan(tmp_path, tmp_path / "run", sizes=SIZES, config=RECIPE)
    photograph(0).save(tmp_path / "only.png")
    with pytest.raises(ValueError, match="at least 2 pictures of 16 pixels or more, got 1 of 1 kept"):
        train_vqgan(tmp_path, tmp_path / "run", sizes=SIZES, config=RECIPE)
    with pytest.raises(ValueError, match="at least 8 pictures of 16 pixels or more, got 0 of 1 kept, 1 no caption"):
        train_clip(tmp_path, tmp_path / "run", config=CLIP)
    with pytest.raises(ValueError, match="at least 100 pictures of 16 pixels or more, got 59 of 63 kept"):
        train_clip(source, tmp_path / "run", config=dataclasses.replace(CLIP, batch_size=100))
