"""A model says which words of a prompt it was never trained on, and which of its own come near."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dalle_mini import model_names, vocabulary
from dalle_mini.training.emoji.world import World
from dalle_mini.vocabulary import Vocabulary
from vqgan.files import CheckpointError

CAPTIONS = ["a cat on a blue background", "two kittens", "an ice cream left of a car", "a house"]
THINGS = {"cat": ["kitten", "cats", "kittens"], "ice cream": ["ice creams"], "car": ["cars"], "house": ["houses"]}


@pytest.fixture(scope="module")
def small() -> Vocabulary:
    return Vocabulary.of(CAPTIONS, THINGS)


@pytest.fixture(scope="module")
def embedded() -> Vocabulary:
    found = Vocabulary.load(model_names.EMBEDDED / "dalle")
    assert found is not None
    return found


def test_every_word_of_the_captions_is_known(small: Vocabulary):
    assert not [caption for caption in CAPTIONS if small.unknown(caption)]


def test_other_words_are_unknown_in_their_order_and_once(small: Vocabulary):
    assert small.unknown("a zebra left of a red cat, a zebra") == ["zebra", "red"]


@pytest.mark.parametrize("prompt", ["CATS!", "a cat's house", "“Kitten”", "a  car,car", "#house", "two-cats", "blues"])
def test_case_plurals_possessives_and_punctuation_do_not_matter(small: Vocabulary, prompt: str):
    assert small.unknown(prompt) == []


@pytest.mark.parametrize(("prompt", "unknown"), [("🦓 on blue", ["zebra"]), ("🐈", []), ("кот", ["kot"]), ("?!", [])])
def test_emoji_and_other_scripts_are_read_as_the_tokenizer_reads_them(
    small: Vocabulary, prompt: str, unknown: list[str]
):
    assert small.unknown(prompt) == unknown


def test_a_name_of_two_words_is_known_as_a_whole(small: Vocabulary):
    assert small.unknown("two ice creams") == []
    assert small.unknown("a cream cat on ice") == ["cream", "ice"]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("taxi", "car"),
        ("taxis", "car"),
        ("tabby", None),
        ("puppy", None),
        ("icecream", "ice cream"),
        ("kitttens", "kittens"),
        ("horse", None),  # not a misspelled house
        ("ct", None),
    ],
)
def test_the_nearest_known_word_is_one_of_like_meaning_or_else_of_like_spelling(
    small: Vocabulary, word: str, near: str | None
):
    assert small.nearest(word) == near


def test_only_known_words_are_suggested(embedded: Vocabulary):
    related = [word for line in vocabulary.RELATED.read_text(encoding="utf-8").splitlines() for word in line.split()]
    near = [word for word in map(embedded.nearest, related) if word]
    assert len(near) > 100
    assert not [word for word in near if embedded.unknown(word)]


def test_the_sentence_names_what_is_unknown_and_what_is_known(small: Vocabulary):
    assert small.notes("a taxi and a zebra") == [
        "I have never seen: taxi (nearest: car), and, zebra. I know 4 things, such as cat, ice cream, car, house."
    ]
    assert small.notes("a cat") == []


def test_the_sentence_stays_short(embedded: Vocabulary):
    (note,) = embedded.notes(" ".join(f"q{number}" for number in range(3000)))
    assert "q4, 2,995 more. I know 300 things" in note
    assert len(note) < 200


def test_captions_without_named_things_give_their_words():
    known = Vocabulary.of(["a zebra grazes", "a zebra"])
    assert list(known.words) == ["a", "zebra", "grazes"]
    assert known.notes("a lion") == ["I have never seen: lion. I know 3 words."]


def test_the_rarest_words_of_very_many_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocabulary, "MOST", 2)
    assert list(Vocabulary.of(["a zebra grazes", "a zebra"]).words) == ["a", "zebra"]


def test_a_saved_list_is_read_again(small: Vocabulary, tmp_path: Path):
    small.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again is not None
    assert (again.things, again.words) == (small.things, small.words)


def test_a_model_without_a_list_has_none(tmp_path: Path):
    assert Vocabulary.load(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"things": {}, "words": [1]}', '{"things": {"cat": "s"}, "words": []}']
)
def test_a_damaged_list_is_named(tmp_path: Path, content: str):
    (tmp_path / vocabulary.FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"words\.json must"):
        Vocabulary.load(tmp_path)


def test_a_word_stands_in_one_line_of_the_table():
    lines = vocabulary.RELATED.read_text(encoding="utf-8").splitlines()
    often = Counter(word for line in lines for word in line.split())
    assert [word for word, times in often.items() if times > 1] == []


def test_the_embedded_model_knows_its_world_and_nothing_else(embedded: Vocabulary, all_objects: World):
    rng = np.random.default_rng(0)
    drawn = Vocabulary.of((all_objects.draw(rng).caption for _ in range(20_000)), all_objects.things())
    assert embedded.things == all_objects.things()
    assert set(embedded.words) == set(drawn.words)
    assert embedded.unknown("a red cat and a lawnmower on a turquoise background") == ["lawnmower", "turquoise"]
