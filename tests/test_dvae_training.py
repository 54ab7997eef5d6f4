"""A dVAE's loss and schedules are the paper's, and its training learns and resumes to the bit; on tiny sizes."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from source_files import CAPTIONS, photo

import vqgan
from dalle_mini.__main__ import main
from dalle_mini.training import recipe as recipes
from dalle_mini.training.dvae import train as dvae_train
from dalle_mini.training.dvae.config import DVAETrainConfig
from dalle_mini.training.dvae.loss import divergence, reconstruction, relaxed
from dalle_mini.training.loop import LoopConfig
from dalle_mini.training.report.tokenizers import as_table, compare
from vqgan import dvae
from vqgan.config import DVAEConfig
from vqgan.dvae import EPS

pytestmark = pytest.mark.usefixtures("unoptimised")
SIZES = DVAEConfig(resolution=16, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)
RECIPE = DVAETrainConfig(
    steps=40,
    batch_size=4,
    learning_rate=1e-2,
    learning_rate_part=1.0,
    temperature_part=0.5,
    kl_part=0.25,
    ema_decay=0.9,
)


class StopError(Exception):
    """Ends a run in its middle."""


def pictures(step: int) -> np.ndarray:
    """uint8 [4, 16, 16, 3]: four of eight pictures of a rectangle on a plain ground."""
    rng = np.random.default_rng(step)
    pixels = np.empty((4, 16, 16, 3), np.uint8)
    for picture, kind in zip(pixels, rng.choice(8, 4, replace=False), strict=True):
        picture[:] = 255 * np.array([kind & 1, kind >> 1 & 1, kind >> 2 & 1])
        picture[4:12, 2 + kind : 8 + kind] = 128
    return pixels


def train(out: Path, **change: Any) -> dict[str, Any]:
    batches = change.pop("batches", pictures)
    config = DVAETrainConfig(**{**vars(RECIPE), **change})
    return dvae_train.train(SIZES, config, batches, out=out, held_out=pictures(1000))


# The loss


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.3, -0.7), (-2.0, 0.4)])
def test_the_density_of_pixels_is_a_density(mean: float, log_scale: float):
    grid = (np.arange(200_000) + 0.5) / 200_000
    mapped = jnp.broadcast_to(jnp.asarray(grid, jnp.float32)[:, None, None, None], (200_000, 1, 1, 3))
    stats = jnp.broadcast_to(jnp.array([mean] * 3 + [log_scale] * 3), (200_000, 1, 1, 6))
    each = jax.vmap(lambda s, x: reconstruction(s[None], x[None]))(stats, mapped)
    assert np.exp(-np.asarray(each, np.float64)).mean() == pytest.approx(1, abs=2e-3)


def test_nobody_is_surer_of_a_pixel_than_its_rounding_allows():
    mapped = jnp.full((1, 1, 1, 3), 0.5)
    losses = [float(reconstruction(jnp.array([0.0, 0, 0, s, s, s]).reshape(1, 1, 1, 6), mapped)) for s in (-5.0, -50.0)]
    assert losses[0] == losses[1] == pytest.approx(math.log((1 - 2 * EPS) / 255 / 0.25) + math.log(2) + math.log(0.25))


def test_divergence_is_nothing_where_all_codes_are_even_and_log_size_where_one_is_certain():
    assert divergence(jnp.zeros((1, 1, 1, 16)))[0, 0, 0] == pytest.approx(0, abs=1e-6)
    assert divergence(jnp.zeros((1, 1, 1, 16)).at[..., 3].set(100))[0, 0, 0] == pytest.approx(math.log(16))


def test_a_relaxed_choice_is_as_likely_as_its_code_and_decided_when_it_is_cold():
    probabilities = jnp.array([0.6, 0.3, 0.1])
    logits = jnp.broadcast_to(jnp.log(probabilities), (1, 100, 100, 3))
    warm, cold = (relaxed(logits, jax.random.key(0), jnp.float32(t)) for t in (1.0, 1 / 16))
    for chosen in (warm, cold):
        np.testing.assert_allclose(chosen.sum(-1), 1, rtol=1e-5)
        shares = np.bincount(np.asarray(chosen.argmax(-1)).ravel(), minlength=3) / 10_000
        np.testing.assert_allclose(shares, probabilities, atol=0.02)
    assert (warm.max(-1) > 0.99).mean() < 0.1 < 0.7 < (cold.max(-1) > 0.99).mean()


# The recipe


def test_schedules_begin_and_end_where_the_paper_says():
    config = DVAETrainConfig(steps=3_000_000)
    optimiser = dvae_train.make_optimiser(config)
    state = dvae_train.init_state(SIZES, config, optimiser)
    look = jax.jit(
        lambda step: dvae_train._loss(state.params, step, jnp.asarray(pictures(0)), sizes=SIZES, config=config)[1]
    )
    told = {step: look(jnp.int32(step)) for step in (0, 2500, 5000, 75_000, 150_000, 2_999_999)}
    assert [float(told[s]["kl_weight"]) for s in (0, 2500, 5000, 2_999_999)] == pytest.approx([0, 3.3, 6.6, 6.6])
    temperatures = [float(told[s]["temperature"]) for s in (0, 75_000, 150_000, 2_999_999)]
    assert temperatures == pytest.approx([1, 17 / 32, 1 / 16, 1 / 16])
    rates = [
        float(dvae_train.half_cosine(jnp.float32(s), first=1e-4, last=1.25e-6, end=0.4 * config.steps))
        for s in (0, 600_000, 1_200_000, 3_000_000)
    ]
    assert rates == pytest.approx([1e-4, (1e-4 + 1.25e-6) / 2, 1.25e-6, 1.25e-6], rel=1e-3)


def test_the_kl_counts_as_the_sum_of_a_pictures_codes_over_its_values():
    """As the paper divides the whole bound by 256 * 256 * 3: 6.6 / 192 for each of the codes."""
    config = DVAETrainConfig(steps=10)
    state = dvae_train.init_state(SIZES, config, dvae_train.make_optimiser(config))
    loss, told = dvae_train._loss(state.params, jnp.int32(9), jnp.asarray(pictures(0)), sizes=SIZES, config=config)
    assert float(loss) == pytest.approx(float(told["reconstruction"] + 6.6 / 192 * told["kl_per_code"]), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"last_temperature": 0.0}, "last_temperature must be > 0, got 0.0"),
        ({"kl_part": 1.5}, "kl_part must be > 0 and <= 1, got 1.5"),
        ({"kl_weight": -1.0}, "kl_weight must be >= 0, got -1.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DVAETrainConfig(**{"steps": 10, **values})


def test_the_embedded_recipes_dvae_is_the_one_of_the_documents():
    """docs/tokenizers.md compares it with a VQGAN of 2,868,507 parameters."""
    counted = sum(leaf.size for leaf in jax.tree.leaves(dvae.param_shapes(recipes.load("emoji").dvae())))
    assert counted == 2_868_560


# Training


@pytest.mark.slow
def test_training_learns_and_leaves_metrics_and_a_sheet(tmp_path: Path):
    first = vqgan.Codec(SIZES, jax.jit(dvae.init_params, static_argnums=0)(SIZES, jax.random.key(0)))
    truth = pictures(1000)  # four pictures, to be learned by heart: nothing that may fail on another processor
    learned = train(tmp_path, steps=150, learning_rate=3e-3, kl_part=1.0, batches=lambda step: truth)
    last = vqgan.Codec(SIZES, learned)
    errors = [np.square(codec.decode(codec.encode(truth)).astype(float) - truth).mean() for codec in (first, last)]
    assert errors[1] < 0.8 * errors[0]
    assert (tmp_path / "sheets" / "000150.png").exists()
    assert '"kl_per_code"' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train(tmp_path / "whole")
    monkeypatch.setattr(dvae_train, "LoopConfig", partial(LoopConfig, save_seconds=0.0))

    def stopping(step: int) -> np.ndarray:
        if step == 20:
            raise StopError
        return pictures(step)

    with pytest.raises(StopError):
        train(tmp_path / "parts", batches=stopping)
    assert any((tmp_path / "parts" / "checkpoints").glob("[0-9]*"))
    for one, other in zip(jax.tree.leaves(train(tmp_path / "parts")), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """The command that trains on twelve pictures."""
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        photo(number).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text(CAPTIONS[number % 6])
    (tmp_path / "tiny.toml").write_text(
        "[dvae]\nresolution = 16\nn_hid = 8\nn_blk_per_group = 1\nvocab_size = 16\nn_init = 8\n"
        "[dvae.training]\nsteps = 2\nbatch_size = 2\n"
    )
    return ["train", "dvae", "--recipe", str(tmp_path / "tiny.toml"), "--data", str(tmp_path / "pictures")]


@pytest.mark.slow
def test_pictures_of_ones_own_become_a_dvae_that_loads(own: list[str], tmp_path: Path):
    assert main([*own, "--run", str(tmp_path / "run")]) == 0
    codec = vqgan.load(tmp_path / "run" / "model" / "vqgan")
    assert (codec.name, codec.config) == ("dVAE", SIZES)
    rows, sheet = compare({"a": codec, "b": codec}, lambda side: pictures(0))
    same = ("psnr_decibels", "ssim", "codes_used", "bits", "parameters")
    assert [rows[0][name] for name in same] == [rows[1][name] for name in same]
    assert (rows[0]["bits"], rows[0]["pictures"]) == (16, 4)
    head, _, first, _ = as_table(rows).splitlines()
    assert first.startswith("| a (dVAE) | ")
    assert head.count("|") == first.count("|")
    assert sheet.width > 6 * 256


def test_a_run_with_another_tokenizer_is_refused(own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run" / "model" / "vqgan").mkdir(parents=True)
    for command in (own, ["train", "dvae"], ["train", "vqgan"]):
        assert main([*command, "--run", str(tmp_path / "run")]) == 2
        assert "run must not have a VQGAN or dVAE from elsewhere" in capsys.readouterr().err
