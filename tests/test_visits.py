"""Visits: a drawing goes on without whoever watches it, ends when nobody comes back, and is kept for a while."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from patience import eventually

from dalle_mini.web import visits as module
from dalle_mini.web.visits import Visits


class Drawing:
    """Events 1, 2, ... that come when the test says so, or, as the pipeline's do, again and again."""

    def __init__(self, error: Exception | None = None) -> None:
        self.closed, self.moves, self.last, self.error = threading.Event(), threading.Event(), 1, error
        self.ends = False

    def events(self) -> Generator[Any, None, None]:
        try:
            while not self.ends:
                yield self.last
                self.moves.wait(0.02)
            if self.error:
                raise self.error
            yield "the answer"
        finally:
            self.closed.set()


@pytest.fixture
def drawing() -> Iterator[Drawing]:
    found = Drawing()
    yield found
    found.ends = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT", 0.05)


def is_given_up(drawing: Drawing, seconds: float = 5) -> bool:
    return drawing.closed.wait(seconds)


def test_an_unwatched_drawing_goes_on_and_who_returns_sees_the_newest_event_and_the_answer(drawing: Drawing) -> None:
    visits = Visits()
    first = visits.begin("tab", drawing.events())
    assert next(first) == 1
    first.close()
    drawing.last = 5
    assert not is_given_up(drawing, 0.2)
    visit = visits.find("tab")
    assert visit
    again = visit.watch()
    assert eventually(lambda: next(again) == 5)
    drawing.ends = True
    *_, last = again
    assert last == "the answer"
    assert list(visit.watch()) == ["the answer"], "as often as somebody returns"


def test_a_drawing_that_nobody_watches_for_long_is_given_up(drawing: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AWAY", 0.3)
    visits = Visits()
    watched = visits.begin("tab", drawing.events())
    next(watched)
    assert not is_given_up(drawing, 0.6), "it is watched"
    watched.close()
    assert is_given_up(drawing)
    visit = visits.find("tab")
    assert visit
    assert eventually(lambda: visit.ended)
    assert list(visit.watch()) == []


def test_a_page_that_goes_is_waited_for_a_shorter_time_unless_it_comes_back(
    drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEFT", 0.3)
    visits = Visits()
    for _ in range(2):  # reloads
        visit = visits.find("tab")
        watched = visit.watch() if visit else visits.begin("tab", drawing.events())
        next(watched)
        visits.leave("tab")
        watched.close()
        assert not is_given_up(drawing, 0.1)
    assert is_given_up(drawing)


def test_stop_ends_it_whoever_watches(drawing: Drawing) -> None:
    visits = Visits()
    watched = visits.begin("tab", drawing.events())
    next(watched)
    visits.stop("another tab")
    assert not is_given_up(drawing, 0.1)
    visits.stop("tab")
    assert is_given_up(drawing)
    assert "the answer" not in list(watched)


def test_the_next_drawing_of_a_tab_ends_the_one_before_unless_somebody_watches_it(drawing: Drawing) -> None:
    """A duplicated tab has the id of the first."""
    visits, other, third = Visits(), Drawing(), Drawing()
    watched = visits.begin("tab", drawing.events())
    next(watched)
    visits.begin("tab", other.events())
    visits.begin("tab", third.events())
    assert is_given_up(other)
    assert not is_given_up(drawing, 0.1)
    watched.close()
    assert is_given_up(drawing)
    visits.close()
    assert is_given_up(third)


def test_a_drawing_that_is_stopped_before_it_begins_never_does(drawing: Drawing) -> None:
    """The two are told on two connections."""
    visits, next_one = Visits(), Drawing()
    visits.stop("tab", "first")
    assert list(visits.begin("tab", drawing.events(), "first")) == []
    assert visits.find("tab") is None
    assert next(visits.begin("tab", next_one.events(), "second")) == 1
    visits.stop("tab", "first")
    assert not is_given_up(next_one, 0.1), "another drawing's name"
    visits.stop("tab", "second")
    assert is_given_up(next_one)


def test_who_watches_what_is_stopped_need_not_wait_for_its_next_event() -> None:
    def asleep() -> Generator[Any, None, None]:
        yield 1
        gate.wait(30)

    visits, gate = Visits(), threading.Event()
    watched = visits.begin("tab", asleep(), "first")
    assert next(watched) == 1
    visits.stop("tab", "first")
    assert list(watched) == []
    gate.set()


def test_a_drawing_begins_when_the_stopped_one_has_given_its_place_back(drawing: Drawing) -> None:
    visits, other = Visits(), Drawing()
    watched = visits.begin("tab", drawing.events(), "first")
    next(watched)
    visits.stop("tab", "first")
    visits.begin("tab", other.events(), "second")
    assert drawing.closed.is_set()
    visits.close()


@pytest.mark.parametrize("tab", ["", "../a", "a b", "a" * 65])
def test_without_an_id_a_drawing_ends_with_its_watcher(drawing: Drawing, tab: str) -> None:
    visits = Visits()
    watched = visits.begin(tab, drawing.events())
    next(watched)
    assert visits.find(tab) is None
    watched.close()
    assert is_given_up(drawing)


def test_a_tab_sees_only_its_own(drawing: Drawing) -> None:
    visits = Visits()
    visits.begin("tab", drawing.events())
    assert visits.find("another") is None
    visits.stop("another")
    visits.leave("another")
    assert not is_given_up(drawing, 0.1)


def test_an_error_is_raised_for_everybody_who_returns() -> None:
    visits, drawing = Visits(), Drawing(ValueError("top_k must be >= 0, got -1"))
    drawing.ends = True
    with pytest.raises(ValueError, match="top_k must be"):
        list(visits.begin("tab", drawing.events()))
    visit = visits.find("tab")
    assert visit
    with pytest.raises(ValueError, match="top_k must be"):
        list(visit.watch())


def ended(visits: Visits, tab: str) -> None:
    drawing = Drawing()
    drawing.ends = True
    list(visits.begin(tab, drawing.events()))


def test_answers_are_kept_for_some_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now: Callable[[], float] = time.monotonic
    visits = Visits()
    ended(visits, "tab")
    monkeypatch.setattr(module.time, "monotonic", lambda: now() + module.KEPT - 5)
    assert visits.find("tab")
    monkeypatch.setattr(module.time, "monotonic", lambda: now() + module.KEPT + 5)
    assert visits.find("tab") is None


def test_no_more_than_so_many_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SESSIONS", 3)
    visits = Visits()
    for i in range(6):
        ended(visits, f"tab-{i}")
    assert [i for i in range(6) if visits.find(f"tab-{i}")] == [3, 4, 5]
