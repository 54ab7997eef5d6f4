"""Training resumes to the bit, learns, and refuses data that does not fit; on tiny sizes."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

import dalle_mini.training.dalle.train
import dalle_mini.training.vqgan.train
import vqgan.model
from dalle_mini import device
from dalle_mini.config import ModelConfig
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.loop import LoopConfig, fit
from dalle_mini.training.vqgan import train_step
from dalle_mini.training.vqgan.codebook import unit
from dalle_mini.training.vqgan.config import DecoderTrainConfig, EncoderTrainConfig, VQGANTrainConfig
from dalle_mini.training.vqgan.decoder import train_decoder, widened
from dalle_mini.training.vqgan.encoder import train_encoder
from dalle_mini.training.vqgan.losses import same_cells
from dalle_mini.training.vqgan.train_step import Batch
from vqgan import Codec
from vqgan.config import VQGANConfig

VQGAN_SIZES = VQGANConfig(
    resolution=8,
    ch=8,
    ch_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=8,
    n_embed=16,
    embed_dim=4,
    num_groups=2,
)
# Every phase comes: continuous, quantised, restarts, consistency.
VQGAN_RECIPE = VQGANTrainConfig(
    steps=30,
    batch_size=4,
    learning_rate=5e-3,
    warmup_steps=2,
    continuous_steps=5,
    consistency_weight=0.3,
    consistency_steps=(10, 20),
    restart_every=4,
)
DALLE_SIZES = ModelConfig(
    encoder_vocab_size=30,
    image_vocab_size=20,
    codebook_size=16,
    decoder_start_token_id=20,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    image_length=9,
    max_text_length=6,
)
DALLE_RECIPE = DalleTrainConfig(steps=30, batch_size=16, warmup_steps=2)


pytestmark = pytest.mark.usefixtures("unoptimised")


class StopError(Exception):
    """Ends a run in its middle."""


def pictures(step: int) -> np.ndarray:
    """uint8 [4, 8, 8, 3]: four of eight pictures of a rectangle on a plain ground."""
    rng = np.random.default_rng(0)
    pixels = np.empty((8, 8, 8, 3), np.uint8)
    for picture in pixels:
        picture[:] = rng.integers(256, size=3)
        top, left = rng.integers(4, size=2)
        picture[top : top + 4, left : left + 4] = rng.integers(256, size=3)
    return pixels[np.random.default_rng(step).permutation(8)[:4]]


def train_vqgan(out: Path, recipe: VQGANTrainConfig = VQGAN_RECIPE, *, stop: bool = False) -> dict[str, Any]:
    """A run, or (`stop`) its first two steps."""

    def until_stopped(step: int) -> Batch:
        if stop and step == 2:
            raise StopError
        return Batch(pictures(step), same_cells(pictures(step), VQGAN_SIZES.downscale))

    return dalle_mini.training.vqgan.train.train(VQGAN_SIZES, recipe, until_stopped, out=out, held_out=pictures(99))


def examples(count: int = 32) -> Examples:
    """A caption's first word says which code the whole picture is made of."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 30, (count, 6), dtype=np.int32)
    codes = np.repeat(tokens[:, :1] % 16, 9, axis=1)
    empty = np.array([0, 2, 1, 1, 1, 1], np.int32)
    return Examples(tokens, np.ones_like(tokens), codes, (empty, (empty != 1).astype(np.int32)))


def train_dalle(out: Path, *, data: Examples | None = None, stop: bool = False) -> dict[str, Any]:
    """As `train_vqgan`."""

    def stop_instead(params: dict[str, Any]) -> Image.Image:
        raise StopError

    return dalle_mini.training.dalle.train.train(
        DALLE_SIZES,
        DALLE_RECIPE,
        data or examples(),
        held_out=examples(),
        out=out,
        sheet=stop_instead if stop else None,
    )


@contextmanager
def reporting(**values: Any) -> Iterator[None]:
    """How often a run reports and saves, which is fixed for real ones."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (dalle_mini.training.vqgan.train, dalle_mini.training.dalle.train):
            patch.setattr(module, "LoopConfig", partial(LoopConfig, log_every=1, **values))
        yield


def losses(out: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


class Run(NamedTuple):
    train: Callable[..., dict[str, Any]]
    params: dict[str, Any]
    out: Path


@pytest.fixture(scope="module", params=[train_vqgan, train_dalle], ids=["vqgan", "dalle"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("run")
    with reporting():
        return Run(request.param, request.param(out), out)


def test_the_loss_falls_in_30_steps(run: Run):
    loss = losses(run.out)
    assert list(loss) == list(range(1, 31))
    assert loss[30] < 0.75 * loss[1]


@pytest.mark.slow
def test_stopped_and_resumed_gives_what_the_uninterrupted_run_gives(run: Run, tmp_path: Path):
    with reporting(save_seconds=-1, sheet_every=2), pytest.raises(StopError):
        run.train(tmp_path, stop=True)
    assert list(losses(tmp_path)) == [1, 2]
    with reporting():
        resumed = run.train(tmp_path)
    assert losses(tmp_path) == losses(run.out)
    jax.tree.map(np.testing.assert_array_equal, resumed, run.params)


def test_a_finished_run_is_not_trained_further(run: Run):
    log = (run.out / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, run.train(run.out), run.params)
    assert (run.out / "metrics.jsonl").read_bytes() == log


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_shown_or_kept(tmp_path: Path):
    """Or the next sheet would have replaced the last model that draws."""

    def step(state: np.ndarray, batch: object) -> tuple[np.ndarray, dict[str, Any]]:
        return state + 1, {"loss": 1.0 if state < 3 else np.nan}

    def sheet(state: np.ndarray) -> Image.Image:
        assert state < 4
        return Image.new("RGB", (1, 1))

    loop = LoopConfig(out=tmp_path, steps=9, examples_per_step=1, log_every=1, sheet_every=1)
    with pytest.raises(ValueError, match=r"^loss must stay a number, got nan at step 4 of .*: use a new run folder"):
        fit(np.zeros(()), step, lambda step: None, config=loop, sheet=sheet)
    assert len(losses(tmp_path)) == 3


def test_the_shortest_vqgan_run_is_a_whole_one(tmp_path: Path):
    """Two steps, fewer than its warm-up has, and over where the consistency term would begin."""
    params = train_vqgan(tmp_path, VQGANTrainConfig(steps=2, batch_size=4, consistency_steps=(2, 3)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(np.linalg.norm(params["quantize"]["embedding"]["embedding"], axis=1), 1, atol=1e-4)
    with Image.open(tmp_path / "sheets" / "000002.png") as sheet:
        assert sheet.size == (4 * 8, 2 * 8)


@pytest.mark.skipif(jax.__version__ != device.JAX_VERSION, reason="another JAX writes another program")
def test_without_the_losses_of_photographs_a_step_is_the_program_that_it_was_before_them():
    """Of sizes as they are above: the step that the embedded model was trained with, to the bit."""
    state = jax.eval_shape(
        lambda: train_step.init_state(VQGAN_SIZES, VQGAN_RECIPE, train_step.make_optimiser(VQGAN_RECIPE))
    )
    step = train_step.make_step(VQGAN_SIZES, VQGAN_RECIPE, train_step.make_optimiser(VQGAN_RECIPE))
    program = step.lower(state, Batch(pictures(0), same_cells(pictures(0), VQGAN_SIZES.downscale))).as_text()
    assert (
        hashlib.sha256(program.encode()).hexdigest()
        == "30b1208740ab2e61959f422207851858384e0b77ef448c5c34573c3a39c8cb45"
    )


@pytest.mark.parametrize("embed_dim", [0, 32])
def test_training_the_decoder_on_changes_pixels_but_no_code(embed_dim: int, tmp_path: Path):
    init = jax.jit(partial(vqgan.model.init_params, VQGAN_SIZES))
    params, before = init(jax.random.key(0)), Codec(VQGAN_SIZES, init(jax.random.key(0)))
    recipe = DecoderTrainConfig(steps=3, batch_size=4, warmup_steps=1, embed_dim=embed_dim)
    codes = before.encode(pictures(0))
    batch = codes, pictures(0)
    after = Codec(*train_decoder(VQGAN_SIZES, recipe, params, lambda step: batch, out=tmp_path, held_out=batch))
    assert after.config.embed_dim == (embed_dim or VQGAN_SIZES.embed_dim)
    np.testing.assert_array_equal(after.encode(pictures(0)), codes)
    assert (after.decode(codes) != before.decode(codes)).any()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))  # they are the caller's


@pytest.mark.parametrize("embed_dim", [0, 32])
def test_training_the_encoder_on_teaches_it_given_codes_and_the_decoder_stays(embed_dim: int, tmp_path: Path):
    """Of pictures that it spells otherwise; also where codes have dimensions for the decoder alone."""
    init = jax.jit(partial(vqgan.model.init_params, VQGAN_SIZES))
    params = init(jax.random.key(0))
    params["quantize"]["embedding"]["embedding"] = unit(params["quantize"]["embedding"]["embedding"])
    sizes, params = widened(VQGAN_SIZES, params, max(embed_dim, VQGAN_SIZES.embed_dim), seed=0)
    before, pixels = Codec(sizes, params), pictures(0)
    codes = (before.encode(pixels) + 5) % sizes.n_embed
    recipe = EncoderTrainConfig(steps=150, batch_size=4, warmup_steps=5)
    trained = train_encoder(sizes, recipe, params, lambda step: (codes, pixels), out=tmp_path, held_out=pixels)
    after = Codec(sizes, trained)
    assert (after.encode(pixels) == codes).mean() > 0.9
    np.testing.assert_array_equal(after.decode(codes), before.decode(codes))
    assert vqgan.model.written_dim(trained) == VQGAN_SIZES.embed_dim
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))  # they are the caller's


@pytest.mark.parametrize("code", [16, -1])
def test_codes_outside_the_codebook_are_named_before_training(code: int, tmp_path: Path):
    data = examples()
    data.codes[3, 2] = code
    with pytest.raises(ValueError, match=rf"^codes must be .*codebook_size 16, got .*{code}"):
        train_dalle(tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_codes_of_another_grid_are_named_before_training(tmp_path: Path):
    data = examples()._replace(codes=np.zeros((32, 16), np.int32))
    with pytest.raises(ValueError, match=r"^codes must be \[\*, 9\].*, got \(32, 16\)"):
        train_dalle(tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_identical_squares_and_only_those_share_a_number():
    pixels = np.zeros((2, 4, 6, 3), np.uint8)  # 2 pictures of 2 x 3 squares of 2 pixels
    pixels[0, 0, 2] = 1  # the second square of the first picture
    pixels[1, 2, 4] = 1  # the last of the second: the same pixels
    pixels[1, 1, 1, 2] = 1  # the first of the second: like no other
    number = same_cells(pixels, 2)
    assert (number.dtype, number.shape) == (np.int32, (12,))
    plain, dotted, other = number[0], number[1], number[6]
    np.testing.assert_array_equal(number, [plain, dotted, *[plain] * 4, other, *[plain] * 4, dotted])
    assert {plain, dotted, other} == {0, 1, 2}
