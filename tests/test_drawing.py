"""Drawing from something, on the embedded model: negative prompts, starts, the best of more, all of it in a crowd."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from dalle_mini.gallery import Gallery, Preview, read_metadata
from dalle_mini.sampling_params import FIRST
from dalle_mini.start import FREE, Start
from dalle_mini.training.emoji.world import BACKGROUNDS

if TYPE_CHECKING:
    from dalle_mini import Candidate, Pipeline

CATS = {"prompt": "a cat left of a pizza", "num_candidates": 2, "seed": 7}
LEFT = np.arange(8)[None] < np.full((8, 1), 4)  # the left half of the grid


@pytest.fixture(scope="module")
def cats(emoji: "Pipeline") -> Gallery:
    return emoji.generate(**CATS)


def by_index(gallery: Gallery) -> "list[Candidate]":
    return sorted(gallery, key=lambda candidate: candidate.index)


def codes_of(gallery: Gallery) -> np.ndarray:
    return np.stack([candidate.codes for candidate in by_index(gallery)])


def again(emoji: "Pipeline", path: Path) -> "Candidate":
    """The candidate that a PNG is of, drawn from what its text says."""
    text = read_metadata(path)
    gallery = emoji.generate(text["prompt"], **json.loads(text["settings"]))
    return next(candidate for candidate in gallery if candidate.index == int(text["candidate"]))


# Negative prompts


def test_a_negative_prompt_draws_something_else_and_an_empty_one_does_not(emoji: "Pipeline", cats: Gallery):
    np.testing.assert_array_equal(codes_of(emoji.generate(**CATS, negative_prompt=" ")), codes_of(cats))
    corner = np.asarray(cats[0].image)[0, 0].astype(int)
    colour = min(BACKGROUNDS, key=lambda name: np.abs(BACKGROUNDS[name] - corner).sum())
    other = emoji.generate(**CATS, negative_prompt=f"{colour} background")
    assert not np.array_equal(codes_of(other), codes_of(cats))


def test_what_a_model_does_not_know_of_a_negative_prompt_and_what_was_cut_is_told(emoji: "Pipeline"):
    (unknown,) = emoji.generate(**CATS, negative_prompt="a lawnmower").notes
    assert unknown.startswith("negative prompt: I have never seen: lawnmower")
    assert "the negative prompt is longer than the model reads and was cut to 32 tokens" in (
        emoji.generate(**CATS, negative_prompt="a cat and " * 20).notes
    )


def test_a_negative_prompt_without_guidance_is_said_to_change_nothing(emoji: "Pipeline"):
    gallery = emoji.generate(**CATS, negative_prompt="blue", condition_scale=1)
    assert list(gallery.notes) == ["negative_prompt changes nothing where condition_scale is 1"]
    np.testing.assert_array_equal(codes_of(gallery), codes_of(emoji.generate(**CATS, condition_scale=1)))


def test_a_huge_negative_prompt_is_kept_to_its_ten_thousandth_character(emoji: "Pipeline"):
    gallery = emoji.generate(**CATS, negative_prompt="x" * 20_000)
    assert len(gallery.params.negative_prompt) == 10_000


# Starts


def test_the_places_that_are_kept_have_the_candidates_codes_and_the_others_are_drawn(emoji: "Pipeline", cats: Gallery):
    gallery = emoji.generate("a dog left of a pizza", start=cats[0], keep=~LEFT, seed=1, num_candidates=2)
    for candidate in gallery:
        grid = candidate.codes.reshape(8, 8)
        np.testing.assert_array_equal(grid[~LEFT], cats[0].codes.reshape(8, 8)[~LEFT])
        assert not np.array_equal(grid[LEFT], cats[0].codes.reshape(8, 8)[LEFT])


def test_all_given_is_the_picture_as_the_tokenizer_keeps_it(emoji: "Pipeline", tmp_path: Path):
    photo = Image.linear_gradient("L").convert("RGB").resize((90, 90))
    photo.save(tmp_path / "photo.png")
    codes = emoji.vqgan.encode(np.asarray(photo.resize((64, 64)))[None])
    (candidate,) = emoji.generate("a cat", start=photo.resize((64, 64)), keep=8, num_candidates=1)
    np.testing.assert_array_equal(candidate.codes, codes[0])
    np.testing.assert_array_equal(np.asarray(candidate.image), emoji.vqgan.decode(codes)[0])
    (from_file,) = emoji.generate("a cat", start=tmp_path / "photo.png", num_candidates=1)
    assert FREE not in from_file.params.start.codes[:32]
    assert set(from_file.params.start.codes[32:]) == {FREE}, "the upper half, where nothing is said"


def test_nothing_given_is_a_plain_drawing(emoji: "Pipeline", cats: Gallery, tmp_path: Path):
    gallery = emoji.generate(**CATS, start=cats[0], keep=0)
    assert gallery.params == cats.params
    np.testing.assert_array_equal(codes_of(gallery), codes_of(cats))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"start": "nowhere.png"}, "start must be an image that can be read, got 'nowhere.png'"),
        ({"start": [0] * 63}, "start must be a picture or 64 codes (whole numbers), got [0, "),
        ({"start": [2048] * 64}, "start must have codes from 0 to 2047, got 2048 to 2048"),
        ({"start": Start((0,) * 63)}, "start must be a picture or 64 codes (whole numbers), got (0, "),
        ({"start": [0] * 64, "keep": 9}, "keep must be a number of rows from 0 to 8 or 8 x 8 booleans, got 9"),
        ({"keep": 2}, "keep must come with a start, which is a picture or codes, got 2"),
        ({"strength": 0.5}, "strength must come with a start, which is a picture or codes, got 0.5"),
        ({"start": [0] * 64, "strength": 2}, "strength must be a number from 0 to 1, got 2"),
        ({"start": [0] * 64, "strength": 0.5, "keep": 1}, "keep must be left out where strength is given, got 1"),
        ({"seamless": "z"}, "seamless must be x, y or both, or empty for neither, got 'z'"),
        ({"show": 3}, "show must be a whole number from 1 to 2, got 3"),
        ({"seconds": 0}, "seconds must be a number > 0, got 0"),
        ({"negative_prompt": None}, "negative_prompt must be a text, got None"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_waits(emoji: "Pipeline", settings: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match="must") as refused:
        emoji.stream(**CATS, **settings)
    assert str(refused.value).startswith(sentence)


# Variations


def test_a_code_that_is_not_given_up_is_kept_while_it_fits(emoji: "Pipeline", cats: Gallery):
    """Fits: no less than a hundredth as likely as in its own picture, after what is drawn before it."""

    def likelihoods(codes: np.ndarray) -> np.ndarray:
        return emoji.scheduler.likelihoods(emoji.tokenizer.encode(cats.prompt), codes)

    misfits, first = 0, cats[0].codes
    for strength in (0.25, 0.75):
        varied = cats[0].vary(strength, seed=1, num_candidates=4)
        assert varied.prompt == cats.prompt
        for candidate in varied:
            given, _ = varied.params.start.given(1, candidate.index)
            for place in np.flatnonzero(given != FREE):
                instead = np.append(candidate.codes[:place], first[place:])
                lost = (likelihoods(first) - likelihoods(instead))[place]
                if abs(lost - math.log(100)) > 0.1:
                    assert (candidate.codes[place] == first[place]) or lost > math.log(100)
                    misfits += lost > math.log(100)
    assert misfits > 20, "where something else is drawn, what follows from it is, too"


def test_every_candidate_gives_up_other_codes(cats: Gallery):
    start = cats[0].vary(0.3, seed=1, num_candidates=1).params.start
    up = np.array([start.given(seed, candidate)[0] == FREE for seed in (1, 2) for candidate in range(50)])
    assert len(np.unique(up, axis=0)) == 100
    assert abs(up.mean() - 0.3) < 0.02


def test_the_ends_of_strength_are_the_candidate_itself_and_a_drawing_without_it(emoji: "Pipeline", cats: Gallery):
    (same,) = cats[1].vary(0, num_candidates=1)
    assert same.image.tobytes() == cats[1].image.tobytes()
    again = cats[1].vary(1, seed=7)
    assert again.params == cats.params
    np.testing.assert_array_equal(codes_of(again), codes_of(cats))


def test_a_candidate_of_a_file_is_drawn_again_and_varied_alike(emoji: "Pipeline", cats: Gallery, tmp_path: Path):
    path = cats.save(tmp_path)[1]
    found = emoji.redraw(path)
    assert (found.index, found.score, found.params) == (cats[1].index, cats[1].score, cats[1].params)
    for one, other in zip(found.vary(0.3, seed=2), cats[1].vary(0.3, seed=2), strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)


def test_a_picture_of_somebody_else_cannot_be_drawn_again(emoji: "Pipeline", cats: Gallery, tmp_path: Path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"^picture must be a PNG that says how it was drawn, got '.*a\.png'$"):
        emoji.redraw(tmp_path / "a.png")
    dataclasses.replace(cats[0], model="mini").save_png(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"^picture must be drawn by the model emoji, got one by mini$"):
        emoji.redraw(tmp_path / "b.png")


# Tiling


def seam(picture: Image.Image, axis: int) -> float:
    """The mean difference across the seam."""
    values = np.moveaxis(np.asarray(picture, float), axis, 0)
    return float(np.abs(values[0] - values[-1]).mean())


def test_a_seamless_picture_has_the_same_codes_and_no_seam_along_its_axes(emoji: "Pipeline", cats: Gallery):
    for seamless, axes in (("x", {1}), ("y", {0}), (True, {0, 1})):
        gallery = emoji.generate(**CATS, seamless=seamless)
        np.testing.assert_array_equal(codes_of(gallery), codes_of(cats))
        for candidate, plain in zip(by_index(gallery), by_index(cats), strict=True):
            assert candidate.image.size == (64, 64)
            for axis in axes:
                assert seam(candidate.image, axis) <= seam(plain.image, axis) / 2


def test_beyond_the_border_the_picture_is_painted_as_it_goes_on(emoji: "Pipeline"):
    """A picture whose codes are shifted is the same picture, shifted: there is nothing special about its border."""
    codes = emoji.generate(CATS["prompt"], num_candidates=1, seed=8)[0].codes.reshape(8, 8)
    first, shifted = (
        np.asarray(emoji.generate("a cat", start=grid, keep=8, num_candidates=1, seamless="both")[0].image, int)
        for grid in (codes, np.roll(codes, (3, 2), axis=(0, 1)))
    )
    assert np.abs(np.roll(first, (24, 16), axis=(0, 1)) - shifted).mean() < 1


# The best of more


def test_show_keeps_the_best_and_changes_none(emoji: "Pipeline", tmp_path: Path):
    asked = {"prompt": "two rockets", "num_candidates": 6, "seed": 3}
    everything, best = emoji.generate(**asked), emoji.generate(**asked, show=2)
    assert [c.index for c in best] == [c.index for c in everything[:2]]
    for one, other in zip(best.save(tmp_path / "best")[:2], everything.save(tmp_path / "all"), strict=False):
        assert one.read_bytes() == other.read_bytes()


def test_after_the_time_what_is_whole_is_shown_and_it_is_said(emoji: "Pipeline", monkeypatch: pytest.MonkeyPatch):
    """More candidates than slots: the last are not begun before the first are whole."""
    engine = emoji.scheduler.engines[0]
    monkeypatch.setattr(engine, "slots", 9)
    decode = engine.decode
    monkeypatch.setattr(engine, "decode", lambda: time.sleep(0.02) or decode())
    asked = {"prompt": "two rockets", "num_candidates": 16, "seed": 3}
    gallery = emoji.generate(**asked, seconds=0.01)
    assert [c.index for c in by_index(gallery)] == list(range(9))
    assert list(gallery.notes) == ["9 of 16 candidates were whole after 0.01 s"]
    monkeypatch.undo()
    np.testing.assert_array_equal(codes_of(gallery), codes_of(emoji.generate(**asked))[:9])
    enough = emoji.generate(**asked, seconds=600)
    assert (len(enough), list(enough.notes)) == (16, [])


# Alike for everybody


def test_every_png_draws_itself_again(emoji: "Pipeline", cats: Gallery, tmp_path: Path):
    settings: list[dict[str, Any]] = [
        {"negative_prompt": "a white background"},
        {"start": cats[0], "keep": LEFT, "negative_prompt": "blue"},
        {"start": cats[0].image, "show": 1, "seconds": 60},
        {"start": cats[0], "strength": 0.3, "seamless": True},
    ]
    for number, more in enumerate(settings):
        path = emoji.generate(**CATS, **more).save(tmp_path / str(number))[0]
        candidate = again(emoji, path)
        candidate.save_png(tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_the_file_of_a_plain_drawing_says_what_it_always_said(cats: Gallery):
    assert list(json.loads(cats[0].metadata()["settings"])) == list(FIRST)


MIXED: list[dict[str, Any]] = [
    {"prompt": "a cat left of a pizza", "num_candidates": 4},
    {"prompt": "a cat left of a pizza", "num_candidates": 4, "negative_prompt": "a white background"},
    {"prompt": "a dog", "num_candidates": 5, "start": np.arange(64), "keep": 3},
    {"prompt": "a dog", "num_candidates": 3, "start": np.arange(64), "keep": LEFT, "condition_scale": 1.0},
    {"prompt": "three stars", "num_candidates": 9, "show": 2},
    {
        "prompt": "three stars",
        "num_candidates": 2,
        "start": Image.new("RGB", (80, 64), "pink"),
        "keep": 1,
        "seamless": "x",
    },
    {"prompt": "two rockets", "num_candidates": 3, "start": np.arange(64), "strength": 0.4, "seamless": "both"},
]


def test_in_a_crowd_of_all_kinds_everybody_gets_what_they_get_alone(emoji: "Pipeline"):
    alone = [emoji.generate(**asked, seed=i) for i, asked in enumerate(MIXED)]
    with ThreadPoolExecutor(2 * len(MIXED)) as pool:
        crowd = list(
            pool.map(lambda i: emoji.generate(**MIXED[i % len(MIXED)], seed=i % len(MIXED)), range(2 * len(MIXED)))
        )
    for i, gallery in enumerate(crowd):
        expected = alone[i % len(MIXED)]
        assert [(c.index, c.score, c.params) for c in gallery] == [(c.index, c.score, c.params) for c in expected]
        for one, other in zip(gallery, expected, strict=True):
            np.testing.assert_array_equal(one.codes, other.codes)
            assert one.image.tobytes() == other.image.tobytes()


def test_changing_these_settings_compiles_nothing(emoji: "Pipeline"):
    engine = emoji.scheduler.engines[0]
    programs = (engine._prefill, engine._insert, engine._decode_row, engine._rng)
    emoji.generate(**MIXED[0])
    emoji.generate(**MIXED[0], condition_scale=1)
    before = [program._cache_size() for program in programs]
    for asked in MIXED:
        emoji.generate(**asked)
    assert [program._cache_size() for program in programs] == before


@pytest.fixture
def nothing_left(emoji: "Pipeline") -> Iterator[None]:
    yield
    deadline = time.monotonic() + 60
    while emoji.scheduler.slots_in_use or emoji.scheduler.waiting:
        assert time.monotonic() < deadline


def test_a_completion_is_streamed_and_may_be_stopped(emoji: "Pipeline", nothing_left: None):
    events = emoji.stream("a dog", start=Image.new("RGB", (64, 64), "pink"), keep=4, num_candidates=9, seed=1)
    preview = next(event for event in events if isinstance(event, Preview) and event.row)
    assert len(preview.images) == 9
    events.close()
