"""From a prompt to a ranked gallery on the embedded model: repeatable, streamed, stopped, shared, and bad input."""

import math
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
import tokenizers
from patience import eventually

import dalle_mini
import vqgan
from dalle_mini import model_names
from dalle_mini.gallery import Gallery, Preview
from dalle_mini.model_names import EMBEDDED
from dalle_mini.serving.previews import UNDRAWN
from dalle_mini.serving.refusals import QueueFullError
from dalle_mini.serving.request import Waiting
from dalle_mini.training.emoji.judge import judge
from dalle_mini.training.emoji.scene import Scene
from dalle_mini.training.emoji.world import CENTRES, _place
from vqgan.files import CheckpointError

if TYPE_CHECKING:
    from dalle_mini import Candidate, Pipeline
    from dalle_mini.training.emoji.world import World

NAN = math.nan
BAD_SETTINGS = [
    ("num_candidates", 0, "a whole number from 1 to 16"),
    ("num_candidates", 17, "a whole number from 1 to 16"),
    ("num_candidates", 2.5, "a whole number from 1 to 16"),
    ("num_candidates", NAN, "a whole number from 1 to 16"),
    ("num_candidates", "9", "a whole number from 1 to 16"),
    ("num_candidates", True, "a whole number from 1 to 16"),
    ("num_candidates", None, "a whole number from 1 to 16"),
    ("seed", -1, "a whole number from 0 to 4294967295"),
    ("seed", 2**32, "a whole number from 0 to 4294967295"),
    ("seed", 0.5, "a whole number from 0 to 4294967295"),
    ("condition_scale", -1, "a number from 0 to 100"),
    ("condition_scale", math.inf, "a number from 0 to 100"),
    ("temperature", 0, "a number > 0 and <= 10"),
    ("temperature", NAN, "a number > 0 and <= 10"),
    ("top_k", -1, "a whole number >= 0"),
    ("top_p", 0, "a number > 0 and <= 1"),
    ("top_p", 1.5, "a number > 0 and <= 1"),
]
ODD_PROMPTS = {
    "control": "a cat\x00\x07\x1b[31m\r\n",
    "emoji": "🐱⬅️🍕",
    "right-to-left": "قطة بجانب بيتزا",
    "lone surrogate": "a \ud83d cat",
    "surrogate pair": "\ud83d\udc31",
    "markup": "</s><pad><mask> {} %s ../../x",
    "one character": "x",
}


def by_index(gallery: Gallery) -> "list[Candidate]":
    return sorted(gallery, key=lambda candidate: candidate.index)


def codes_of(gallery: Gallery) -> np.ndarray:
    return np.stack([candidate.codes for candidate in by_index(gallery)])


@pytest.fixture(scope="module")
def cats(emoji: "Pipeline") -> Gallery:
    """One gallery that many tests look at or draw again."""
    return emoji.generate("a cat left of a pizza", num_candidates=4, seed=7)


@pytest.fixture
def still_works(emoji: "Pipeline", cats: Gallery) -> Iterator[None]:
    """After the test, whatever happened in it, the same request still gives the same codes."""
    yield
    assert eventually(lambda: emoji.scheduler.slots_in_use == emoji.scheduler.waiting == 0)
    again = emoji.generate("a cat left of a pizza", num_candidates=4, seed=7)
    np.testing.assert_array_equal(codes_of(again), codes_of(cats))


# What a gallery is


def test_best_score_comes_first(cats: Gallery):
    scores = [candidate.score for candidate in cats]
    assert scores == sorted(scores, reverse=True)
    assert all(-1 <= score <= 1 for score in scores)
    assert sorted(candidate.index for candidate in cats) == [0, 1, 2, 3]


def test_a_score_is_that_of_its_own_picture(emoji: "Pipeline", cats: Gallery):
    for candidate in cats:
        (score,) = emoji.reranker.score(candidate.prompt, np.asarray(candidate.image)[None])
        assert score == pytest.approx(candidate.score, abs=1e-5)


def test_pictures_are_what_the_vqgan_paints_of_the_codes(emoji: "Pipeline", cats: Gallery):
    for candidate in cats:
        np.testing.assert_array_equal(np.asarray(candidate.image), emoji.vqgan.decode(candidate.codes[None])[0])


def test_same_request_twice_gives_the_same_png_bytes(emoji: "Pipeline", cats: Gallery, tmp_path: Path):
    again = emoji.generate("a cat left of a pizza", num_candidates=4, seed=7)
    first, second = cats.save(tmp_path / "first"), again.save(tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_candidate_3_of_9_is_candidate_3_of_4(emoji: "Pipeline", cats: Gallery):
    nine = emoji.generate("a cat left of a pizza", num_candidates=9, seed=7)
    assert len(nine) == 9
    np.testing.assert_array_equal(codes_of(nine)[:4], codes_of(cats))
    for ours, theirs in zip(by_index(nine), by_index(cats), strict=False):
        assert ours.image.tobytes() == theirs.image.tobytes()


def test_candidates_are_different_pictures(emoji: "Pipeline"):
    """Where the model has a choice: it is sure of a cat and a pizza."""
    gallery = emoji.generate("a cat left of a pizza", num_candidates=4, seed=7, temperature=3.0)
    assert len({candidate.image.tobytes() for candidate in gallery}) == 4


def test_a_seed_that_was_drawn_is_reported_and_recreates_the_gallery(emoji: "Pipeline"):
    first, other = (emoji.generate("a dog", num_candidates=1) for _ in range(2))
    assert first.params.seed != other.params.seed
    again = emoji.generate("a dog", num_candidates=1, seed=first.params.seed)
    np.testing.assert_array_equal(codes_of(again), codes_of(first))


def test_settings_left_out_are_the_models_own(emoji: "Pipeline", cats: Gallery):
    assert cats.params.condition_scale == emoji.defaults.condition_scale
    assert cats.params.top_k == emoji.defaults.top_k
    assert emoji.defaults.num_candidates == 9


def test_without_reranking_candidates_have_no_scores_and_stay_in_order(cats: Gallery):
    with dalle_mini.load("emoji", rerank=False) as pipeline:
        gallery = pipeline.generate("a cat left of a pizza", num_candidates=4, seed=7)
    assert [candidate.score for candidate in gallery] == [None] * 4
    np.testing.assert_array_equal([candidate.codes for candidate in gallery], codes_of(cats))


def test_the_embedded_model_draws_what_is_asked_for(emoji: "Pipeline", world: "World"):
    """Judged by templates, not by CLIP: the best of nine for twelve captions that training never saw."""
    rng = np.random.default_rng(0)
    scenes = [world.draw_held(rng) for _ in range(12)]
    best = [np.asarray(emoji.generate(scene.caption, seed=i)[0].image) for i, scene in enumerate(scenes)]
    right = [judge(world, scene, picture).objects for scene, picture in zip(scenes, best, strict=True)]
    assert sum(right) >= 10, [scene.caption for scene, ok in zip(scenes, right, strict=True) if not ok]


def test_a_cat_is_left_of_a_pizza_or_right_as_the_prompt_says(emoji: "Pipeline", world: "World"):
    for prompt, relation in (("a cat left of a pizza", "left"), ("a cat right of a pizza", "right")):
        for candidate in emoji.generate(prompt, num_candidates=4, seed=7):
            scene = Scene(
                kind="pair",
                sprites=_place(["cat", "pizza"], CENTRES[relation]),
                background="white",
                caption=prompt,
                names_background=False,
            )
            assert judge(world, scene, np.asarray(candidate.image)).objects


# Streaming


def test_every_row_but_the_last_has_a_preview_then_comes_the_gallery(
    emoji: "Pipeline", cats: Gallery, no_heartbeats: None
):
    *previews, gallery = emoji.stream("a cat left of a pizza", num_candidates=4, seed=7)
    assert isinstance(gallery, Gallery)
    np.testing.assert_array_equal(codes_of(gallery), codes_of(cats))
    rows = emoji.config.side
    assert all(isinstance(preview, Preview) for preview in previews)
    assert [(preview.row, preview.rows) for preview in previews] == [(row, rows) for row in range(1, rows)]
    for preview in previews:
        pixels = np.stack([np.asarray(image) for image in preview.images])
        assert pixels.shape == (4, emoji.resolution, emoji.resolution, 3)
        assert (pixels[:, emoji.resolution * preview.row // rows :] == UNDRAWN).all()
    # A preview repeats an earlier one where painting is slow.
    assert (np.asarray(previews[-1].images[0])[: emoji.resolution // rows] != UNDRAWN).any()


def test_rows_go_on_and_slots_become_free_while_nothing_is_painted(
    emoji: "Pipeline", still_works: None, monkeypatch: pytest.MonkeyPatch
):
    """As with large pictures, or in a crowd whose finished pictures are painted first."""
    painter = threading.Event()
    decode = emoji.vqgan.decode
    monkeypatch.setattr(emoji.vqgan, "decode", lambda codes: painter.wait(60) and decode(codes))
    try:
        events, rows = emoji.stream("two rockets", num_candidates=9, seed=1), set()
        while len(rows) < 3:
            event = next(events)
            assert isinstance(event, Preview | Waiting), "what is not painted is not ranked"
            rows.add(getattr(event, "row", 0))
        events.close()
        assert eventually(lambda: emoji.scheduler.slots_in_use == emoji.scheduler.waiting == 0)
    finally:
        painter.set()


def test_whoever_leaves_while_painting_takes_long_is_noticed_and_not_painted_for(
    emoji: "Pipeline", still_works: None, monkeypatch: pytest.MonkeyPatch
):
    """As in a crowd on a slow machine: the painter is at work for somebody else."""
    monkeypatch.setattr("dalle_mini.pipeline.HEARTBEAT", 0.1)
    begun, painter, painted = threading.Event(), threading.Event(), []
    decode, rows = emoji.vqgan.decode, emoji.config.side

    def paint(codes: np.ndarray) -> np.ndarray:
        begun.set()
        assert painter.wait(60)
        painted.append(len(codes))
        return decode(codes)

    monkeypatch.setattr(emoji.vqgan, "decode", paint)
    busy = emoji._paint.submit([np.zeros(emoji.config.image_length, np.int32)])
    try:
        assert begun.wait(60)
        events = emoji.stream("two rockets", previews=False, num_candidates=9, seed=1)
        drawn = [next(event for event in events if getattr(event, "row", 0) == rows) for _ in range(3)]
        assert [(each.row, each.rows) for each in drawn] == [(rows, rows)] * 3
        events.close()
    finally:
        painter.set()
    assert busy[0].result(60).shape == (emoji.resolution, emoji.resolution, 3)
    assert sum(painted) == 1


def test_what_waits_to_be_painted_counts_where_places_are_bounded(
    emoji: "Pipeline", still_works: None, monkeypatch: pytest.MonkeyPatch
):
    """Slots are free again before anything is painted, and without a bound more and more would be drawn."""
    monkeypatch.setattr("dalle_mini.pipeline.HEARTBEAT", 0.1)
    monkeypatch.setattr(type(emoji.scheduler), "capacity", 1)
    painter, decode, rows = threading.Event(), emoji.vqgan.decode, emoji.config.side
    monkeypatch.setattr(emoji.vqgan, "decode", lambda codes: painter.wait(60) and decode(codes))
    events = emoji.stream("two rockets", previews=False, num_candidates=1, seed=1)
    try:
        assert next(event for event in events if getattr(event, "row", 0) == rows)
        with pytest.raises(QueueFullError, match=r"^1 requests are waiting already: please try again later$"):
            emoji.generate("two rockets")
    finally:
        events.close()
        painter.set()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_stream_closed_early_frees_the_engine(emoji: "Pipeline", still_works: None, rows: int):
    events = emoji.stream("two rockets", num_candidates=9, seed=1)
    for _ in range(rows):
        next(events)
    events.close()
    assert eventually(lambda: emoji.scheduler.slots_in_use == emoji.scheduler.waiting == 0)


def test_a_stream_may_be_closed_by_another_thread(emoji: "Pipeline", still_works: None):
    events = emoji.stream("two rockets", num_candidates=2, seed=1)
    next(events)
    thread = threading.Thread(target=events.close)
    thread.start()
    thread.join()


@pytest.mark.parametrize("where", ["prefill", "insert", "paint", "score"])
def test_a_failure_is_not_the_next_requests(
    emoji: "Pipeline", still_works: None, monkeypatch: pytest.MonkeyPatch, where: str
):
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("no room")

    owners = {"paint": (emoji.vqgan, "decode"), "score": (emoji.reranker, "score")}
    monkeypatch.setattr(*owners.get(where, (emoji.scheduler.engines[0], where)), fail)
    with pytest.raises(MemoryError, match="no room"):
        emoji.generate("a house", num_candidates=3, seed=1)
    monkeypatch.undo()


def test_a_device_failure_midway_is_made_up_for(emoji: "Pipeline", monkeypatch: pytest.MonkeyPatch, cats: Gallery):
    engine, calls = emoji.scheduler.engines[0], []
    decode = engine.decode

    def fail_the_second_time() -> None:
        calls.append(0)
        if len(calls) == 2:
            raise MemoryError("no room")
        decode()

    monkeypatch.setattr(engine, "decode", fail_the_second_time)
    again = emoji.generate("a cat left of a pizza", num_candidates=4, seed=7)
    np.testing.assert_array_equal(codes_of(again), codes_of(cats))


def test_threads_get_each_their_own_gallery(emoji: "Pipeline", cats: Gallery):
    requests = [("a cat left of a pizza", 4, 7), ("a dog", 1, 0), ("three stars", 2, 5), ("a dog", 2, 1)]

    def generate(request: tuple[str, int, int]) -> Gallery:
        prompt, number, seed = request
        return emoji.generate(prompt, num_candidates=number, seed=seed)

    alone = [cats, *map(generate, requests[1:])]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(generate, requests))
    for ours, expected, (prompt, number, seed) in zip(together, alone, requests, strict=True):
        assert (ours.prompt, len(ours), ours.params.seed) == (prompt, number, seed)
        np.testing.assert_array_equal(codes_of(ours), codes_of(expected))


# Bad and odd input


@pytest.mark.parametrize(("name", "value", "rule"), BAD_SETTINGS)
def test_bad_setting_is_named_with_rule_and_value(emoji: "Pipeline", name: str, value: Any, rule: str):
    for ask in (emoji.generate, emoji.stream):  # `stream` at once, not when the first event is asked for
        with pytest.raises(ValueError, match="must be") as error:
            ask("a cat", **{name: value})
        assert str(error.value) == f"{name} must be {rule}, got {value!r}"


@pytest.mark.parametrize("prompt", ["", " ", "\n\t ", "\u200b\u00a0", "\x00\x1f", None, 7])
def test_a_prompt_with_nothing_in_it_is_named(emoji: "Pipeline", prompt: Any):
    for ask in (emoji.generate, emoji.stream):
        with pytest.raises(ValueError, match="must not be empty") as error:
            ask(prompt)
        assert str(error.value) == f"prompt must not be empty, got {prompt!r}"


def test_bad_input_is_forgotten(emoji: "Pipeline", still_works: None):
    for wrong in ({"num_candidates": 17}, {"temperature": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be"):
            emoji.generate("a cat", **wrong)


@pytest.mark.parametrize("prompt", ODD_PROMPTS.values(), ids=ODD_PROMPTS.keys())
def test_odd_prompts_draw_pictures(emoji: "Pipeline", prompt: str, tmp_path: Path):
    (candidate,) = emoji.generate(prompt, num_candidates=1, seed=0)
    assert candidate.codes.shape == (emoji.config.image_length,)
    assert math.isfinite(candidate.score)
    candidate.save_png(tmp_path / "a.png")


def test_a_prompt_of_10000_characters_is_cut_and_said_so(emoji: "Pipeline"):
    prompt = "two cats, " * 1000
    gallery = emoji.generate(prompt, num_candidates=1, seed=0)
    length = emoji.config.max_text_length
    assert gallery.notes == [f"the prompt is longer than the model reads and was cut to {length} tokens"]
    assert gallery.prompt == prompt
    beginning = emoji.generate(prompt[:500], num_candidates=1, seed=0)
    np.testing.assert_array_equal(codes_of(gallery), codes_of(beginning))


def test_what_no_model_looks_at_is_not_kept_in_every_picture(emoji: "Pipeline", monkeypatch: pytest.MonkeyPatch):
    ranked: list[str] = []
    score = emoji.reranker.score
    monkeypatch.setattr(emoji.reranker, "score", lambda prompts, pixels: ranked.extend(prompts) or score("", pixels))
    gallery = emoji.generate("a" + " " * 10_000 + "cat", num_candidates=1, seed=0)
    assert gallery.notes
    assert {gallery.prompt, *ranked} == {"a" + " " * 9_999}


def test_words_that_the_model_never_saw_are_told_and_change_no_picture(
    emoji: "Pipeline", monkeypatch: pytest.MonkeyPatch
):
    gallery = emoji.generate("a limousine on a lawnmower", num_candidates=1, seed=0)
    assert emoji.vocabulary.unknown("a limousine on a lawnmower") == ["limousine", "lawnmower"]
    assert gallery.notes == emoji.vocabulary.notes("a limousine on a lawnmower")
    monkeypatch.setattr(emoji, "vocabulary", None)  # as the published models
    silent = emoji.generate("a limousine on a lawnmower", num_candidates=1, seed=0)
    assert silent.notes == []
    np.testing.assert_array_equal(codes_of(gallery), codes_of(silent))


def test_a_prompt_that_fits_needs_no_note(cats: Gallery):
    assert list(cats.notes) == []


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model, to be spoilt."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "mine"))


def test_a_model_folder_draws_what_the_preset_draws_under_its_own_name(folder: Path, cats: Gallery):
    (folder / "README.md").write_bytes("Kärtchen".encode("latin-1"))
    with dalle_mini.load(folder, rerank=False) as pipeline:
        gallery = pipeline.generate("a cat left of a pizza", num_candidates=4, seed=7)
    np.testing.assert_array_equal(codes_of(gallery), codes_of(cats))
    assert (gallery.model, cats.model) == ("mine", "emoji")
    assert pipeline.model_card == "K\N{REPLACEMENT CHARACTER}rtchen"


def test_the_folder_one_is_in_has_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    assert model_names.find(".").name == "mine"


@pytest.mark.parametrize("sizes", [{"n_embed": 512}, {"resolution": 32}])
def test_a_vqgan_that_does_not_fit_is_refused_by_name(folder: Path, sizes: dict[str, int]):
    whole = vqgan.load(folder / "vqgan")
    config = type(whole.config)(**{**vars(whole.config), **sizes})
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float16), vqgan.model.param_shapes(config))
    vqgan.save(folder / "vqgan", config, params)
    with pytest.raises(CheckpointError) as error:
        dalle_mini.load(folder, rerank=False)
    assert str(error.value) == (
        f"{folder / 'vqgan'} must have {whole.config.n_embed} codes and a grid of side {whole.config.side} for "
        f"{folder / 'dalle'}, got {config.n_embed} and {config.side}"
    )


def test_a_tokenizer_that_knows_more_tokens_than_the_model_is_refused_by_name(folder: Path):
    file = str(folder / "dalle" / "tokenizer.json")
    bigger = tokenizers.Tokenizer.from_file(file)
    bigger.add_tokens(["onemoreword"])
    bigger.save(file)
    with pytest.raises(CheckpointError, match="tokenizer"):
        dalle_mini.load(folder, rerank=False)


@pytest.mark.parametrize("missing", ["dalle/config.json", "dalle/model.safetensors", "vqgan/config.json", "clip"])
def test_a_folder_that_lacks_something_says_what(folder: Path, missing: str):
    path = folder / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(CheckpointError) as error:
        dalle_mini.load(folder, rerank=missing == "clip")
    assert str(path) in str(error.value) or path.name in str(error.value)


def test_an_unknown_model_is_named():
    with pytest.raises(CheckpointError, match=r"^nobody/nothing is neither a folder nor available from the hub: "):
        dalle_mini.load("nobody/nothing")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"slots": 8}, "slots must be a whole number >= 9, got 8"),
        ({"max_waiting": 0}, "max_waiting must be a whole number >= 1, got 0"),
    ],
)
def test_the_size_of_the_line_is_refused_before_a_model_is_looked_for(settings: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=rf"^{sentence}$"):
        dalle_mini.load("nobody/nothing", **settings)
