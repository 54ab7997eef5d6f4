"""The report of a model: figures that can be checked by other means, on the embedded model; what is refused."""

import copy
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vqgan
from clip_rerank import Reranker
from dalle_mini import Pipeline, model
from dalle_mini.__main__ import main
from dalle_mini.model_names import EMBEDDED
from dalle_mini.training.data.encode import encode
from dalle_mini.training.data.shards import held_back, read_codes
from dalle_mini.training.emoji.judge import judge
from dalle_mini.training.emoji.scene import Scene
from dalle_mini.training.emoji.world import World
from dalle_mini.training.report import report_picture
from dalle_mini.training.report.evaluate import (
    Questions,
    emoji_questions,
    evaluate,
    source_questions,
    validation_loss,
)

SCALES = (1.0, 3.0)


@pytest.fixture(scope="module")
def questions(world: World) -> Questions:
    return emoji_questions(world, captions=6)


@pytest.fixture(scope="module")
def evaluated(emoji: Pipeline, questions: Questions) -> tuple[dict, Image.Image]:
    return evaluate(emoji, questions, condition_scales=SCALES, num_candidates=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures with captions, of another shape than the model's, and one without."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(6):
        pixels = np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((20, 20, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        if i < 5:
            (folder / f"{i}.txt").write_text(f"tiles number {i}")
    return folder


def test_a_row_of_the_report_is_what_the_pipeline_draws(emoji: Pipeline, world: World, questions: Questions, evaluated):
    report, _ = evaluated
    assert [row["condition_scale"] for row in report["drawn"]] == list(SCALES)
    scenes: list[Scene] = questions.scenes or []
    scores, right = [], []
    for seed, scene in enumerate(scenes):
        best = emoji.generate(scene.caption, seed=seed, num_candidates=2, condition_scale=3.0)[0]
        scores.append(best.score)
        right.append(judge(world, scene, np.asarray(best.image)).background)
    assert report["drawn"][1]["clip_score"]["best"] == pytest.approx(np.mean(scores), rel=1e-4)
    assert report["drawn"][1]["template_accuracy"]["best"]["background"] == round(100 * np.mean(right), 1)


def test_the_best_by_clip_is_not_below_the_first(evaluated):
    for row in evaluated[0]["drawn"]:
        assert row["clip_score"]["best"] >= row["clip_score"]["first"]
        assert row["fid"]["best"] > 0


def test_the_report_names_its_clip_and_warns_of_small_sets(evaluated):
    clip = evaluated[0]["clip"]
    assert clip["name"] == "emoji's own CLIP"
    assert "6 drawn against 6 true pictures. Small sets make it too large" in clip["note"]
    assert "flatters" in clip["note"]


def test_the_published_captions_are_asked_for(all_objects: World):
    """The figures in the README and in the card are of these."""
    assert emoji_questions(all_objects, captions=3).captions == [
        "a piglet on top of a peace symbol in front of a blue background",
        "a drawing of four detailed motorcycles on yellow",
        "3 sunshines",
    ]


def test_a_clip_of_ones_own_choice_measures(emoji: Pipeline, questions: Questions):
    other = Reranker.load(str(EMBEDDED / "clip"))  # the same network, but not the one that ranks
    few = Questions(source="few", captions=questions.captions[:2], truth=questions.truth[:2])
    clip = evaluate(emoji, few, num_candidates=1, features=other)[0]["clip"]
    assert clip["name"] == "clip"
    assert "FID on the image features of clip (128 numbers a picture), 2 drawn" in clip["note"]
    assert "flatters" not in clip["note"]
    assert clip["score_of_true_pictures"] == pytest.approx(other.score(few.captions, few.truth).mean(), rel=1e-4)


def test_without_clip_nothing_of_clip_is_in_the_report(emoji: Pipeline, questions: Questions):
    blind = copy.copy(emoji)
    blind.reranker = None
    report, picture = evaluate(blind, questions, num_candidates=1)
    assert "clip" not in report
    assert set(report["drawn"][0]) == {"condition_scale", "template_accuracy", "different_right"}
    assert set(report["drawn"][0]["template_accuracy"]) == {"first"}
    assert "fid" not in report["reconstruction"]
    assert picture.width > 8 * report_picture.TILE


def test_ones_own_pictures_are_cropped_and_have_no_template_accuracy(emoji: Pipeline, photos: Path):
    own = source_questions(photos, emoji.resolution, captions=4)
    assert own.captions == [f"tiles number {i}" for i in range(4)]
    assert own.truth.shape == (4, 64, 64, 3)
    report, _ = evaluate(emoji, own, num_candidates=1)
    assert "template_accuracy" not in report["drawn"][0]
    assert report["captions"] == {"source": str(photos), "number": 4}
    assert report["drawn"][0]["condition_scale"] == emoji.defaults.condition_scale
    assert source_questions(photos, emoji.resolution).captions == [f"tiles number {i}" for i in range(5)]


def test_a_single_picture_has_no_fid(emoji: Pipeline, photos: Path):
    report, _ = evaluate(emoji, source_questions(photos, emoji.resolution, captions=1), num_candidates=1)
    assert set(report["drawn"][0]) == {"condition_scale", "clip_score"}


# Validation loss


def test_validation_loss_is_the_mean_of_minus_the_log_of_every_codes_probability(emoji: Pipeline):
    captions = [f"{number} hearts" for number in range(19)]  # more than are computed at once
    codes = np.random.default_rng(0).integers(0, emoji.config.codebook_size, (19, 64)).astype(np.int32)
    tokens, mask = emoji.tokenizer.encode_batch(captions)
    codes_in = np.concatenate([np.full((19, 1), emoji.config.bos_code, np.int32), codes[:, :-1]], 1)
    params = emoji.scheduler.engines[0].params
    forward = jax.jit(model.forward, static_argnums=1)
    arguments = map(jnp.asarray, (tokens, mask, codes_in))
    logs = np.asarray(jax.nn.log_softmax(forward(params, emoji.config, *arguments)))
    expected = -np.take_along_axis(logs, codes[..., None], 2).mean()
    assert validation_loss(emoji, captions, codes) == pytest.approx(expected, rel=1e-5)


def test_codes_that_the_model_draws_are_likelier_than_others(emoji: Pipeline):
    captions = ["a cat on pink", "two hearts on blue"]
    codes = np.stack([emoji.generate(caption, seed=0, num_candidates=1)[0].codes for caption in captions])
    drawn, swapped = (validation_loss(emoji, captions, rows) for rows in (codes, codes[::-1]))
    assert drawn < 0.3 < 0.6 < swapped


def test_shards_give_the_loss_of_the_pictures_that_training_holds_back(emoji: Pipeline, photos: Path, tmp_path: Path):
    encode(photos, emoji.vqgan, out=tmp_path / "shards")
    held = held_back(read_codes([tmp_path / "shards"]).keys)
    own = source_questions(photos, emoji.resolution)
    report, _ = evaluate(emoji, own, num_candidates=1, shards=[tmp_path / "shards"])
    captions = [caption for caption, out in zip(own.captions, held, strict=True) if out]
    expected = validation_loss(emoji, captions, emoji.vqgan.encode(own.truth[held]))
    assert report["validation_loss"]["nats_per_code"] == pytest.approx(expected, rel=1e-4)
    assert report["validation_loss"]["rows"] == held.sum() == 1
    assert report["validation_loss"]["source"] == f"held back of {tmp_path / 'shards'}"


def test_shards_of_another_vqgan_are_refused(emoji: Pipeline, photos: Path, tmp_path: Path):
    params = jax.tree.map(lambda array: array * 1.01, emoji.vqgan.params)
    encode(photos, vqgan.Codec(emoji.vqgan.config, params), out=tmp_path / "shards")
    own = source_questions(photos, emoji.resolution, captions=1)
    with pytest.raises(ValueError, match=r"shards must be of emoji's own VQGAN, got those of another: .*shards"):
        evaluate(emoji, own, num_candidates=1, shards=[tmp_path / "shards"])


# The picture


def test_the_sheet_shows_the_pictures_under_their_captions(questions: Questions, evaluated):
    picture = np.asarray(evaluated[1])
    tile = questions.truth[0].repeat(2, 0).repeat(2, 1)  # 64 pixels, shown on 128
    found = [
        top
        for top in range(picture.shape[0] - report_picture.TILE)
        if (
            picture[top : top + report_picture.TILE, report_picture.EDGE + report_picture.LABELS :][
                :, : report_picture.TILE
            ]
            == tile
        ).all()
    ]
    assert len(found) == 1


def test_several_scales_have_a_curve_and_one_has_none(emoji: Pipeline, questions: Questions, evaluated):
    report, _ = evaluated
    alone = dict(report, drawn=report["drawn"][:1])
    rows = [report_picture.Row("true", questions.truth)]
    assert len(report_picture._panels(report)) == 2
    assert report_picture._panels(alone) == []
    without, with_curve = (report_picture.draw_report(r, questions.captions, rows) for r in (alone, report))
    assert with_curve.height > without.height + 200
    by_fid = report_picture._panels(report)[1]
    assert by_fid.words == ["1", "3"]
    assert by_fid.curves["best"][0] == (report["drawn"][0]["fid"]["best"], report["drawn"][0]["clip_score"]["best"])


@pytest.mark.parametrize("values", [[1, 10], [0.901, 0.902], [5.0, 5.0], [0.0, 0.0], [-3, 1000]])
def test_ticks_are_few_and_around_the_values(values: list[float]):
    ticks = report_picture._ticks(values)
    assert 2 <= len(ticks) <= 9
    assert ticks[0] <= min(values)
    assert ticks[-1] >= max(values)
    assert len(set(ticks)) == len(ticks)


# The command


def test_the_command_writes_one_json_and_one_picture(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    arguments = ["evaluate", "--data", str(photos), "--captions", "2", "--candidates", "1", "--out", str(out)]
    assert main([*arguments, "--condition-scale", "1", "--condition-scale", "2.5"]) == 0
    assert {path.name for path in out.iterdir()} == {"report.json", "report.png"}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == report
    assert [row["condition_scale"] for row in report["drawn"]] == [1.0, 2.5]
    with Image.open(out / "report.png") as picture:
        picture.load()


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--condition-scale", "-1", "condition_scale must be a number from 0 to 100, got -1"),
        ("--condition-scale", "much", "condition_scale must be a number from 0 to 100, got 'much'"),
        ("--candidates", "0", "num_candidates must be a whole number from 1 to 16, got 0"),
        (
            "--features",
            "nowhere",
            "features must be a CLIP model: the CLIP model must be an existing folder, .* got 'nowhere'",
        ),
        ("--data", "nowhere", "source must be an existing file or folder or a hub id like owner/name, got 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(option: str, value: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "--no-rerank", option, value, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(f"error: {line}", told), told
    assert not list(tmp_path.iterdir())


def test_pictures_without_captions_are_refused(emoji: Pipeline, tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="data must hold pictures with captions, got 0 of 1 kept, 1 no caption"):
        source_questions(tmp_path, emoji.resolution)
