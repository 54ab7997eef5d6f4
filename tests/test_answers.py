"""Files of answers: who may still look at theirs, and what is deleted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_mini.config import SamplingParams
from dalle_mini.gallery import Candidate, Gallery, read_metadata
from dalle_mini.web import answers
from dalle_mini.web.answers import Answers


def gallery(prompt: str = "a cat", pictures: int = 2) -> Gallery:
    candidates = [
        Candidate(
            image=Image.new("RGB", (8, 8)),
            codes=np.zeros(1, np.int32),
            index=i,
            score=float(i),
            prompt=prompt,
            params=SamplingParams(seed=7),
            model="emoji",
        )
        for i in range(pictures)
    ]
    return Gallery(candidates=candidates, seconds=1.0)


def files(kept: Answers) -> set[Path]:
    return set(kept.folder.glob("*/*.png"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(answers.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def kept(tmp_path: Path) -> Answers:
    return Answers(tmp_path)


def test_answer_is_saved_best_first_under_a_name_that_tells_prompt_seed_and_rank(kept: Answers) -> None:
    first, second = kept.save(gallery("a cat / a dog"), "tab")
    assert (first.name, second.name) == ("a-cat-a-dog-seed7-01.png", "a-cat-a-dog-seed7-02.png")
    assert (read_metadata(first)["candidate"], read_metadata(second)["candidate"]) == ("1", "0")


def test_newest_answer_of_a_session_stays_and_the_one_before_goes_when_it_has_been_fetched(
    kept: Answers, clock: list[float]
) -> None:
    old, new = (set(kept.save(gallery(), "tab")) for _ in range(2))
    assert files(kept) == old | new
    clock[0] += answers.FETCHING + 1
    other = set(kept.save(gallery(), "another tab"))
    assert files(kept) == new | other
    assert all(read_metadata(path)["prompt"] == "a cat" for path in new | other)


def test_answers_of_sessions_that_are_gone_do_not_pile_up(
    kept: Answers, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "SESSIONS", 3)
    for i in range(10):
        clock[0] += answers.FETCHING + 1
        kept.save(gallery(pictures=1), None if i % 2 else f"tab {i}")
    assert len(files(kept)) == 3 + 1, "three sessions, and the one that was displaced last"


def test_file_of_an_equal_answer_is_another_one(kept: Answers) -> None:
    assert not set(kept.save(gallery(), "tab")) & set(kept.save(gallery(), "another tab"))
