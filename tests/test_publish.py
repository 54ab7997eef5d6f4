"""What is published is what was trained, to the bit, in both layouts; a card that guesses nothing; all or nothing."""

import dataclasses
import filecmp
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import flax.serialization
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from gradio_client import Client
from huggingface_hub import ModelCard
from PIL import Image

import dalle_mini
import vqgan
from dalle_mini import Pipeline, model_names
from dalle_mini.__main__ import main
from dalle_mini.checkpoint import load_params
from dalle_mini.config import ModelConfig
from dalle_mini.model_names import EMBEDDED
from dalle_mini.serving.crowd_server import server
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.data.shards import vqgan_location
from dalle_mini.training.report.publish import publish, published_settings
from vqgan.files import CheckpointError, read_params, write_json, write_safetensors

LAYOUTS = [("safetensors", False), ("msgpack", False), ("msgpack", True)]
STATISTICS = {
    "vqgan": {"sha256": "0" * 64, "n_embed": 64, "resolution": 32},
    "codebook": {"used": 60, "size": 64, "perplexity": 41.5},
    "words_per_caption": 7.25,
    "read": 12345,
    "kept": 12000,
    "skipped": {"tiny": {"count": 45, "keys": []}, "no caption": {"count": 300, "keys": []}},
    "converted": {},
}
REPORT = {
    "captions": {"source": "photos/held-back", "number": 150},
    "candidates": 9,
    "clip": {"name": "x", "score_of_true_pictures": 0.31, "note": "FID on the image features of x."},
    "validation_loss": {"nats_per_code": 4.321, "rows": 150, "source": "photos/held-back"},
    "reconstruction": {"psnr_decibels": 21.5, "ssim": 0.71},
    "drawn": [
        {"condition_scale": 1.5, "clip_score": {"best": 0.287, "first": 0.251}, "fid": {"best": 12.5, "first": 13.25}}
    ],
}


@pytest.fixture
def run(tmp_path: Path, golden: Callable[[str], Path]) -> Path:
    """A run's folder with networks of the original code's making, in float32."""
    parts = tmp_path / "run" / "model"
    shutil.copytree(golden("vqgan_a"), parts / "vqgan", ignore=shutil.ignore_patterns("*.npz"))
    shutil.copytree(golden("mini"), parts / "dalle", ignore=shutil.ignore_patterns("*.npz"))
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        shutil.copy(golden("tokenizer") / name, parts / "dalle")
    return tmp_path / "run"


def assert_same_arrays(one: dict, other: dict) -> None:
    flat, expected = (flatten_dict(tree, sep="/") for tree in (one, other))
    assert flat.keys() == expected.keys()
    for path, array in expected.items():
        assert flat[path].dtype == array.dtype, path
        np.testing.assert_array_equal(flat[path], array, err_msg=path)


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig.from_json(folder / "config.json")


# The same to the bit


@pytest.mark.parametrize(("layout", "stacked"), LAYOUTS)
def test_a_published_model_has_the_params_of_the_run(run: Path, tmp_path: Path, layout: str, stacked: bool):
    publish(run / "model", tmp_path / "out", layout=layout, stacked=stacked)
    before, after = run / "model", tmp_path / "out"
    config = config_of(before / "dalle")
    assert config_of(after / "dalle") == config
    params = [load_params(folder / "dalle", config, dtype="float32") for folder in (after, before)]
    assert_same_arrays(*params)
    assert_same_arrays(*(read_params(folder / "vqgan") for folder in (after, before)))
    assert vqgan.load(after / "vqgan").config == vqgan.load(before / "vqgan").config
    assert filecmp.cmp(after / "dalle" / "tokenizer.json", before / "dalle" / "tokenizer.json", shallow=False)
    file = "model.safetensors" if layout == "safetensors" else "flax_model.msgpack"
    assert {path.name for path in (after / "vqgan").iterdir()} == {"config.json", file}


def test_a_model_goes_through_all_layouts_and_back_to_the_same_files(tmp_path: Path):
    steps = [*LAYOUTS[1:], ("safetensors", False)]
    source = EMBEDDED
    for number, (layout, stacked) in enumerate(steps):
        publish(source, tmp_path / str(number), layout=layout, stacked=stacked)
        source = tmp_path / str(number)
    for path in sorted(EMBEDDED.rglob("*")):
        if path.is_file() and path.name != "config.json":  # those may differ in the order of their lines
            assert filecmp.cmp(path, source / path.relative_to(EMBEDDED), shallow=False), path
    assert config_of(source / "dalle") == config_of(EMBEDDED / "dalle")
    assert {path.relative_to(source) for path in source.rglob("*")} == {
        path.relative_to(EMBEDDED) for path in EMBEDDED.rglob("*")
    }


def test_the_published_layout_draws_the_same_pictures(emoji: Pipeline, tmp_path: Path):
    publish("emoji", tmp_path / "mine", layout="msgpack", stacked=True)
    with dalle_mini.load(tmp_path / "mine") as mine:
        assert mine.name == "mine"
        gallery = mine.generate("a cat left of a pizza", seed=7, num_candidates=2)
    expected = emoji.generate("a cat left of a pizza", seed=7, num_candidates=2)
    for got, want in zip(gallery, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(got.image), np.asarray(want.image))
        assert got.score == want.score


@pytest.mark.slow
def test_a_published_model_is_served(emoji: Pipeline, tmp_path: Path):
    publish("emoji", tmp_path / "mine", layout="msgpack")
    with server(str(tmp_path / "mine"), tmp_path / "server") as address:
        client = Client(address, verbose=False, download_files=str(tmp_path))
        result = client.predict("a cat left of a pizza", num_candidates=1, seed=7, api_name="/generate")
        client.close()
    assert result["model"] == "mine"
    expected = emoji.generate("a cat left of a pizza", seed=7, num_candidates=1)[0]
    with Image.open(result["candidates"][0]["image"]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected.image))


# As the original code wrote it


@pytest.mark.parametrize("name", ["mini", "mini_scan", "mega", "mega_fp16"])
def test_published_settings_are_those_of_the_original_code(name: str, golden: Callable[[str], Path]):
    original = json.loads((golden(name) / "config.json").read_text())
    ours = published_settings(config_of(golden(name)), original["use_scan"])
    assert {key: original[key] for key in ours if key in original} == {
        key: ours[key] for key in ours if key in original
    }
    needed = {"use_scan", "pad_token_id", "eos_token_id", "min_length", "is_encoder_decoder", "image_length", "ln_type"}
    assert needed <= set(ours)


@pytest.mark.parametrize("name", ["mini", "mini_scan", "mega", "mega_fp16"])
def test_the_original_file_comes_out_as_it_went_in(name: str, golden: Callable[[str], Path], tmp_path: Path):
    shutil.copytree(golden(name), tmp_path / "in")
    shutil.copy(golden("tokenizer") / "tokenizer.json", tmp_path / "in")
    publish(tmp_path / "in", tmp_path / "out", layout="msgpack", stacked="scan" in name or "mega" in name)
    got, want = (
        flax.serialization.msgpack_restore((folder / "flax_model.msgpack").read_bytes())
        for folder in (tmp_path / "out", tmp_path / "in")
    )
    assert_same_arrays(got, want)


def test_the_published_vqgan_has_the_original_settings(run: Path, tmp_path: Path):
    publish(run / "model", tmp_path / "out", layout="msgpack")
    original = json.loads((run / "model" / "vqgan" / "config.json").read_text())
    ours = json.loads((tmp_path / "out" / "vqgan" / "config.json").read_text())
    assert (
        ours.items()
        >= {k: v for k, v in original.items() if k not in ("architectures", "transformers_version")}.items()
    )


# Numbers of another size


def test_float16_rounds_and_float32_holds(run: Path, tmp_path: Path):
    publish(run / "model", tmp_path / "half", dtype="float16")
    publish(tmp_path / "half", tmp_path / "whole", dtype="float32", layout="msgpack")
    for part in ("dalle", "vqgan"):
        half = read_params(tmp_path / "half" / part)
        assert {leaf.dtype.name for leaf in flatten_dict(half).values()} == {"float16"}
    config = config_of(run / "model" / "dalle")
    whole = load_params(tmp_path / "whole" / "dalle", config, dtype="float32")
    before = load_params(run / "model" / "dalle", config, dtype="float32")
    rounded = {
        path: np.asarray(leaf).astype(np.float16).astype(np.float32) for path, leaf in flatten_dict(before).items()
    }
    assert_same_arrays(whole, unflatten_dict(rounded))


def test_a_number_that_float16_cannot_hold_is_named_and_nothing_is_left(run: Path, tmp_path: Path):
    folder = run / "model" / "vqgan"
    params = read_params(folder)
    params["quantize"]["embedding"]["embedding"] = params["quantize"]["embedding"]["embedding"] * np.float32(1e6)
    (folder / "flax_model.msgpack").unlink()
    write_safetensors(params, folder / "model.safetensors", dtype="float32")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"dtype must hold .*got float16 for quantize/embedding/embedding, which goes"):
        publish(run / "model", tmp_path / "out", dtype="float16")
    assert sorted(tmp_path.rglob("*")) == before


# All or nothing


def test_a_damaged_model_leaves_nothing(run: Path, tmp_path: Path):
    (run / "model" / "vqgan" / "flax_model.msgpack").write_bytes(b"half of it")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"vqgan/flax_model\.msgpack must be a whole"):
        publish(run / "model", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_stands_for_its_model(run: Path, tmp_path: Path):
    """Its own dalle/ and vqgan/ hold checkpoints and sheets."""
    for stage in ("dalle", "vqgan"):
        (run / stage).mkdir()
    for location in (run, run / "model"):
        preset = model_names.find(location)
        assert (preset.name, preset.dalle, preset.vqgan) == ("run", run / "model" / "dalle", run / "model" / "vqgan")
        assert vqgan_location(str(location)) == run / "model" / "vqgan"
    publish(run, tmp_path / "out")
    assert (tmp_path / "out" / "vqgan" / "config.json").exists()


def test_nothing_is_overwritten_and_an_empty_folder_is_filled(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    publish(run / "model", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for taken in (out, run / "model" / "dalle" / "config.json"):
        with pytest.raises(ValueError, match=f"out must be a new or an empty folder, got '{taken}'"):
            publish(run / "model", taken)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_text_to_code_model_alone_is_published_alone(run: Path, tmp_path: Path):
    shutil.rmtree(run / "model" / "vqgan")
    publish(run / "model", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dalle", "README.md"}
    assert "The VQGAN is not part of these files." in (tmp_path / "out" / "README.md").read_text()


def test_everyone_who_may_read_the_config_may_read_the_weights(run: Path, tmp_path: Path):
    publish(run / "model", tmp_path / "out")
    modes = {os.stat(path).st_mode for path in (tmp_path / "out" / "dalle").iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--layout", "pickle"], "error: layout must be one of safetensors, msgpack, got 'pickle'"),
        (["--dtype", "int8"], "error: dtype must be one of float16, float32, got 'int8'"),
        (["--stacked"], "error: stacked must go with layout msgpack, got safetensors"),
        (["--report", "no.json"], "error: report and statistics must be left out for a model with a card of its own"),
    ],
)
def test_bad_input_is_one_line(options: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["publish", "emoji", "--out", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.startswith(line)
    assert not list(tmp_path.iterdir())


# The card


def test_the_card_says_what_the_run_left_behind(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for stage in ("vqgan", "dalle", "clip"):
        (run / stage).mkdir()
    recipe = dataclasses.asdict(DalleTrainConfig(steps=600, batch_size=48, seed=3))
    write_json(run / "dalle" / "config.json", {"sizes": {}, "recipe": recipe, "data": {"examples": 12000}})
    (run / "clip" / "metrics.jsonl").write_text('{"step": 30, "loss": 1.5}')
    rows = [{"step": 500, "loss": 4.0, "validation_loss": 4.5}, {"step": 520, "loss": 3.875}]
    text = "\n".join(map(json.dumps, rows)) + '\n{"step": 54'  # killed while it wrote
    (run / "dalle" / "metrics.jsonl").write_text(text)
    (run / "vqgan" / "metrics.jsonl").write_text("")
    (run / "encoded").mkdir()
    (run / "encoded" / "statistics.json").write_text(json.dumps(STATISTICS))
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    arguments = ["publish", str(run / "model"), "--out", str(tmp_path / "tiles"), "--layout", "msgpack"]
    assert main([*arguments, "--report", str(tmp_path / "report.json")]) == 0
    assert "before you share it" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "tiles" / "README.md")
    assert card.data.to_dict() == {
        "license": "other",
        "license_name": "author-please-choose",
        "library_name": "flax",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "dalle-mini", "jax", "vqgan"],
    }
    parameters = sum(leaf.size for leaf in flatten_dict(read_params(run / "model" / "vqgan")).values())
    for said in (
        "# Model card: tiles",
        f"| vqgan: pictures to codes and back | {parameters:,} | float32 |",
        "width 32, 2 encoder and 3 decoder layers, 4 heads, feed-forward 48",
        "pictures of 4 x 4 codes out of 96",
        "pictures of 32 x 32 pixels",
        "12,000 pictures with captions out of 12,345 that were read (left out: 300 no caption, 45 tiny)",
        "7.25 words on average",
        "60 of 64, with a perplexity of 41.5",
        "| dalle | 520 | loss 3.875, validation loss 4.5 |",
        "- dalle, by recipe: steps 600, batch size 48, optimiser muon, learning rate 0.02, warmup steps 50, seed 3.",
        "**[AUTHOR: batch size, optimiser and seed of clip; machine and time.]**",
        "4.321 nats a code on 150 rows",
        "PSNR 21.5 dB, SSIM 0.71",
        "| 1.5 | best | 0.287 | 12.5 |",
        "photos/held-back",
        "**[AUTHOR: choose a licence",
    ):
        assert said in card.text, said
    assert "| vqgan | " not in card.text  # nothing was logged


def test_without_a_run_the_card_leaves_it_to_the_author(run: Path, tmp_path: Path):
    (run / "model").rename(tmp_path / "other")
    publish(tmp_path / "other", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    for mark in (
        "where the pictures and captions are from",
        "steps, batch size",
        "not measured yet",
        "choose a licence",
    ):
        assert f"**[AUTHOR: {mark}" in text


def test_the_authors_own_card_is_kept(run: Path, tmp_path: Path):
    (run / "model" / "README.md").write_text("mine")
    publish(run / "model", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_statistics_are_found_in_their_folder_and_a_bad_file_is_named(run: Path, tmp_path: Path):
    (tmp_path / "statistics.json").write_text(json.dumps(STATISTICS))
    publish(run / "model", tmp_path / "out", statistics=tmp_path)
    assert "12,000 pictures" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "statistics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"statistics must have read, kept, .*without read, kept, skipped, vqgan"):
        publish(run / "model", tmp_path / "more", statistics=tmp_path)


def test_a_config_of_the_run_that_cannot_be_read_is_named(run: Path, tmp_path: Path):
    (run / "dalle").mkdir()
    (run / "dalle" / "metrics.jsonl").write_text('{"step": 30, "loss": 1.5}')
    (run / "dalle" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"dalle's config.json must be a JSON file that can be read, got "):
        publish(run / "model", tmp_path / "out")


def test_an_original_vqgan_reader_is_warned_of_other_groups(tmp_path: Path):
    shutil.copytree(EMBEDDED, tmp_path / "model", ignore=shutil.ignore_patterns("README.md", "clip"))
    publish(tmp_path / "model", tmp_path / "out", layout="msgpack")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "The VQGAN normalises in 4 groups. The original code knows 32 alone" in text
    assert "There is no CLIP: pictures are not ranked." in text
