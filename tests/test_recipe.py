"""Recipes say everything once, can be overridden, and are refused by section and key before anything is made."""

import dataclasses
from pathlib import Path

import jax
import pytest

from dalle_mini.__main__ import main
from dalle_mini.config import MEGA, MINI
from dalle_mini.model_names import EMBEDDED
from dalle_mini.training import recipe
from dalle_mini.training.dalle import plan
from dalle_mini.training.emoji.scene import GRID
from dalle_mini.training.vqgan.train import check
from vqgan.config import VQGANConfig
from vqgan.model import param_shapes


def test_every_recipe_of_the_package_is_whole():
    assert recipe.names() == ["emoji", "emoji-tiny", "mega", "mini"]
    for name in recipe.names():
        loaded = recipe.load(name)
        sizes = loaded.dalle(vqgan=loaded.vqgan())
        assert sizes.codebook_size == loaded.vqgan().n_embed
        for training in (loaded.vqgan_training(), loaded.dalle_training(), loaded.clip_training()):
            assert training.steps > 0


def test_mini_and_mega_have_the_published_sizes():
    assert recipe.load("mini").dalle() == MINI
    assert recipe.load("mega").dalle() == MEGA
    assert recipe.load("mini").vqgan() == recipe.load("mega").vqgan() == VQGANConfig()


@pytest.mark.parametrize("name", ["mini", "mega"])
def test_the_published_vqgan_is_trained_for_photographs(name: str):
    """With L1 alone it would paint the mean of what may be there, which is a blur."""
    loaded = recipe.load(name)
    training = loaded.vqgan_training()
    assert training.perceptual_weight > 0
    assert training.discriminator_weight > 0
    assert training.warmup_steps < training.discriminator_start < training.steps / 2
    assert (training.ema_decay > 0, training.dtype) == (True, "bfloat16")
    assert training.consistency_weight == 0  # or train_vqgan refuses pictures of one's own
    check(loaded.vqgan(), training, devices=8)


def test_emoji_has_the_sizes_of_the_embedded_model():
    loaded = recipe.load("emoji")
    widened = dataclasses.replace(loaded.vqgan(), embed_dim=loaded.decoder_training().embed_dim)
    assert widened == VQGANConfig.from_json(EMBEDDED / "vqgan" / "config.json")
    trained = type(MINI).from_json(EMBEDDED / "dalle" / "config.json")
    # Its captions fill less than the vocabulary that the recipe allows.
    assert {**loaded.dalle().to_dict(), "encoder_vocab_size": trained.encoder_vocab_size} == trained.to_dict()


def test_emoji_fits_where_models_are_kept():
    """16 bit: no file above 10 MB."""
    sizes = recipe.load("emoji").vqgan()
    assert sizes.side == GRID
    assert sum(leaf.size for leaf in jax.tree.leaves(param_shapes(sizes))) * 2 < 10e6


def test_overrides_are_read_as_toml_or_as_a_word():
    overrides = ["dalle.training.steps = 7", "dalle.training.optimiser=adamw", "dalle.training.remat=true"]
    overrides += ["dalle.training.learning_rate=1", "vqgan.ch_mult=[1, 2]", "dalle.temperature=0.5"]
    loaded = recipe.load("emoji", overrides)
    training = loaded.dalle_training()
    assert (training.steps, training.optimiser, training.remat, training.learning_rate) == (7, "adamw", True, 1.0)
    assert loaded.vqgan().ch_mult == (1, 2)
    assert loaded.dalle().sampling.temperature == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clip.training.stepz=1", r"^clip\.training\.stepz must be one of .*steps.*, got 'stepz'$"),
        ("world.first=3", r"^world\.first must be >= 4, for four in a row, got 3$"),
        ("world.clip_examples=12", r"^world\.clip_examples must be a multiple of 8, got 12$"),
        ("decoder.training.dtype=bfloat16", r"^decoder\.training\.dtype must be one of .*, got 'dtype'$"),
        ("dalle.training.stepz=3", r"^dalle\.training\.stepz must be one of .*steps.*, got 'stepz'$"),
        ("dalle.training.steps=0", r"^dalle\.training\.steps must be >= 1, got 0$"),
        ("dalle.training.steps=2.5", r"^dalle\.training\.steps must be of type int, got 2\.5$"),
        ("dalle.training.steps=many", r"^dalle\.training\.steps must be of type int, got 'many'$"),
        ("dalle.training.remat=1", r"^dalle\.training\.remat must be of type bool, got 1$"),
        ("dalle.training.learning_rate=nan", r"^dalle\.training\.learning_rate must be of type float, got nan$"),
        ("dalle.training.optimiser=sgd", r"^dalle\.training\.optimiser must be one of adamw, .*, got 'sgd'$"),
        (
            "dalle.training.accumulation=5",
            r"^dalle\.training\.batch_size must be a multiple of accumulation 5, got 64$",
        ),
        ("dalle.d_model=65", r"^dalle\.encoder_attention_heads must divide d_model 65, got 6$"),
        ("dalle.dtype=bfloat16", r"^dalle\.dtype must be one of .*, got 'dtype'$"),
        ("dalle.temperature=0", r"^dalle\.temperature must be a number > 0 .*, got 0"),
        ("dalle.codebook_size=512", r"^dalle\.codebook_size must be the VQGAN's 2048, got 512$"),
        ("dalle.image_length=256", r"^dalle\.image_length must be the VQGAN's 64, got 256$"),
        ("vqgan.ch=30", r"^vqgan\.ch \* ch_mult must be multiples of num_groups=4"),
        (
            "vqgan.training.consistency_steps=[1]",
            r"^vqgan\.training\.consistency_steps must be of type tuple\[int, int\]",
        ),
        ("other.key=1", r"^other must be one of the sections world, vqgan, .*, got other = \{'key': 1\}$"),
        ("dalle.training=3", r"^dalle\.training must be one of the sections .*, got dalle\.training = 3$"),
        ("steps=3", r"^a setting must be section\.key=value, .*, got 'steps=3'$"),
        ("dalle.training.steps", r"^a setting must be section\.key=value, .*, got 'dalle\.training\.steps'$"),
    ],
)
def test_what_is_wrong_is_named_with_section_key_rule_and_value(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        recipe.load("emoji", [override])


def test_a_file_needs_the_sections_that_are_used_and_no_others(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[vqgan]\nresolution = 64\n[vqgan.training]\nsteps = 5\n")
    loaded = recipe.load(path)
    assert loaded.vqgan().resolution == 64
    with pytest.raises(ValueError, match=r"^recipe mine must have a section \[dalle\.training\], got \['vqgan', "):
        loaded.dalle_training()
    path.write_text("[vqgan.training]\nbatch_size = 5\n")
    with pytest.raises(ValueError, match=r"^vqgan\.training\.steps must be given, got nothing$"):
        recipe.load(path)
    path.write_text("[dalle\n")
    with pytest.raises(ValueError, match=r"^recipe .*mine\.toml must be a TOML file, got: "):
        recipe.load(path)
    with pytest.raises(
        ValueError, match=r"^recipe must be one of emoji, emoji-tiny, mega, mini or a TOML file, got 'x'$"
    ):
        recipe.load("x")


def test_sizes_follow_from_the_tokenizer_and_the_vqgan_and_must_agree_with_them():
    tiny = recipe.load("emoji-tiny")
    sizes = tiny.dalle(vqgan=VQGANConfig(resolution=64, n_embed=100))
    assert (sizes.codebook_size, sizes.image_vocab_size, sizes.bos_code, sizes.image_length) == (100, 100, 100, 16)
    with pytest.raises(
        ValueError, match=r"^dalle\.encoder_vocab_size must be >= the tokenizer's 5000 tokens, got 512$"
    ):
        tiny.dalle(vocab_size=5000)
    with pytest.raises(ValueError, match=r"^dalle\.codebook_size must be <= image_vocab_size 16384, got 20000$"):
        recipe.load("mini").dalle(vqgan=VQGANConfig(n_embed=20_000))


@pytest.mark.slow
def test_dry_run_of_mega_says_what_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan, "measured_rate", lambda dtype: 5e14)
    arguments = ["train", "dalle", "--recipe", "mega", "--dry-run", "--devices", "16"]
    assert main([*arguments, "--set", "dalle.training.model_devices=4"]) == 0
    told = capsys.readouterr().out
    assert "parameters         2,587,521,024" in told
    assert "mesh               4 data x 4 model" in told
    assert f"params {2_587_521_024 / 2**30:19.2f}" in told  # four bytes each, on four devices
    mega = recipe.load("mega", ["dalle.training.model_devices=4"])
    hours = 200_000 * plan.make_plan(mega.dalle(), mega.dalle_training(), 16).flops / 16 / 5e14 / 3600
    assert f"200000 steps: at least {hours:.1f} hours on 16 such devices, at the 500 TFLOP/s" in told


def test_the_emoji_world_without_a_vqgan_asks_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "dalle", "--run", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: run must hold the VQGAN of the emoji world, which `train vqgan` makes, got none in ")


def test_recipe_without_data_of_its_own_asks_for_some(capsys: pytest.CaptureFixture[str]):
    for network in ("dalle", "vqgan", "clip"):
        assert main(["train", network, "--recipe", "mini"]) == 2
        told = capsys.readouterr().err
        assert told == "error: data must be given with --data for recipe 'mini', which has no [world], got none\n"
