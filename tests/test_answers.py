"""Files of answers: who may still look at theirs, and what is deleted."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_mini.gallery import Candidate, Gallery, read_metadata
from dalle_mini.sampling_params import SamplingParams
from dalle_mini.web import answers
from dalle_mini.web.answers import Answers, StorageError


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


# The disk


def test_a_folder_that_somebody_emptied_is_made_again_for_its_owner_alone(tmp_path: Path) -> None:
    kept = Answers(tmp_path / "temporary" / "answers")
    kept.check()
    for empty in (kept.folder, kept.folder.parent):
        shutil.rmtree(empty)
        assert all(path.is_file() for path in kept.save(gallery(), "tab"))
        assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700


@pytest.fixture
def full(kept: Answers, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A disk without room while the list has something in it."""
    is_full: list[bool] = []
    write, save = Path.write_bytes, Image.Image.save

    def fails(*_: object) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", lambda *rest: fails() or write(*rest))
    monkeypatch.setattr(Image.Image, "save", lambda *rest, **more: fails() or save(*rest, **more))
    return is_full


def test_a_full_disk_is_told_in_a_sentence_leaves_nothing_and_is_forgotten_when_there_is_room(
    kept: Answers, full: list[bool]
) -> None:
    full.append(True)
    for ask in (kept.check, lambda: kept.save(gallery(), "tab")):
        with pytest.raises(
            StorageError, match=r"folder for pictures \(TMPDIR\) must have room .*No space left on device"
        ):
            ask()
        assert not kept.works
        assert list(kept.folder.iterdir()) == []
    full.clear()
    kept.check()
    assert kept.works
    assert kept.save(gallery(), "tab")


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"must have room and be writable, got .*/file/answers"):
        Answers(tmp_path / "file" / "answers").check()


def test_room_is_asked_for_as_much_as_the_largest_answer_had(kept: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LEAST", 1)
    small, asked = Answers(kept.folder), []
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: asked.append(len(data)))
    paths = small.save(gallery(), "tab")
    small.check()
    assert asked == [sum(path.stat().st_size for path in paths)]


def test_a_start_deletes_what_a_killed_process_left_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "other").mkdir()
    dead = tmp_path / f"{answers.PREFIX}dead"
    dead.mkdir()
    (dead / "picture.png").touch()
    with answers.kept() as first, answers.kept() as second:
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"other", first.folder.name, second.folder.name}
        assert stat.S_IMODE(first.folder.stat().st_mode) == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
