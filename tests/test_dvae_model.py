"""A text-to-code model of 1,024 codes of 8,192, as DALL·E had: encoded, trained, loaded and drawn by the commands."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from source_files import CAPTIONS, photo

import dalle_mini
import vqgan
from dalle_mini import model_names
from dalle_mini.__main__ import main
from dalle_mini.training.report.publish import publish
from vqgan import dvae
from vqgan.config import DVAEConfig
from vqgan.files import CheckpointError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimised")]
SIZES = DVAEConfig(n_hid=8, n_blk_per_group=1, n_init=8)  # of pictures of 256 pixels
TINY = ["dalle.training.steps=2", "dalle.training.batch_size=2", "dalle.d_model=16", "dalle.training.warmup_steps=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dvae")
    (folder / "pictures").mkdir()
    for number in range(6):
        photo(number, (300, 260)).save(folder / "pictures" / f"{number}.jpg")
        (folder / "pictures" / f"{number}.txt").write_text(CAPTIONS[number % 6])
    params = jax.jit(dvae.init_params, static_argnums=0)(SIZES, jax.random.key(0))
    vqgan.save(folder / "tokenizer", SIZES, params, dtype=np.float32)
    codes, picture_codes = str(folder / "codes"), str(folder / "tokenizer")
    assert main(["encode", str(folder / "pictures"), "--out", codes, "--vqgan", picture_codes]) == 0
    settings = [part for setting in TINY for part in ("--set", setting)]
    command = ["train", "dalle", "--recipe", "emoji-tiny", "--data", codes, "--vqgan", picture_codes]
    assert main([*command, "--run", str(folder / "run"), *settings]) == 0
    return folder / "run"


def test_it_draws_pictures_of_the_dvae(run: Path):
    with dalle_mini.load(run, rerank=False, slots=9) as pipeline:
        assert (pipeline.config.image_length, pipeline.config.codebook_size) == (1024, 8192)
        (candidate,) = pipeline.generate("a red car", num_candidates=1, seed=7)
        assert len(set(candidate.codes.tolist())) > 100
        painted = pipeline.vqgan.decode(candidate.codes[None])[0]
    assert candidate.image.size == (256, 256)
    np.testing.assert_array_equal(candidate.image, painted)


def test_its_metrics_and_its_config_say_what_it_is(run: Path):
    last = json.loads((run / "dalle" / "metrics.jsonl").read_text().splitlines()[-1])
    assert abs(last["validation_loss"] - np.log(8193)) < 1  # it knows next to nothing
    assert json.loads((run / "model" / "vqgan" / "config.json").read_text())["model_type"] == "dvae"


def test_it_is_published_with_a_card_that_names_the_dvae(run: Path, tmp_path: Path):
    publish(run, tmp_path / "mine")
    assert "dVAE (OpenAI's architecture): pictures of 256 x 256 pixels; 8192 codes" in (
        tmp_path / "mine" / "README.md"
    ).read_text(encoding="utf-8")
    assert vqgan.load(tmp_path / "mine" / "vqgan").config == SIZES


def test_with_a_vqgan_in_its_place_it_is_refused(run: Path, tmp_path: Path):
    publish(run, tmp_path / "mine")
    for path in (tmp_path / "mine" / "vqgan").iterdir():
        path.write_bytes((model_names.EMBEDDED / "vqgan" / path.name).read_bytes())
    with pytest.raises(CheckpointError, match=r"must have 8192 codes and a grid of side 32 .*got 2048 and 8$"):
        dalle_mini.load(tmp_path / "mine", rerank=False)


def test_reconstruct_takes_it(run: Path, tmp_path: Path):
    photo(99, (400, 300)).save(tmp_path / "a.png")
    assert main(["reconstruct", str(tmp_path / "a.png"), "--model", str(run), "--out", str(tmp_path / "r.png")]) == 0
    with Image.open(tmp_path / "r.png") as sheet:
        assert sheet.width > 2 * 256
