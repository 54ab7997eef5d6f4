"""Candidates, their PNG text and the files of a gallery; no network is needed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_mini.gallery import Candidate, Gallery, contact_sheet, read_metadata, slug
from dalle_mini.sampling_params import SamplingParams

SCORES = (0.11, 0.33, 0.22)


def candidate(index: int = 0, *, score: float | None = 0.25, prompt: str = "a cat", size: int = 8) -> Candidate:
    return Candidate(
        image=Image.new("RGB", (size, size), (40 * index, 0, 0)),
        codes=np.full(4, index, np.int32),
        index=index,
        score=score,
        prompt=prompt,
        params=SamplingParams(num_candidates=3, seed=7),
        model="emoji",
    )


def gallery(scores: tuple[float | None, ...] = SCORES) -> Gallery:
    return Gallery(candidates=[candidate(i, score=score) for i, score in enumerate(scores)], seconds=1.5)


def test_best_score_comes_first():
    assert [c.index for c in gallery()] == [1, 2, 0]


def test_equal_scores_keep_the_order_they_were_drawn_in():
    assert [c.index for c in gallery((0.2, 0.2, 0.3))] == [2, 0, 1]


def test_without_scores_the_drawn_order_stays():
    assert [c.index for c in gallery((None, None, None))] == [0, 1, 2]


@pytest.mark.parametrize(
    "prompt",
    ["a cat", "crème brûlée", "🍕 left of a 🐈", "‏خط عربي", "two\nlines\tand\x00control", "x" * 10_000],
    ids=["ascii", "latin", "emoji", "right-to-left", "control", "long"],
)
def test_any_prompt_comes_back_from_the_png(prompt: str, tmp_path: Path):
    drawn = candidate(2, prompt=prompt)
    drawn.save_png(tmp_path / "a.png")
    assert read_metadata(tmp_path / "a.png") == drawn.metadata()
    assert read_metadata(tmp_path / "a.png")["prompt"] == prompt


def test_settings_in_the_png_are_the_sampling_params(tmp_path: Path):
    drawn = candidate()
    drawn.save_png(tmp_path / "a.png")
    assert SamplingParams(**json.loads(read_metadata(tmp_path / "a.png")["settings"])) == drawn.params


def test_score_is_absent_without_reranking():
    assert "score" not in candidate(score=None).metadata()
    assert candidate(score=0.0).metadata()["score"] == "0.0000"


def test_same_candidate_gives_the_same_bytes(tmp_path: Path):
    candidate(1).save_png(tmp_path / "a.png")
    candidate(1).save_png(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_png_of_somebody_else_has_no_metadata(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert read_metadata(tmp_path / "a.png") == {}


@pytest.mark.parametrize("damage", ["missing", "jpeg", "text", "cut"])
def test_file_that_is_no_png_is_named(damage: str, tmp_path: Path):
    path = tmp_path / "a.png"
    if damage == "jpeg":
        Image.new("RGB", (4, 4)).save(path, format="JPEG")
    elif damage == "text":
        path.write_text("not a picture")
    elif damage == "cut":
        candidate(size=64).save_png(path)
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"picture must be a PNG file that can be read, got '.*a\.png'"):
        read_metadata(path)


def test_saved_files_are_ranked_and_listed(tmp_path: Path):
    paths = gallery().save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["01.png", "02.png", "03.png", "grid.png", "scores.json"]
    assert read_metadata(paths[0])["candidate"] == "1"
    assert json.loads(paths[-1].read_text()) == [
        {"rank": 1, "score": 0.33, "seed": 7, "candidate": 1, "file": "01.png"},
        {"rank": 2, "score": 0.22, "seed": 7, "candidate": 2, "file": "02.png"},
        {"rank": 3, "score": 0.11, "seed": 7, "candidate": 0, "file": "03.png"},
    ]


def test_saving_twice_overwrites_nothing(tmp_path: Path):
    first, second, third = (gallery().save(tmp_path) for _ in range(3))
    assert [path.parent for path in (first[0], second[0], third[0])] == [
        tmp_path,
        tmp_path / "2",
        tmp_path / "3",
    ]


def test_saving_beside_other_files_is_no_collision(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    assert gallery().save(tmp_path)[0] == tmp_path / "01.png"


@pytest.mark.parametrize(
    ("number", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (5, 3, 2), (9, 3, 3), (16, 4, 4)]
)
def test_contact_sheet_is_nearly_square(number: int, columns: int, rows: int):
    sheet = contact_sheet([Image.new("RGB", (10, 10), "red")] * number)
    assert sheet.size == (columns * 12 - 2, rows * 12 - 2)


def test_contact_sheet_shows_every_picture_in_its_place():
    sheet = contact_sheet([Image.new("RGB", (10, 10), color) for color in ("red", "lime", "blue")])
    assert [sheet.getpixel(at) for at in ((0, 0), (12, 0), (0, 12), (12, 12))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),  # no picture
    ]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A cat, left of a pizza!", "a-cat-left-of-a-pizza"),
        ("../../etc/passwd", "etc-passwd"),
        ("قطة 🐈 chat", "قطة-chat"),
        ("🍕", "prompt"),
        ("x" * 10_000, "x" * 40),
    ],
)
def test_slug_is_a_short_safe_name(prompt: str, name: str):
    assert slug(prompt) == name
