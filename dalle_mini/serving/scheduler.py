"""Many requests, one engine for each device: who is drawn where, and who waits.

The way of one request:

 1. `stream` (any thread) puts it at the end of its visitor's line, unless `max_waiting` requests wait already: then
    `QueueFullError` says how long the wait would be.
 2. Before every row an engine's thread admits, in the order of turns (serving/turns.py). A request's candidates all go
    to the engine with the least to do, one after another, as slots become free; the other engines go on to the next in
    line. At one engine nobody is overtaken: while the next has no room there with (or without) guidance, those behind
    wait, for a picture at most.
 3. `Engine.decode` draws one row of every slot; all whose rows have grown are told, and `stream` yields `Drawing`.
    Until then it yields `Waiting`: the place in line and, once a row was measured while others waited, the seconds.
 4. A candidate that is whole leaves its slot to the next at once. With its last candidate the request is done.
 5. Closing the stream cancels: slots are free before the next row, a place in line at once.

When something fails: a text that cannot be prefilled (ValueError) fails its own request alone. If the device fails,
the engine is emptied, and what it was drawing is drawn again from the start, once: the same seeds give the same codes.
New requests keep away from an engine that has failed while there are others.

Contract: `stream` (or its parts `submit`, `events`, `cancel`), `close` and the properties may be used by any thread; an
engine only by its own thread. Requests are tokens and sampling params; neither pictures nor prompts are known here.
"""

import itertools
import logging
import threading
import time
from collections.abc import Generator, Iterator, Sequence

from dalle_mini import device
from dalle_mini.sampling_params import SamplingParams
from dalle_mini.serving.engine import Engine
from dalle_mini.serving.metrics import Metrics
from dalle_mini.serving.refusals import ClosedError, QueueFullError
from dalle_mini.serving.request import Drawing, Request, Waiting
from dalle_mini.serving.turns import Turns
from dalle_mini.tokenizer import TokenizedPrompt

logger = logging.getLogger(__name__)
FIRST_HEARTBEAT = 0.1  # who is served at once is not told of a line
# Seconds after which a stream repeats itself: whoever is gone is found out when something is sent. Telling a crowd its
# places every second took as much of the web process as everything else.
HEARTBEAT, LINE_HEARTBEAT = 1.0, 3.0
IDLE = 0.01  # seconds until an engine that may not begin what is waiting looks again
BROKEN = 30.0  # seconds; then what was kept away from a failed engine may try it again
MAX_WAITING = 200
ATTEMPTS = 2  # of a request that a device has failed with


class Scheduler:
    """See the module. The first request starts the threads; without `threads`, call `step`."""

    def __init__(self, engines: Sequence[Engine], *, max_waiting: int = MAX_WAITING, threads: bool = True) -> None:
        self.engines, self.max_waiting, self._threaded = engines, max_waiting, threads
        self.metrics = Metrics()
        self.metrics.gauge("requests_waiting", "Requests in line for a slot.", lambda: self.waiting)
        self.metrics.gauge("slots_in_use", "Candidates that are being drawn.", lambda: self.slots_in_use)
        self.config = engines[0].config
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._turns = Turns()
        self._running: dict[Engine, list[Request]] = {engine: [] for engine in engines}
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._broken: dict[Engine, float] = {}  # engines that have failed, and until when they are avoided
        self._pace: float | None = None  # seconds that a slot takes for a picture, a moving average

    # The requests' side -------------------------------------------------------------------------------------

    def stream(
        self, tokens: TokenizedPrompt, params: SamplingParams, *, visitor: str = ""
    ) -> Generator[Waiting | Drawing, None, None]:
        """Draw the candidates of a request. Raises QueueFullError, ClosedError, or what the request failed with."""
        yield from self.events(self.submit(tokens, params, visitor=visitor))

    def events(self, request: Request) -> Generator[Waiting | Drawing, None, None]:
        """What happens to a request, which is cancelled when this is closed; it ends when the request is cancelled."""
        patience = FIRST_HEARTBEAT
        try:
            while True:
                with self._lock:
                    request.changed.wait_for(lambda: request.events or request.error or request.cancelled, patience)
                    if request.error:
                        raise request.error
                    if request.cancelled:
                        return
                    if request.events:
                        event: Waiting | Drawing = request.events.popleft()
                    else:
                        event = Drawing(tuple(request.codes)) if request.started else self._waiting(request)
                yield event
                patience = LINE_HEARTBEAT if isinstance(event, Waiting) else HEARTBEAT
                if isinstance(event, Drawing) and all(len(codes) == self.config.image_length for codes in event.codes):
                    return
        finally:
            self.cancel(request)

    def submit(self, tokens: TokenizedPrompt, params: SamplingParams, *, visitor: str = "") -> Request:
        """Put a request in line. Raises QueueFullError and ClosedError."""
        with self._lock:
            if self._closing:
                raise ClosedError
            if self.waiting >= self.max_waiting:
                raise QueueFullError(self.waiting, self._seconds(self._turns.order()))
            request = Request(tokens, params, visitor, threading.Condition(self._lock))
            self._turns.join(request)
            self._start_threads()
            self._work.notify_all()
        return request

    def cancel(self, request: Request) -> None:
        """Take a request out of the line or, before the next row, out of its slots."""
        with self._lock:
            request.cancelled = True
            self._turns.leave(request)
            request.changed.notify_all()
            self._work.notify_all()

    def _waiting(self, request: Request) -> Waiting:
        order = self._turns.order()
        place = order.index(request) if request in order else 0
        return Waiting(place + 1, self._seconds(order[:place]))

    def _seconds(self, before: Sequence[Request]) -> float | None:
        """Until there is a slot for who comes after those `before`."""
        if self._pace is None:
            return None
        whole, running = self.config.image_length, [each for some in self._running.values() for each in some]
        left = [1 - len(each.codes[candidate]) / whole for each in running for candidate in each.slots]
        left += [0.0] * (sum(engine.slots for engine in self.engines) - len(left))
        rounds, turn = divmod(sum(each.unstarted for each in before), len(left))
        return self._pace * (rounds + sorted(left)[turn])

    @property
    def waiting(self) -> int:
        """Requests in line, those included whose first candidates are being drawn."""
        with self._lock:
            return len(self._turns)

    @property
    def slots_in_use(self) -> int:
        with self._lock:
            return sum(len(request.slots) for requests in self._running.values() for request in requests)

    @property
    def capacity(self) -> int:
        """Requests that may be here at once, in line or being drawn; twice as many candidates fit without guidance."""
        return self.max_waiting + 2 * sum(engine.slots for engine in self.engines)

    @property
    def device(self) -> str:
        """What draws, in words."""
        return device.name()

    @property
    def state(self) -> str:
        """ready, draining or broken (every device has just failed, and no row has succeeded since)."""
        return "draining" if self._closing else "ready" if any(map(self._works, self.engines)) else "broken"

    def _works(self, engine: Engine) -> bool:
        return time.monotonic() >= self._broken.get(engine, 0.0)

    # The engines' side --------------------------------------------------------------------------------------

    def step(self, engine: Engine) -> bool:
        """One row of one engine: clear, admit, decode, tell. Returns whether there was anything to draw."""
        self._clear(engine)
        begun = time.monotonic()
        self._admit(engine)
        if not self._running[engine]:
            return False
        try:
            engine.decode()
        except Exception as error:
            self._recover(engine, error)
        else:
            self._collect(engine, time.monotonic() - begun)
        return True

    def _clear(self, engine: Engine) -> None:
        """Free the slots of cancelled requests."""
        with self._lock:
            for request in [each for each in self._running[engine] if each.cancelled]:
                self._evict(engine, request)

    def _evict(self, engine: Engine, request: Request) -> None:
        self._running[engine].remove(request)
        for slot in request.slots.values():
            engine.evict(slot)
        request.slots = {}

    def _admit(self, engine: Engine) -> None:
        """Fill free slots, turn by turn."""
        while (request := self._choose(engine)) is not None:
            try:
                prefix = engine.prefill(request.tokens)
                slot = engine.insert(prefix, request.params, candidate=request.started)
            except ValueError as error:
                logger.exception("a request failed")
                with self._lock:
                    self._turns.leave(request)
                    self._evict(engine, request)
                    request.fail(error)
                continue
            except Exception as error:
                self._recover(engine, error)
                return
            with self._lock:
                if not request.begun:
                    request.begun = time.monotonic()
                    self.metrics.took("waiting", request.begun - request.asked)
                request.slots[request.started] = slot
                request.started += 1
                if not request.unstarted:
                    self._turns.leave(request)

    def _choose(self, engine: Engine) -> Request | None:
        """Whose next candidate is to be inserted."""
        with self._lock:
            working = [each for each in self.engines if self._works(each)] or self.engines
            takes_new = engine in working and self._load(engine) == min(map(self._load, working))
            placed = {request for running in self._running.values() for request in running}
            mine = (r for r in self._turns.order() if r in self._running[engine] or (takes_new and r not in placed))
            request = next(mine, None)
            if request is None or not engine.has_room(request.params):
                return None
            if request not in placed:
                self._running[engine].append(request)
            return request

    def _collect(self, engine: Engine, seconds: float) -> None:
        """Hand out the row that was drawn; free the slots of whole pictures."""
        with self._lock:
            self._broken.pop(engine, None)
            drawn = sum(len(request.slots) for request in self._running[engine])
            self.metrics.drew(drawn * self.config.side)
            if self._turns:  # who is alone is served sooner
                pace = seconds * self.config.side
                self._pace = pace if self._pace is None else 0.9 * self._pace + 0.1 * pace
            for request in list(self._running[engine]):
                for candidate, slot in list(request.slots.items()):
                    request.codes[candidate] = engine.codes(slot)
                    if len(request.codes[candidate]) == self.config.image_length:
                        engine.evict(slot)
                        del request.slots[candidate]
                if not request.slots and not request.unstarted:
                    self._running[engine].remove(request)
                    self.metrics.took("drawing", time.monotonic() - request.begun)
                request.events.append(Drawing(tuple(request.codes)))
                request.changed.notify_all()

    def _recover(self, engine: Engine, error: Exception) -> None:
        """Empty the engine; what it was drawing comes first again, or has failed too often."""
        logger.error("the device failed", exc_info=error)
        with self._lock:
            self._broken[engine] = time.monotonic() + BROKEN
            engine.reset()
            for request in reversed(self._running[engine]):
                self._turns.leave(request)
                request.restart()
                request.attempts += 1
                if request.attempts >= ATTEMPTS:
                    request.fail(error)
                elif not request.cancelled:
                    self._turns.join_first(request)
            self._running[engine] = []
            self._work.notify_all()  # the other engines may sleep

    def _load(self, engine: Engine) -> float:
        """Candidates to draw for each slot."""
        requests = self._running[engine]
        return sum(len(request.slots) + request.unstarted for request in requests) / engine.slots

    def warm_up(self) -> Iterator[None]:
        """See Engine.warm_up."""
        for engine in self.engines:
            yield from engine.warm_up()

    # Threads ------------------------------------------------------------------------------------------------

    def _start_threads(self) -> None:
        if not self._threads:
            for i, engine in enumerate(self.engines if self._threaded else ()):
                thread = threading.Thread(target=self._run, args=(engine,), name=f"engine-{i}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self, engine: Engine) -> None:
        while True:
            with self._lock:
                self._work.wait_for(lambda: self._turns or self._running[engine] or self._closing)
                if self._closing and not self._turns and not self._running[engine]:
                    return
            if not self.step(engine):
                time.sleep(IDLE)

    def close(self, seconds: float = 0.0) -> None:
        """Take no more requests, let those that are here finish for `seconds`, end the others, close the engines."""
        with self._lock:
            self._closing = True
            self._work.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for request in {*self._turns.order(), *itertools.chain(*self._running.values())}:
                request.cancelled = True
                self._turns.leave(request)
                request.fail(ClosedError())
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        for engine in self.engines:
            engine.close()
