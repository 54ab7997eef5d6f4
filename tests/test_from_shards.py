"""From shards to a model folder that loads, draws and is served; what does not fit is refused by name."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from gradio_client import Client
from PIL import Image, ImageDraw

import dalle_mini
from dalle_mini.model_names import EMBEDDED
from dalle_mini.training import recipe
from dalle_mini.training import run as runs
from dalle_mini.training.data.encode import encode
from dalle_mini.training.data.shards import HELD_BACK, fingerprint, held_back, read_codes
from dalle_mini.training.tasks import from_shards
from vqgan import Codec, load, save
from vqgan.files import CheckpointError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimised")]

ROOT = Path(__file__).parents[1]
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white"]
SHAPES = ["circle", "square", "bar", "ring", "triangle"]
WORDS = json.loads((EMBEDDED / "dalle" / "config.json").read_text())["encoder_vocab_size"]
TINY = ["dalle.training.steps=2", "dalle.training.batch_size=8", "dalle.d_model=16"]


def draw(folder: Path, count: int) -> None:
    """Pictures of one shape on a coloured ground, every one different, with captions beside them."""
    folder.mkdir(parents=True)
    for i in range(count):
        shape, colour = SHAPES[i % 5], COLOURS[i // 5 % 8]
        ground = [c for c in COLOURS if c != colour][i // 40 % 7]
        image = Image.new("RGB", (96, 96), ground)
        pen, (x, y) = ImageDraw.Draw(image), np.random.default_rng(i).integers(4, 30, 2).tolist()
        box = (x, y, x + 50 + i % 11, y + 50 + i % 13)
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        elif shape == "bar":
            pen.rectangle((x, y, x + 60, y + 12), fill=colour)
        elif shape == "ring":
            pen.ellipse(box, outline=colour, width=8)
        else:
            pen.polygon([(x, y + 60), (x + 30, y), (x + 60, y + 60)], fill=colour)
        image.save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"a picture of a {colour} {shape} on a {ground} background")


@pytest.fixture(scope="module")
def painter() -> Codec:
    return load(EMBEDDED / "vqgan")


@pytest.fixture(scope="module")
def shards(painter: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw(folder / "pictures", 24)
    encode(folder / "pictures", painter, out=folder / "encoded")
    return folder / "encoded"


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    run = tmp_path_factory.mktemp("run")
    told = from_shards.train_dalle(recipe.load("emoji-tiny", TINY), [shards], run)
    assert told == f"23 examples and 1 held back; the model is in {run / 'model'}"
    return run


def test_model_of_a_run_loads_and_draws_without_clip(run: Path, painter: Codec):
    with dalle_mini.load(run / "model", rerank=False) as pipeline:
        gallery = pipeline.generate("a red circle", num_candidates=2, seed=1)
        assert pipeline.config.codebook_size == 2048
        assert pipeline.defaults.condition_scale == 2.0  # the recipe's
        assert fingerprint(pipeline.vqgan) == fingerprint(painter)
    assert gallery[0].image.size == (64, 64)


def test_model_without_clip_says_what_is_missing(run: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"model must hold clip/ to rank with, got none: leave ranking out"):
        dalle_mini.load(run / "model")
    shutil.copytree(run / "model" / "dalle", tmp_path / "half" / "dalle")
    with pytest.raises(CheckpointError, match=r"half must hold vqgan/ beside dalle/, got none"):
        dalle_mini.load(tmp_path / "half", rerank=False)


def test_run_leaves_sheet_metrics_and_what_it_was_made_of(run: Path, shards: Path):
    assert (run / "dalle" / "sheets" / "000002.png").exists()
    encoded = read_codes([shards])
    (shown,) = np.flatnonzero(held_back(encoded.keys))
    assert (run / "dalle" / "sheets.txt").read_text() == encoded.captions[shown] + "\n"
    last = json.loads((run / "dalle" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "validation_loss", "codes_per_second"} <= set(last)
    facts = json.loads((run / "dalle" / "config.json").read_text())
    assert (facts["recipe"]["steps"], facts["data"]["examples"]) == (2, 24)


def test_tokenizer_and_vqgan_of_another_model_are_taken_over(shards: Path, tmp_path: Path):
    embedded = str(EMBEDDED)
    loaded = recipe.load("emoji-tiny", [*TINY, f"dalle.encoder_vocab_size={WORDS}"])
    from_shards.train_dalle(loaded, [shards], tmp_path, vqgan_name=embedded, tokenizer=embedded)
    ours, theirs = ((folder / "dalle" / "merges.txt").read_bytes() for folder in (tmp_path / "model", EMBEDDED))
    assert ours == theirs


def test_key_alone_decides_what_is_held_back():
    keys = [f"picture {i}" for i in range(2000)]
    held = held_back(keys)
    assert 20 < held.sum() < 70  # a fiftieth
    np.testing.assert_array_equal(held_back(keys[::-1]), held[::-1])
    np.testing.assert_array_equal(held_back(keys[:1000]), held[:1000])
    assert held_back(["a", "b"]).sum() == 1
    assert held_back(["a", "a", "b", "b", "b"]).sum() in (2, 3)  # captions of one picture stay together
    with pytest.raises(ValueError, match=r"^data must hold 2 or more pictures, one of them to look at, got 1$"):
        held_back(["a", "a"])


@pytest.mark.parametrize(
    "keys",
    [
        ["a"] * 3000,
        ["a"] * 2900 + ["b"] * 100,
        [f"kind {n % 10}" for n in range(3000)],
        ["a"] * 2500 + list(map(str, range(500))),
    ],
    ids=["one", "two", "ten", "one of most"],
)
def test_about_the_stated_share_is_held_back_whatever_the_keys(keys: list[str]):
    assert 0.5 * HELD_BACK < held_back(keys).mean() < 2 * HELD_BACK


def test_all_captions_of_a_picture_are_held_back_or_none():
    keys = [f"{n // 5}.jpg" for n in range(5000)]
    held = held_back(keys).reshape(-1, 5)
    assert set(held.sum(1)) == {0, 5}


# -- Refused before training


def test_shards_of_another_vqgan_are_refused(shards: Path, painter: Codec, tmp_path: Path):
    params = jax.tree.map(np.array, painter.params)
    params["quantize"]["embedding"]["embedding"][0] += 1
    save(tmp_path / "other", painter.config, params)
    with pytest.raises(ValueError, match=r"^vqgan must be the one of the shards, \w{12} \(2048 codes\), got .*other, "):
        from_shards.train_dalle(
            recipe.load("emoji-tiny", TINY), [shards], tmp_path / "run", vqgan_name=str(tmp_path / "other")
        )
    assert not (tmp_path / "run").exists()


def test_tokenizer_with_more_tokens_than_the_recipe_has_is_refused(shards: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=rf"^dalle\.encoder_vocab_size must be >= the tokenizer's {WORDS} tokens, got 512$"
    ):
        from_shards.train_dalle(recipe.load("emoji-tiny", TINY), [shards], tmp_path, tokenizer=str(EMBEDDED))
    assert not (tmp_path / "dalle").exists()


def test_another_tokenizer_than_that_of_the_run_is_refused(run: Path, shards: Path):
    loaded = recipe.load("emoji-tiny", [*TINY, f"dalle.encoder_vocab_size={WORDS}"])
    with pytest.raises(
        ValueError, match=r"^tokenizer must be the one that is in .*dalle, got .*: use a new run folder$"
    ):
        from_shards.train_dalle(loaded, [shards], run, tokenizer=str(EMBEDDED))


def test_recipe_of_another_codebook_is_refused(shards: Path, tmp_path: Path):
    path = tmp_path / "mine.toml"
    text = (recipe.FOLDER / "emoji-tiny.toml").read_text().replace("n_embed = 256", "n_embed = 512")
    path.write_text(text.replace("[dalle]", "[dalle]\ncodebook_size = 512"))
    with pytest.raises(ValueError, match=r"^dalle\.codebook_size must be the VQGAN's 2048, got 512$"):
        from_shards.train_dalle(recipe.load(path), [shards], tmp_path / "run")


def test_run_goes_on_with_the_recipe_and_data_it_was_begun_with(run: Path, shards: Path, tmp_path: Path):
    run = shutil.copytree(run, tmp_path / "run")
    before = (run / "model" / "dalle" / "model.safetensors").read_bytes()
    for setting, name in (
        ("dalle.training.learning_rate=1e-3", "learning_rate"),
        ("dalle.decoder_layers=1", "decoder_l"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}.* must be .*config\.json says, got .*: use a new run folder$"):
            from_shards.train_dalle(recipe.load("emoji-tiny", [*TINY, setting]), [shards], run)
    with pytest.raises(ValueError, match=r"^examples must be 24, .* got 48: use a new run folder$"):
        from_shards.train_dalle(recipe.load("emoji-tiny", TINY), [shards, shards], run)
    # What only orders the sums is free; the run is finished, and stays what it is.
    from_shards.train_dalle(recipe.load("emoji-tiny", [*TINY, "dalle.training.accumulation=2"]), [shards], run)
    assert (run / "model" / "dalle" / "model.safetensors").read_bytes() == before


def test_a_run_is_bound_to_its_recipe_when_it_has_trained_and_not_before(shards: Path, tmp_path: Path):
    """What a refusal advises can be followed."""
    huge = recipe.load("emoji-tiny", [*TINY, "dalle.training.batch_size=100000000"])
    with pytest.raises(ValueError, match=r"^the recipe must fit the .* or a lower batch_size would take less$"):
        from_shards.train_dalle(huge, [shards], tmp_path / "run")
    assert "the model is in" in from_shards.train_dalle(recipe.load("emoji-tiny", TINY), [shards], tmp_path / "run")


def test_what_a_killed_run_left_half_written_is_written_again(run: Path, shards: Path, tmp_path: Path):
    """A VQGAN's config comes after its weights, the tokenizer's own file after all that belongs to it."""
    killed = tmp_path / "killed"
    (killed / "model" / "vqgan").mkdir(parents=True)
    (killed / "model" / "vqgan" / "model.safetensors").write_bytes(b"half of the weights")
    (killed / "model" / "dalle").mkdir()
    shutil.copy(run / "model" / "dalle" / "vocab.json", killed / "model" / "dalle")
    from_shards.train_dalle(recipe.load("emoji-tiny", TINY), [shards], killed)
    for name in ("dalle/tokenizer.json", "dalle/model.safetensors", "vqgan/model.safetensors"):
        assert (killed / "model" / name).read_bytes() == (run / "model" / name).read_bytes(), name


def test_two_processes_begin_and_finish_a_new_run_by_the_command_line(run: Path, shards: Path, tmp_path: Path):
    """The first one writes; whether the other one finds it written already must not matter."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    line = [sys.executable, "-m", "dalle_mini", "train", "dalle", "--recipe", "emoji-tiny", "--data", str(shards)]
    line += ["--run", str(tmp_path / "run"), *(word for setting in TINY for word in ("--set", setting))]
    processes = [
        subprocess.Popen([*line, "--distributed", f"127.0.0.1:{port},2,{i}"], stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    for process in processes:
        told = process.communicate(timeout=600)[1]
        assert process.returncode == 0, told[-4000:]
    facts = [json.loads((folder / "dalle" / "config.json").read_text()) for folder in (run, tmp_path / "run")]
    assert facts[0] == facts[1]
    name = "model/dalle/tokenizer.json"
    assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()


def test_tracker_that_is_not_installed_is_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^track must be trackio or wandb, got 'other'$"):
        runs.tracker("other", tmp_path, {})
    with pytest.raises(ValueError, match=r"^wandb must be installed for --track wandb: pip install wandb$"):
        runs.tracker("wandb", tmp_path, {})


# -- All of it


def test_a_fresh_user_gets_from_a_folder_of_pictures_to_a_page(tmp_path: Path):
    """The four commands of docs/train.md: filter, encode, train, use."""
    draw(tmp_path / "pictures", 200)

    def command(*arguments: str) -> str:
        line = [sys.executable, "-m", "dalle_mini", *arguments]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert " of 200 kept" in command("filter", "pictures", "--out", "filtered")
    assert " kept" in command("encode", "filtered/filtered.parquet", "--out", "encoded")
    kept = len(read_codes([tmp_path / "encoded"]).keys)
    assert kept >= 150
    steps = ("--set", "dalle.training.steps=30")
    told = command("train", "dalle", "--recipe", "emoji-tiny", "--data", "encoded", "--run", "mine", *steps)
    assert f"the model is in {Path('mine/model')}" in told
    rows = [json.loads(row) for row in (tmp_path / "mine" / "dalle" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 30
    assert rows[-1]["validation_loss"] < np.log(2048)  # better than knowing nothing

    told = command("generate", "a red circle", "--model", "mine/model", "--no-rerank", "--candidates", "2")
    assert "2 in out" in told
    line = [sys.executable, str(ROOT / "app.py"), "--model", "mine/model", "--no-rerank", "--port", "0"]
    with subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            address = server.stdout.readline().split("is at ")[1].split()[0]
            answer = Client(address, verbose=False).predict("a blue square", num_candidates=1, api_name="/generate")
            assert "seed" in json.dumps(answer)
        finally:
            server.terminate()
