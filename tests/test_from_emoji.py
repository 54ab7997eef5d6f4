"""The tasks of the emoji world: one tiny run of all four networks, and what its commands refuse."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dalle_mini import tokenizer
from dalle_mini.__main__ import main
from dalle_mini.presets import EMBEDDED
from dalle_mini.training import recipe
from dalle_mini.training import run as runs
from dalle_mini.training.report.model_card import Facts
from dalle_mini.training.tasks import from_emoji
from dalle_mini.vocabulary import Vocabulary

TINY = [
    *(f"vqgan.{name}" for name in ("resolution=16", "ch=4", "ch_mult=[1,2]", "z_channels=4", "n_embed=16")),
    *(f"vqgan.{name}" for name in ("embed_dim=4", "num_groups=2")),
    *(f"{network}.training.steps=1" for network in ("vqgan", "decoder", "dalle", "clip")),
    *(f"{network}.training.batch_size=8" for network in ("vqgan", "decoder", "dalle", "clip")),
    *(f"dalle.{name}" for name in ("d_model=16", "encoder_layers=1", "decoder_layers=1")),
    *(f"dalle.{name}" for name in ("encoder_attention_heads=2", "decoder_attention_heads=2")),
    *(f"dalle.{name}" for name in ("encoder_ffn_dim=16", "decoder_ffn_dim=16", "encoder_vocab_size=400")),
    *(f"clip.training.{name}" for name in ("image_size=16", "width=16", "heads=2", "embed_dim=8")),
    *(f"clip.training.{name}" for name in ("vision_layers=1", "text_layers=1", "warmup_steps=0")),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of one step of everything, on few examples."""
    folder, loaded = tmp_path_factory.mktemp("run"), recipe.load("emoji", TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_emoji, "CLIP_EXAMPLES", 256)
        patch.setattr(from_emoji, "TOKENIZER_CAPTIONS", 200)
        patch.setattr(from_emoji, "VALIDATION_SCENES", 16)
        patch.setattr(from_emoji, "OWN_SPELLINGS", 8)
        from_emoji.train_vqgan(folder, loaded)
        from_emoji.train_decoder(folder, loaded)
        from_emoji.train_dalle(folder, loaded, examples=64)
        from_emoji.train_clip(folder, loaded)
        yield folder


def test_every_network_of_a_run_says_what_it_was_begun_with(run: Path):
    for network in ("vqgan", "decoder", "dalle", "clip"):
        assert json.loads((run / network / "config.json").read_text())["recipe"]["steps"] == 1
    assert set(Facts.gather(run / "model").recipes) >= {"vqgan", "decoder", "dalle", "clip"}  # for the model card


def test_a_run_lists_the_words_it_was_trained_on(run: Path):
    vocabulary = Vocabulary.load(run / "model" / "dalle")
    assert vocabulary is not None
    assert vocabulary.unknown("a zebra left of a cat") == ["zebra"]


def test_a_network_goes_on_by_its_own_recipe_or_not_at_all(run: Path, capsys: pytest.CaptureFixture[str]):
    for network in ("vqgan", "decoder", "dalle", "clip"):
        settings = [f"--set={text}" for text in (*TINY, f"{network}.training.learning_rate=0.5")]
        assert main(["train", network, "--run", str(run), *settings]) == 2
        told = capsys.readouterr().err
        assert f"as {run / network / 'config.json'} says, got 0.5: use a new run folder" in told


def test_without_data_nothing_that_is_asked_for_is_ignored(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "dalle", "--run", str(run), "--vqgan", "mini"]) == 2
    assert "vqgan must be left out without --data" in capsys.readouterr().err
    loaded = recipe.load("emoji", TINY)
    with pytest.raises(ValueError, match=r"^track must be trackio or wandb, got 'other'$"):
        from_emoji.train_dalle(run, loaded, examples=64, track="other")
    with pytest.raises(ValueError, match=r"^tokenizer must be the one that is in"):
        from_emoji.train_dalle(run, loaded, examples=64, tokenizer=str(EMBEDDED))


def test_a_tokenizer_that_is_given_is_the_one_of_the_run(tmp_path: Path):
    from_emoji._make_tokenizer(tmp_path, recipe.load("emoji", TINY), None, str(EMBEDDED))
    for name in ("tokenizer.json", "vocab.json"):
        assert (tmp_path / "model" / "dalle" / name).read_bytes() == (EMBEDDED / "dalle" / name).read_bytes()
    assert set(tokenizer.FILES) >= {path.name for path in (tmp_path / "model" / "dalle").iterdir()}


def test_of_several_hosts_only_the_first_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs.jax, "process_index", lambda: 1)
    runs.begin(tmp_path / "dalle", {"recipe": {"steps": 1}})
    from_emoji._make_tokenizer(tmp_path, recipe.load("emoji", TINY), None, str(EMBEDDED))
    assert not any(tmp_path.iterdir())
