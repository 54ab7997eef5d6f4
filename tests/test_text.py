"""The normaliser gives what the published models were trained on, and takes anything a visitor can paste."""

import json
import random
import time
import timeit
from pathlib import Path

import pytest

from dalle_mini.text import PERSONS, HashtagSplitter, normalize
from vqgan.files import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "text"


def pairs(name: str) -> list[tuple[str, str]]:
    content = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    return [(pair["input"], pair["output"]) for pair in content]


@pytest.fixture(scope="module")
def splitter() -> HashtagSplitter:
    return HashtagSplitter.load(GOLDEN / "enwiki-words-frequency.txt")


@pytest.mark.parametrize(("text", "expected"), pairs("text_normalizer.json"))
def test_text_equals_the_reference(text: str, expected: str, splitter: HashtagSplitter):
    assert normalize(text, splitter) == expected


@pytest.mark.parametrize(("joined", "expected"), pairs("hashtag.json"))
def test_hashtag_split_equals_the_reference(joined: str, expected: str, splitter: HashtagSplitter):
    assert splitter.split(joined) == expected


def test_the_cheapest_words_win_and_not_the_longest():
    words = ["the", "cat", "thec", "at"]  # ln 1 + ln 2 is less than ln 3 + ln 4
    assert HashtagSplitter(words).split("thecat") == "the cat"
    assert HashtagSplitter(words[::-1]).split("thecat") == "thec at"


def test_apostrophes_and_numbers_stay_together_in_hashtags():
    assert HashtagSplitter(["dog", "'s", "1", "2"]).split("dog's12'") == "dog's 12"


def test_hashtag_without_a_word_list_only_loses_its_mark():
    assert normalize("#happybirthday to you", None) == " happybirthday to you"


def test_a_person_is_the_same_in_every_call_and_varies_between_texts():
    texts = [f"<person> number {number}" for number in range(200)]
    first = [normalize(text, None) for text in texts]
    random.seed(0)
    state = random.getstate()
    assert [normalize(text, None) for text in texts] == first
    assert random.getstate() == state  # the program's own random numbers are left alone
    chosen = [text.split(" number")[0].strip() for text in first]
    assert set(chosen) <= set(PERSONS)
    assert 100 < chosen.count("a person") < 170  # 68 % of the weight


def test_a_person_is_pinned_so_that_old_seeds_keep_their_image():
    assert normalize("<person> on a horse", None) == " someone on a horse"


def test_each_person_is_chosen_on_its_own():
    texts = [normalize(f"<person> hugs <person> {number}", None) for number in range(50)]
    assert any(text.split(" hugs ")[0] not in text.split(" hugs ")[1] for text in texts)


def test_plain_words_skip_the_rules_and_lose_nothing(splitter: HashtagSplitter):
    rng = random.Random(0)
    words = ["a", "cat", "x1", "soooo", "ooo", "1111", "http", "httpd", "xtokxdotxtokx", "and", "person"]
    for _ in range(300):
        text = rng.choice([" ", "", "  "]).join(rng.choices(words, k=rng.randrange(1, 6)))
        assert normalize(text, splitter) == normalize(text.upper(), splitter)  # capitals take the long way


HOSTILE = {
    "control characters": "".join(map(chr, range(32))) + "\x7f\x9f",
    "nul": "a\0b",
    "lone surrogate": "<person> \ud83d",
    "reversed surrogates": "\udc31\ud83d",
    "escaped surrogate": "&#xd83d; &#0; &#1114112;",
    "right to left": "\u202eשלום עולם\u202c مرحبا",
    "emoji sequence": "👩‍👩‍👧‍👦🏴‍☠️👍🏽",
    "any character": "".join(map(chr, range(0x3000))),
    "highest character": "\U0010ffff",
    "combining": "a" + "\u0301" * 100,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_text_becomes_lower_case_ascii_after_one_space(text: str, splitter: HashtagSplitter):
    normalized = normalize(text, splitter)
    assert normalized.isascii()
    assert normalized == normalized.lower()
    assert normalized == " " + normalized.strip()


def test_surrogate_halves_of_an_emoji_are_put_together():
    assert normalize("\ud83d\udc31", None) == normalize("🐱", None) == " cat face"


SLOW_IF_QUADRATIC = [
    "<",
    "<a",
    "[",
    "[1] ",
    "'",
    " \n",
    ", ",
    "#",
    "<person>,",
    "&amp;",
    "http",
    "🐱",
    "щ",
    "Ã",
    "\0",
]


@pytest.mark.parametrize("unit", SLOW_IF_QUADRATIC)
def test_ten_thousand_characters_take_less_than_a_second(unit: str, splitter: HashtagSplitter):
    text = "#" + unit * (10_000 // len(unit))
    assert min(timeit.repeat(lambda: normalize(text, splitter), number=1, repeat=3, timer=time.process_time)) < 1


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_damaged_word_list_is_named(content: bytes, tmp_path: Path):
    path = tmp_path / "enwiki-words-frequency.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"enwiki-words-frequency\.txt is not a readable word list"):
        HashtagSplitter.load(path)
