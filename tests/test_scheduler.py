"""Who draws when: numbers checked by hand, on an engine that only counts; and on threads, with the real rules."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from patience import eventually

from dalle_mini.sampling_params import SamplingParams
from dalle_mini.serving.engine import Slot
from dalle_mini.serving.refusals import ClosedError, QueueFullError
from dalle_mini.serving.request import Drawing, Waiting
from dalle_mini.serving.scheduler import Scheduler

SIDE = 2  # rows of two codes


class CountingEngine:
    """Three slots. A code is seed, candidate and position as one number: 7 and 1 and 3 give 713."""

    def __init__(self, slots: int = 3) -> None:
        self.config: Any = SimpleNamespace(side=SIDE, image_length=SIDE * SIDE)
        self.slots = slots
        self.drawn: dict[Slot, list[int]] = {}
        self.log: list[list[int]] = []  # of every row, the candidates that were advanced, as seed and candidate
        self.fail_at: set[int] = set()  # rows, counted from 0
        self.full_at: set[int] = set()  # candidates that there is no memory for at first, as seed and candidate
        self.gate = threading.Event()
        self.gate.set()
        self.starts: dict[Slot, int] = {}
        self.closed = False

    def prefill(self, prompt: str) -> str:
        if prompt == "bad":
            raise ValueError("prompt must be good, got 'bad'")
        return prompt

    def has_room(self, params: SamplingParams) -> bool:
        return len(self.drawn) < self.slots

    def insert(self, prefix: str, params: SamplingParams, *, candidate: int) -> Slot:
        if (number := 10 * params.seed + candidate) in self.full_at:
            self.full_at.remove(number)
            raise MemoryError("the device is full")
        place = next(place for place in range(self.slots) if Slot(0, place) not in self.drawn)
        self.drawn[Slot(0, place)] = []
        self.starts[Slot(0, place)] = 100 * params.seed + 10 * candidate
        return Slot(0, place)

    def decode(self) -> None:
        assert self.gate.wait(60)
        row = len(self.log)
        self.log.append(sorted(self.starts[slot] // 10 for slot in self.drawn))
        if row in self.fail_at:
            raise MemoryError("the device is gone")
        for slot, codes in self.drawn.items():
            codes += [self.starts[slot] + len(codes) + i for i in range(SIDE)]

    def codes(self, slot: Slot) -> np.ndarray:
        return np.array(self.drawn[slot], np.int32)

    def evict(self, slot: Slot) -> None:
        del self.drawn[slot]

    def reset(self) -> None:
        self.drawn = {}

    def close(self) -> None:
        self.closed = True


class Visit:
    """One request whose stream is read by hand."""

    def __init__(self, scheduler: Scheduler, seed: int, candidates: int, visitor: str, prompt: str = "a cat") -> None:
        params = SamplingParams(seed=seed, num_candidates=candidates)
        self.events = scheduler.stream(prompt, params, visitor=visitor)  # type: ignore[arg-type]
        self.first = next(self.events)

    def last(self) -> Drawing:
        *_, last = self.events
        assert isinstance(last, Drawing)
        return last


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def by_hand(engine: CountingEngine, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    monkeypatch.setattr("dalle_mini.serving.scheduler.FIRST_HEARTBEAT", 0.0)
    monkeypatch.setattr("dalle_mini.serving.scheduler.HEARTBEAT", 0.0)
    monkeypatch.setattr("dalle_mini.serving.scheduler.LINE_HEARTBEAT", 0.0)
    return Scheduler([engine], threads=False)


@pytest.fixture
def threaded(engine: CountingEngine) -> Iterator[Scheduler]:
    scheduler = Scheduler([engine])
    yield scheduler
    engine.gate.set()
    scheduler.close()


def rows(scheduler: Scheduler, engine: CountingEngine, number: int) -> list[list[int]]:
    for _ in range(number):
        scheduler.step(engine)
    return engine.log[-number:]


def test_slots_are_used_again_as_soon_as_a_candidate_is_whole(by_hand: Scheduler, engine: CountingEngine):
    """Five candidates in three slots, two rows each: 3, 3, 2, 2."""
    visit = Visit(by_hand, 1, 5, "ann")
    assert rows(by_hand, engine, 4) == [[10, 11, 12], [10, 11, 12], [13, 14], [13, 14]]
    assert [codes.tolist() for codes in visit.last().codes] == [[100 + 10 * c + i for i in range(4)] for c in range(5)]
    assert not by_hand.step(engine)
    assert (engine.drawn, by_hand.slots_in_use, by_hand.waiting) == ({}, 0, 0)


def test_visitors_take_turns_a_request_a_turn(by_hand: Scheduler, engine: CountingEngine):
    """Ann asks three times, then Bob and Cem once: they come before Ann's second."""
    visits = [Visit(by_hand, seed, 3, "ann") for seed in (1, 2, 3)]
    visits += [Visit(by_hand, 4, 3, "bob"), Visit(by_hand, 5, 3, "cem")]
    assert [visit.first for visit in visits[:3]] == [Waiting(place, None) for place in (1, 2, 3)]
    assert visits[3].first == Waiting(2, None)
    drawn = rows(by_hand, engine, 10)
    assert [row[0] // 10 for row in drawn[::2]] == [1, 4, 5, 2, 3]
    assert [visit.last().codes[2][3] for visit in visits] == [123, 223, 323, 423, 523]


def test_a_free_slot_is_not_left_to_a_request_that_needs_all(by_hand: Scheduler, engine: CountingEngine):
    """Two slots of three are taken; the next request begins in the third."""
    visits = [Visit(by_hand, 1, 2, "ann"), Visit(by_hand, 2, 2, "bob")]
    assert rows(by_hand, engine, 4) == [[10, 11, 20], [10, 11, 20], [21], [21]]
    assert [len(visit.last().codes) for visit in visits] == [2, 2]


def test_cancelled_requests_free_their_slots_before_the_next_row(by_hand: Scheduler, engine: CountingEngine):
    first, second = Visit(by_hand, 1, 3, "ann"), Visit(by_hand, 2, 1, "bob")
    by_hand.step(engine)
    first.events.close()
    assert rows(by_hand, engine, 2) == [[20], [20]]
    assert second.last().codes[0].tolist() == [200, 201, 202, 203]
    assert engine.drawn == {}


def test_another_thread_cancels_a_request_and_its_events_end_at_once(
    threaded: Scheduler, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dalle_mini.serving.scheduler.LINE_HEARTBEAT", 60.0)
    engine.gate.clear()
    request = threaded.submit("a cat", SamplingParams(seed=1, num_candidates=3), visitor="ann")  # type: ignore[arg-type]
    events = threaded.events(request)
    next(events)
    while not threaded.slots_in_use:
        time.sleep(0.01)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(list, events)
        time.sleep(0.3)  # until it waits, for a minute
        threaded.cancel(request)
        assert not any(len(codes) for event in told.result(30) for codes in getattr(event, "codes", ()))
        engine.gate.set()
    while threaded.slots_in_use:
        time.sleep(0.01)
    assert len(engine.log) == 1


def test_closing_gives_the_engines_back(by_hand: Scheduler, engine: CountingEngine):
    by_hand.close()
    assert engine.closed


def test_cancelled_while_waiting_means_never_begun(by_hand: Scheduler, engine: CountingEngine):
    first, second, third = (Visit(by_hand, seed, 3, "ann") for seed in (1, 2, 3))
    second.events.close()
    assert by_hand.waiting == 2
    assert rows(by_hand, engine, 4) == [[10, 11, 12]] * 2 + [[30, 31, 32]] * 2
    assert [first.last().codes[0][0], third.last().codes[0][0]] == [100, 300]


def test_the_estimate_is_when_the_slots_of_those_before_will_be_free(by_hand: Scheduler, engine: CountingEngine):
    """At ten seconds a picture: Ann's three are half drawn and Bob's three take their slots, for ten seconds more."""
    visits = [Visit(by_hand, 1, 3, "ann"), Visit(by_hand, 2, 3, "bob")]
    by_hand.step(engine)
    by_hand._pace = 10.0
    visits += [Visit(by_hand, 3, 1, "cem"), Visit(by_hand, 4, 1, "dan")]
    assert [next(visit.events) for visit in visits[1:]] == [Waiting(1, 5.0), Waiting(2, 15.0), Waiting(3, 15.0)]
    for visit in visits:
        visit.events.close()


def test_the_pace_is_measured_where_others_wait(by_hand: Scheduler, engine: CountingEngine):
    """A row alone takes less time than one of full slots."""
    alone = Visit(by_hand, 1, 3, "ann")
    by_hand.step(engine)
    others = [Visit(by_hand, 2, 1, "bob")]
    assert others[0].first == Waiting(1, None)
    by_hand.step(engine)
    others.append(Visit(by_hand, 3, 1, "cem"))
    assert isinstance(others[1].first.seconds, float)
    for visit in (alone, *others):
        visit.events.close()


def test_a_full_queue_refuses_and_says_how_long_it_takes(engine: CountingEngine):
    scheduler = Scheduler([engine], max_waiting=1, threads=False)
    params = SamplingParams(seed=1, num_candidates=1)
    scheduler.submit("a cat", params, visitor="ann")  # type: ignore[arg-type]
    with pytest.raises(QueueFullError, match=r"^1 requests are waiting already: please try again later$"):
        next(scheduler.stream("a cat", params))  # type: ignore[arg-type]
    scheduler._pace = 40.0
    with pytest.raises(QueueFullError, match="try again in about 1 s") as error:
        next(scheduler.stream("a cat", params))  # type: ignore[arg-type]
    assert error.value.seconds == 0
    assert scheduler.waiting == 1


def test_a_request_that_fails_fails_alone(by_hand: Scheduler, engine: CountingEngine):
    good, bad = Visit(by_hand, 1, 2, "ann"), Visit(by_hand, 2, 2, "bob", prompt="bad")
    assert rows(by_hand, engine, 2) == [[10, 11], [10, 11]]
    with pytest.raises(ValueError, match="prompt must be good"):
        bad.last()
    assert good.last().codes[1][3] == 113


def test_after_a_device_error_everything_is_drawn_again_and_the_waiting_are_kept(
    by_hand: Scheduler, engine: CountingEngine
):
    engine.fail_at = {1}
    running, waiting = Visit(by_hand, 1, 3, "ann"), Visit(by_hand, 2, 3, "bob")
    rows(by_hand, engine, 2)
    assert by_hand.state == "broken"
    assert rows(by_hand, engine, 4) == [[10, 11, 12]] * 2 + [[20, 21, 22]] * 2
    assert by_hand.state == "ready"
    assert [running.last().codes[2][3], waiting.last().codes[0][0]] == [123, 200]
    stages = [f'dalle_mini_stage_seconds_count{{stage="{stage}"}} 2.0' for stage in ("waiting", "drawing")]
    assert set(stages) <= set(by_hand.metrics.text().decode().splitlines()), "each of the two once"


def test_a_request_that_the_device_fails_with_twice_has_failed(by_hand: Scheduler, engine: CountingEngine):
    engine.fail_at = {0, 1}
    first, second = Visit(by_hand, 1, 3, "ann"), Visit(by_hand, 2, 1, "bob")
    rows(by_hand, engine, 4)
    with pytest.raises(MemoryError, match="the device is gone"):
        first.last()
    assert second.last().codes[0].tolist() == [200, 201, 202, 203]


def test_a_device_error_while_inserting_keeps_everybody(by_hand: Scheduler, engine: CountingEngine):
    """Memory runs out with the second request's first candidate; the first is being drawn, the third waits."""
    engine.full_at = {30}
    visits = [Visit(by_hand, seed, count, str(seed)) for seed, count in ((1, 2), (3, 1), (4, 1))]
    rows(by_hand, engine, 1)
    assert (engine.log, by_hand.state, by_hand.waiting) == ([], "broken", 3)
    assert rows(by_hand, engine, 4) == [[10, 11, 30]] * 2 + [[40]] * 2
    assert [visit.last().codes[0][3] for visit in visits] == [103, 303, 403]
    assert by_hand.state == "ready"


def test_a_dead_device_takes_nothing_from_the_others(monkeypatch: pytest.MonkeyPatch):
    """It is always the one with the least to do."""
    monkeypatch.setattr("dalle_mini.serving.scheduler.FIRST_HEARTBEAT", 0.0)
    dead, alive = CountingEngine(), CountingEngine()
    dead.fail_at = set(range(100))
    scheduler = Scheduler([dead, alive], threads=False)
    visits = [Visit(scheduler, seed, 2, f"visitor {seed}") for seed in range(1, 9)]
    for _ in range(8 * SIDE):
        scheduler.step(dead)
        scheduler.step(alive)
    assert [visit.last().codes[1][3] for visit in visits] == [100 * seed + 13 for seed in range(1, 9)]
    assert len(dead.log) == 1
    assert scheduler.state == "ready"


def test_what_a_device_failed_with_wakes_an_engine_that_sleeps():
    """Nobody else comes, and the failed one may not take it."""
    engines = [CountingEngine(), CountingEngine()]
    for engine in engines:
        engine.gate.clear()
    scheduler = Scheduler(engines)
    request = scheduler.submit("a cat", SamplingParams(seed=1, num_candidates=1))  # type: ignore[arg-type]
    assert eventually(lambda: scheduler.slots_in_use)
    failing, other = engines if scheduler._running[engines[0]] else engines[::-1]
    failing.fail_at = {0}
    time.sleep(0.3)  # until the other sleeps
    for engine in engines:
        engine.gate.set()
    *_, last = scheduler.events(request)
    assert (last.codes[0][3], failing.log, other.log) == (103, [[10]], [[10], [10]])
    scheduler.close()


def test_requests_go_to_the_engine_with_the_least_to_do(monkeypatch: pytest.MonkeyPatch):
    """Two slots are busy in each; the third request begins where there is a free slot first, all of it there."""
    monkeypatch.setattr("dalle_mini.serving.scheduler.FIRST_HEARTBEAT", 0.0)
    engines = [CountingEngine(), CountingEngine()]
    scheduler = Scheduler(engines, threads=False)
    visits = [Visit(scheduler, seed, 2, f"visitor {seed}") for seed in (1, 2, 3)]
    for _ in range(2 * SIDE):
        for engine in engines:
            scheduler.step(engine)
    assert (engines[0].log, engines[1].log) == ([[10, 11]] * 2, [[20, 21, 30]] * 2 + [[31]] * 2)
    assert [visit.last().codes[1][3] for visit in visits] == [113, 213, 313]


def test_an_idle_engine_goes_on_to_the_next_in_line(monkeypatch: pytest.MonkeyPatch):
    """Ann's request of nine fills the first engine three times; her second and Bob's need not wait for it."""
    monkeypatch.setattr("dalle_mini.serving.scheduler.FIRST_HEARTBEAT", 0.0)
    engines = [CountingEngine(), CountingEngine()]
    scheduler = Scheduler(engines, threads=False)
    big = Visit(scheduler, 1, 9, "ann")
    scheduler.step(engines[0])
    visits = [Visit(scheduler, 2, 1, "ann"), Visit(scheduler, 3, 1, "bob")]
    for _ in range(3 * SIDE):
        for engine in engines[::-1]:
            scheduler.step(engine)
    assert engines[0].log == [[10, 11, 12]] * 2 + [[13, 14, 15]] * 2 + [[16, 17, 18]] * 2
    assert engines[1].log == [[20, 30]] * 2
    assert [visit.last().codes[0][3] for visit in [big, *visits]] == [103, 203, 303]


def test_a_request_that_was_begun_and_cancelled_was_its_visitors_turn(by_hand: Scheduler, engine: CountingEngine):
    """Ann's first of four candidates each is stopped after a row: Bob comes before her second."""
    first, second = Visit(by_hand, 1, 4, "ann"), Visit(by_hand, 2, 4, "ann")
    bob = Visit(by_hand, 3, 3, "bob")
    by_hand.step(engine)
    first.events.close()
    assert rows(by_hand, engine, 2) == [[30, 31, 32]] * 2
    for visit in (second, bob):
        visit.events.close()


def test_a_lone_visitor_is_not_told_of_a_line(threaded: Scheduler, no_heartbeats: None):
    params = SamplingParams(seed=1, num_candidates=2)
    events = list(threaded.stream("a cat", params))  # type: ignore[arg-type]
    assert all(isinstance(event, Drawing) for event in events)
    assert [len(event.codes[0]) for event in events] == [2, 4]


def test_streams_of_many_threads_get_their_own_codes(threaded: Scheduler):
    def draw(seed: int) -> list[int]:
        params = SamplingParams(seed=seed, num_candidates=1 + seed % 5)
        *_, last = threaded.stream("a cat", params, visitor=str(seed % 7))  # type: ignore[arg-type]
        return [int(codes[0]) for codes in last.codes]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(draw, range(100)))
    assert answers == [[100 * seed + 10 * i for i in range(1 + seed % 5)] for seed in range(100)]
    assert threaded.slots_in_use == threaded.waiting == 0


def test_closing_ends_what_runs_and_what_waits_and_refuses_the_rest(threaded: Scheduler, engine: CountingEngine):
    engine.gate.clear()
    params = SamplingParams(seed=1, num_candidates=3)
    with ThreadPoolExecutor(2) as pool:
        endings = [pool.submit(list, threaded.stream("a cat", params)) for _ in range(2)]  # type: ignore[arg-type]
        while threaded.waiting < 1 or not threaded.slots_in_use:
            time.sleep(0.01)
        closing = threading.Thread(target=threaded.close)
        closing.start()
        for ending in endings:
            assert isinstance(ending.exception(timeout=60), ClosedError)
        engine.gate.set()
        closing.join(60)
    assert not closing.is_alive()
    with pytest.raises(ClosedError):
        next(threaded.stream("a cat", params))  # type: ignore[arg-type]
    assert threaded.state == "draining"


def test_closing_with_time_lets_what_is_there_finish(threaded: Scheduler):
    params = SamplingParams(seed=1, num_candidates=3)
    events = threaded.stream("a cat", params)  # type: ignore[arg-type]
    next(events)
    threaded.close(seconds=60)
    *_, last = events
    assert [len(codes) for codes in last.codes] == [4, 4, 4]


def test_settings_of_a_request_reach_the_engine_unchanged(by_hand: Scheduler, engine: CountingEngine):
    seen: list[SamplingParams] = []
    insert = engine.insert
    engine.insert = lambda prefix, params, **rest: seen.append(params) or insert(prefix, params, **rest)  # type: ignore
    params = dataclasses.replace(SamplingParams(seed=3, num_candidates=1), temperature=0.5)
    events = by_hand.stream("a cat", params)  # type: ignore[arg-type]
    next(events)
    rows(by_hand, engine, SIDE)
    assert seen == [params]
