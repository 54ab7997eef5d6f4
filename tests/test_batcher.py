"""What waits is done together, what is urgent first, and a fault is nobody else's."""

import threading
from concurrent.futures import Future

import pytest

from dalle_mini.serving.batcher import Batcher
from dalle_mini.serving.refusals import ClosedError


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


@pytest.fixture
def batcher(halves: Halves) -> Batcher[int, int]:
    """At work on one item until `halves.go`; so what comes meanwhile waits."""
    batcher = Batcher(halves, most=4)
    batcher.submit([100])
    assert halves.begun.wait(30)
    return batcher


def results(jobs: list[Future[int]]) -> list[int]:
    return [job.result(30) for job in jobs]


def test_what_waits_is_done_together_and_everybody_gets_their_own(batcher: Batcher[int, int], halves: Halves):
    jobs = [batcher.submit(items) for items in ([2, 4], [6], [8, 10])]
    halves.go.set()
    assert list(map(results, jobs)) == [[1, 2], [3], [4, 5]]
    assert halves.seen == [[100], [2, 4, 6, 8], [10]]
    batcher.close()


def test_urgent_items_go_first(batcher: Batcher[int, int], halves: Halves):
    jobs = [batcher.submit([2, 4, 6], urgent=False), batcher.submit([8, 10])]
    halves.go.set()
    assert list(map(results, jobs)) == [[1, 2, 3], [4, 5]]
    assert halves.seen == [[100], [8, 10, 2, 4], [6]]
    batcher.close()


def test_what_is_cancelled_is_not_done(batcher: Batcher[int, int], halves: Halves):
    first, second = batcher.submit([2, 4])
    assert first.cancel()
    halves.go.set()
    assert second.result(30) == 2
    assert halves.seen == [[100], [4]]
    batcher.close()


def test_an_item_that_fails_fails_alone(batcher: Batcher[int, int], halves: Halves):
    good, (bad,) = batcher.submit([2, 4]), batcher.submit([3])
    halves.go.set()
    assert results(good) == [1, 2]
    with pytest.raises(ValueError, match=r"^odd: \[3\]$"):
        bad.result(30)
    assert results(batcher.submit([8])) == [4]
    batcher.close()


def test_closing_ends_what_was_asked_for_and_refuses_the_rest(batcher: Batcher[int, int], halves: Halves):
    last = batcher.submit([2], urgent=False)
    halves.go.set()
    batcher.close()
    assert results(last) == [1]
    with pytest.raises(ClosedError):
        batcher.submit([4])


def test_closing_what_was_never_used_ends_at_once(halves: Halves):
    Batcher(halves, most=8).close()
    assert not halves.begun.is_set()
