"""The tasks of the emoji world: one tiny run of all networks, and what its commands refuse."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dalle_mini import tokenizer
from dalle_mini.__main__ import main
from dalle_mini.model_names import EMBEDDED
from dalle_mini.training import recipe
from dalle_mini.training import run as runs
from dalle_mini.training.emoji import objects
from dalle_mini.training.emoji.atlas import STYLES, Atlas
from dalle_mini.training.emoji.spelling import BARE, Spelling
from dalle_mini.training.report.model_card import Facts
from dalle_mini.training.tasks import from_emoji
from dalle_mini.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("unoptimised")

NETWORKS = ("vqgan", "encoder", "decoder", "dalle", "clip")
TINY = [
    "world.examples=64",
    "world.clip_examples=256",
    *(f"vqgan.{name}" for name in ("resolution=16", "ch=4", "ch_mult=[1,2]", "z_channels=4", "n_embed=16")),
    *(f"vqgan.{name}" for name in ("embed_dim=4", "num_groups=2")),
    *(f"{network}.training.steps=1" for network in NETWORKS),
    *(f"{network}.training.batch_size=8" for network in NETWORKS),
    *(f"dalle.{name}" for name in ("d_model=16", "encoder_layers=1", "decoder_layers=1")),
    *(f"dalle.{name}" for name in ("encoder_attention_heads=2", "decoder_attention_heads=2")),
    *(f"dalle.{name}" for name in ("encoder_ffn_dim=16", "decoder_ffn_dim=16", "encoder_vocab_size=400")),
    *(f"clip.training.{name}" for name in ("image_size=16", "width=16", "heads=2", "embed_dim=8")),
    *(f"clip.training.{name}" for name in ("vision_layers=1", "text_layers=1", "warmup_steps=0")),
]


@contextmanager
def few_examples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_emoji, "TOKENIZER_CAPTIONS", 200)
        patch.setattr(from_emoji, "VALIDATION_SCENES", 16)
        patch.setattr(from_emoji, "OWN_SPELLINGS", 8)
        patch.setattr(from_emoji, "STRANGE_PICTURES", 8)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the world's first five objects, in an atlas of noise."""
    rng = np.random.default_rng(0)
    sprites = rng.integers(256, size=(5, len(STYLES), 16, 16, 4), dtype=np.uint8)
    y, x = np.mgrid[:16, :16] - 7.5
    sprites[..., 3] = 255 * (np.hypot(x, y) < 8)
    atlas = tmp_path_factory.mktemp("atlas") / "atlas.npz"
    Atlas(sprites, objects.load(5)).save(atlas)
    return [*TINY, f"world.atlas={atlas}", "world.first=5"]


def options(settings: list[str]) -> list[str]:
    return ["--recipe=emoji", *(f"--set={text}" for text in settings)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Iterator[Path]:
    """A run of one step of everything, on few examples."""
    folder = tmp_path_factory.mktemp("run")
    with few_examples():
        for network in NETWORKS:
            assert main(["train", network, f"--run={folder}", *options(settings)]) == 0
            if network == "vqgan":
                shutil.copytree(folder / "model", folder / "first" / "model")
        yield folder


def test_every_network_of_a_run_says_what_it_was_begun_with(run: Path):
    for network in NETWORKS:
        assert json.loads((run / network / "config.json").read_text())["recipe"]["steps"] == 1
    assert set(Facts.gather(run / "model").recipes) >= set(NETWORKS)  # for the model card


def test_a_run_lists_the_words_it_was_trained_on(run: Path):
    known = Vocabulary.load(run / "model" / "dalle")
    assert known is not None
    assert list(known.things) == [each.name for each in objects.load(5)]
    assert known.unknown(f"a zebra left of a {next(iter(known.things))}") == ["zebra"]


def test_the_spelling_is_what_the_first_encoder_voted_for_and_the_taught_one_keeps_it(run: Path, settings: list[str]):
    folder = run / from_emoji.SPELLING
    assert len(list(folder.iterdir())) == 2
    first, taught = (from_emoji._load(each, recipe.load("emoji", settings)) for each in (run / "first", run))
    voted, kept = Spelling.vote(*first), Spelling.of(*taught, folder)
    assert len(list(folder.iterdir())) == 2, "nothing was voted again"
    assert voted.grounds == kept.grounds
    for block, codes in voted.blocks.items():
        np.testing.assert_array_equal(kept.blocks[block], codes)
        # Four small objects or a large one would otherwise hide which background they are on.
        assert BARE in codes or block[-1] not in (4, 8)
        assert (codes != BARE).any()


def test_a_run_is_judged_wherever_its_pictures_are(
    run: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (atlas,) = (text.removeprefix("world.atlas=") for text in settings if text.startswith("world.atlas="))
    moved = [*settings, f"world.atlas={shutil.copy(atlas, tmp_path / 'moved.npz')}"]
    line = ["evaluate", f"--model={run / 'model'}", *options(moved)]
    assert main([*line, "--captions=4", "--names=2", "--candidates=2", f"--out={tmp_path / 'out'}"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["captions"]["number"] == 6
    assert set(report["drawn"][0]["template_accuracy"]["best"]) > {"name"}
    assert all(0 <= number <= 2 for number in report["drawn"][0]["different_right"].values())
    assert set(report["clip"]["score_of_styles"]) <= set(STYLES)


def test_a_run_goes_on_from_another_model(
    run: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(run / "model" / "vqgan", tmp_path / "model" / "vqgan")
    (tmp_path / "dalle" / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)  # killed while it was written
    further = [*settings, f"dalle.training.init={run}", "dalle.training.learning_rate=1e-12"]
    assert main(["train", "dalle", f"--run={tmp_path}", *options(further)]) == 0
    for file in ("tokenizer.json", "model.safetensors"):
        assert (tmp_path / "model" / "dalle" / file).read_bytes() == (run / "model" / "dalle" / file).read_bytes()
    shutil.rmtree(tmp_path / "dalle")
    assert main(["train", "dalle", f"--run={tmp_path}", *options([*further, "dalle.d_model=32"])]) == 2
    assert "must have shape (32,), got (16,)" in capsys.readouterr().err


def test_another_world_is_another_run(run: Path, settings: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["train", "clip", f"--run={run}", *options([*settings, "world.first=4"])]) == 2
    assert "first must be 5, as" in capsys.readouterr().err


def test_a_network_goes_on_by_its_own_recipe_or_not_at_all(
    run: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
):
    for network in NETWORKS:
        other = options([*settings, f"{network}.training.learning_rate=0.5"])
        assert main(["train", network, f"--run={run}", *other]) == 2
        told = capsys.readouterr().err
        assert f"as {run / network / 'config.json'} says, got 0.5: use a new run folder" in told


def test_without_data_nothing_that_is_asked_for_is_ignored(
    run: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "dalle", "--run", str(run), "--vqgan", "mini"]) == 2
    assert "vqgan must be left out without --data" in capsys.readouterr().err
    loaded = recipe.load("emoji", settings)
    with pytest.raises(ValueError, match=r"^track must be trackio or wandb, got 'other'$"):
        from_emoji.train_dalle(run, loaded, track="other")
    with pytest.raises(ValueError, match=r"^tokenizer must be the one that is in"):
        from_emoji.train_dalle(run, loaded, tokenizer=str(EMBEDDED))


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
