"""What is given before anything is drawn: how it is checked, written and read; no network is needed."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle_mini.sampling_params import SamplingParams
from dalle_mini.start import FREE, Start, kept_places, source

SIZES = {"image_length": 16, "codebook_size": 60, "resolution": 32}
CODES = np.arange(16, dtype=np.int32)
GRID = np.eye(4, dtype=bool)


def test_rows_are_kept_from_above_and_half_of_them_where_nothing_is_said():
    assert kept_places(1, 4).tolist() == [True] * 4 + [False] * 12
    assert kept_places(None, 4).tolist() == kept_places(2.0, 4).tolist() == [True] * 8 + [False] * 8
    assert (kept_places(0, 4).sum(), kept_places(4, 4).sum()) == (0, 16)


def test_any_places_may_be_kept():
    for grid in (GRID, GRID.tolist(), GRID.ravel()):
        assert kept_places(grid, 4).tolist() == GRID.ravel().tolist()


@pytest.mark.parametrize(
    "keep",
    [-1, 5, 1.5, np.nan, "2", True, [True], GRID[:3], GRID.astype(int), [[True], [True, False]], {}, [[1e308] * 4]],
)
def test_places_outside_the_grid_are_named_with_the_rule(keep: Any):
    with pytest.raises(ValueError, match=r"^keep must be a number of rows from 0 to 4 or 4 x 4 booleans, got "):
        kept_places(keep, 4)


@pytest.mark.parametrize(
    ("start", "rule"),
    [
        (CODES[:15], "a picture or 16 codes (whole numbers), got ndarray of shape (15,)"),
        (CODES / 2, "a picture or 16 codes (whole numbers), got ndarray of shape (16,)"),
        (["a"] * 16, "a picture or 16 codes (whole numbers), got ['a', "),
        ([[1], [1, 2]], "a picture or 16 codes (whole numbers), got [[1], [1, 2]]"),
        (7, "a picture or 16 codes (whole numbers), got 7"),
        (CODES + 45, "codes from 0 to 59, got 45 to 60"),
        (CODES - 1, "codes from 0 to 59, got -1 to 14"),
        ("nowhere.jpg", "an image that can be read, got 'nowhere.jpg'"),
        ("a\0b", "an image that can be read, got 'a\\x00b'"),
    ],
)
def test_a_start_that_is_none_is_named_with_the_rule(start: Any, rule: str):
    with pytest.raises(ValueError, match=f"^start must (be|have) {re.escape(rule)}"):
        source(start, 2, None, **SIZES)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_a_picture_that_cannot_be_read_is_named(damage: str, tmp_path: Path):
    path = tmp_path / "photo.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900] if damage == "cut" else b"not a picture")
    with pytest.raises(ValueError, match=r"^start must be an image that can be read, .*, got '.*photo\.png' \("):
        source(path, 2, None, **SIZES)
    if damage == "cut":  # Pillow opens it, and reads the pixels later
        with Image.open(path) as opened, pytest.raises(ValueError, match=r"^start must be .* read, got <PIL\.Png"):
            source(opened, 2, None, **SIZES)


def test_the_middle_square_of_a_picture_is_what_counts(tmp_path: Path):
    picture = Image.new("RGB", (120, 40), "red")
    picture.paste("blue", (40, 0, 80, 40))
    picture.save(tmp_path / "photo.png")
    for start in (picture, tmp_path / "photo.png"):
        pixels = source(start, 2, None, **SIZES).pixels
        assert pixels is not None
        assert pixels.shape == (32, 32, 3)
        assert (pixels[:, 2:-2] == (0, 0, 255)).all()


def test_a_transparent_picture_lies_on_white(tmp_path: Path):
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    clear.save(tmp_path / "photo.png")
    for start in (clear, tmp_path / "photo.png"):
        assert (source(start, 2, None, **SIZES).pixels == 255).all()


def test_a_start_goes_through_json_and_comes_back():
    start = Start.of(CODES, GRID.ravel())
    assert start is not None
    assert start.codes == tuple(np.where(GRID.ravel(), CODES, FREE).tolist())
    params = SamplingParams(seed=7, start=start)
    assert SamplingParams(**json.loads(json.dumps(params.to_dict()))) == params
    assert Start.of(CODES, np.zeros(16, bool)) is None, "and nothing given is a plain drawing"


def test_a_variation_goes_through_json_and_comes_back():
    start = Start.varied(CODES, np.linspace(-3, 0, 16, dtype=np.float32), 0.3)
    assert start is not None
    assert Start.from_dict(json.loads(json.dumps(start.to_dict()))) == start
    others = dataclasses.replace(start, strength=0.4), dataclasses.replace(start, least=start.least[::-1])
    assert len({each.sha256 for each in (start, *others, Start(start.codes))}) == 4
    assert Start.varied(CODES, np.zeros(16, np.float32), 1) is None, "and nothing left is a plain drawing"


def test_large_grids_stay_small_in_a_file():
    noise = np.random.default_rng(0).integers(0, 16384, 256)
    start = Start.of(noise, kept_places(8, 16))
    assert start is not None
    assert len(json.dumps(start.to_dict())) < 600


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"codes": 7, "sha256": "0"},
        {"codes": "?", "sha256": "0"},
        {"codes": "eJxjYGBg", "sha256": "0"},  # cut
        Start((1, 2, 3, 4)).to_dict() | {"sha256": "0" * 16},
        Start((0,) * (1 << 20)).to_dict(),  # small, and large when unpacked
        Start((1, 2), 0.5, (-1.0, -2.0)).to_dict() | {"strength": 0.25},
        Start((1, 2), 2.0, (-1.0, -2.0)).to_dict(),
        Start((1, 2), 0.5, (-1.0,)).to_dict(),
    ],
)
def test_damaged_codes_of_a_file_are_named(told: dict[str, Any]):
    with pytest.raises(ValueError, match=r"^start must be codes as a PNG has them, whole, got "):
        SamplingParams(start=told)
