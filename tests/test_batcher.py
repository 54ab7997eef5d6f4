"""What waits is done together, what is urgent first, and a fault is nobody else's."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from dalle_mini.serving.batcher import Batcher
from dalle_mini.serving.scheduler import ClosedError


class Halves:
    """Halves even numbers, and remembers what it was given together. The first call waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go, self.seen = threading.Event(), threading.Event(), []

    def __call__(self, items: list[int]) -> list[int]:
        self.seen.append(items)
        self.begun.set()
        self.go.wait(30)
        if odd := [item for item in items if item % 2]:
            raise ValueError(f"odd: {odd}")
        return [item // 2 for item in items]


@pytest.fixture
def halves() -> Halves:
    return Halves()


def ask(pool: ThreadPoolExecutor, batcher: Batcher[int, int], halves: Halves, *asked: tuple[list[int], bool]) -> list:
    """One call after another, all of which wait behind the first."""
    jobs: list[Future[list[int]]] = []
    for items, urgent in [([100], True), *asked]:
        before = batcher._jobs.qsize()
        jobs.append(pool.submit(batcher, items, urgent=urgent))
        if len(jobs) == 1:
            assert halves.begun.wait(30)
        else:
            while batcher._jobs.qsize() < before + len(items):
                pass
    halves.go.set()
    return jobs[1:]


def test_what_waits_is_done_together_and_everybody_gets_their_own(halves: Halves):
    batcher = Batcher(halves, most=4)
    with ThreadPoolExecutor(4) as pool:
        jobs = ask(pool, batcher, halves, ([2, 4], True), ([6], True), ([8, 10], True))
        assert [job.result(30) for job in jobs] == [[1, 2], [3], [4, 5]]
    assert halves.seen == [[100], [2, 4, 6, 8], [10]]
    batcher.close()


def test_urgent_items_go_first(halves: Halves):
    batcher = Batcher(halves, most=2)
    with ThreadPoolExecutor(4) as pool:
        jobs = ask(pool, batcher, halves, ([2, 4], False), ([6], True))
        assert [job.result(30) for job in jobs] == [[1, 2], [3]]
    assert halves.seen == [[100], [6, 2], [4]]
    batcher.close()


def test_an_item_that_fails_fails_alone(halves: Halves):
    batcher = Batcher(halves, most=8)
    with ThreadPoolExecutor(4) as pool:
        good, bad = ask(pool, batcher, halves, ([2, 4], True), ([3], True))
        assert good.result(30) == [1, 2]
        with pytest.raises(ValueError, match=r"^odd: \[3\]$"):
            bad.result(30)
    assert batcher([8]) == [4]
    batcher.close()


def test_closing_ends_what_was_asked_for_and_refuses_the_rest(halves: Halves):
    batcher = Batcher(halves, most=8)
    with ThreadPoolExecutor(4) as pool:
        (last,) = ask(pool, batcher, halves, ([2], False))
        batcher.close()
        assert last.result(30) == [1]
    with pytest.raises(ClosedError):
        batcher([4])


def test_closing_what_was_never_used_ends_at_once(halves: Halves):
    Batcher(halves, most=8).close()
    assert not halves.begun.is_set()
