"""What stands where a `Scheduler` stands in a pipeline, with the engines in replicas; the package tells how."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from dalle_mini.config import ModelConfig
from dalle_mini.sampling_params import SamplingParams
from dalle_mini.serving.metrics import Metrics
from dalle_mini.serving.ray.cluster import REMOVING, cluster, deploy
from dalle_mini.serving.ray.replica import Status
from dalle_mini.serving.refusals import ClosedError, QueueFullError, RefusedError
from dalle_mini.serving.request import Drawing, Waiting
from dalle_mini.serving.scheduler import HEARTBEAT, LINE_HEARTBEAT
from dalle_mini.tokenizer import TokenizedPrompt

logger = logging.getLogger(__name__)
FRESH = 1.0  # seconds between two looks at the replicas
LOST = 10.0  # seconds; what a replica said so long ago does not count any more
# A request that has lost its replica asks another after AGAIN seconds, twice as many each time: a replica whose device
# is dead has the fewest requests and is asked first, until Serve has replaced it (HEALTH in cluster.py).
AGAIN = 0.5
ATTEMPTS = 5  # of a request; what kills five replicas would kill the next


@dataclass(eq=False)
class _Visit:
    """A request as the web process sees it."""

    told: "queue.SimpleQueue[Waiting | Drawing | Exception]" = field(default_factory=queue.SimpleQueue)
    last: Waiting | Drawing | None = None
    asked: float = field(default_factory=time.monotonic)
    begun: float | None = None  # when it was first drawn


class RayScheduler:
    """What `Scheduler` is for engines in this process; see the package.

    replicas: how many, or the fewest and the most of a number that follows the load. Raises ValueError, and
    CheckpointError where no replica could be started.
    """

    def __init__(
        self,
        model: str | Path,
        config: ModelConfig,
        *,
        replicas: int | tuple[int, int],
        slots: int | None = None,
        max_waiting: int,
    ) -> None:
        self._fewest, self._most = (replicas, replicas) if isinstance(replicas, int) else replicas
        if not 1 <= self._fewest <= self._most:
            raise ValueError(f"replicas must be >= 1, the fewest first, got {replicas}")
        self.config, self.metrics = config, Metrics()
        self.metrics.gauge("requests_waiting", "Requests in line for a slot.", lambda: self.waiting)
        self.metrics.gauge("slots_in_use", "Candidates that are being drawn.", lambda: self.slots_in_use)
        self.metrics.gauge("replicas", "Replicas that have answered lately.", lambda: len(self._statuses))
        self._visits: set[_Visit] = set()
        self._statuses: dict[str, Status] = {}
        self._counted: dict[str, float] = {}  # codes drawn by each replica, as far as /metrics has them
        self._heard = time.monotonic()
        self._closing = False
        self._lock = threading.Lock()  # of what begins while the end begins
        self._ready, self._stop = threading.Event(), threading.Event()
        with ExitStack() as started:
            started.enter_context(cluster(self._most))
            self._handle = deploy(
                model, config, fewest=self._fewest, most=self._most, slots=slots, max_waiting=max_waiting
            )
            self._thread = threading.Thread(target=asyncio.run, args=(self._watch(),), name="ray", daemon=True)
            self._thread.start()
            self._ready.wait()
            self._started = started.pop_all()

    # Requests -----------------------------------------------------------------------------------------------

    def stream(
        self, tokens: TokenizedPrompt, params: SamplingParams, *, visitor: str = ""
    ) -> Generator[Waiting | Drawing, None, None]:
        """As Scheduler.stream."""
        visit = _Visit()
        with self._lock:
            if self._closing:
                raise ClosedError
            self._visits.add(visit)
            following = asyncio.run_coroutine_threadsafe(self._follow(visit, tokens, params, visitor), self._loop)
        try:
            while not self._whole(visit.last):
                patience = HEARTBEAT if isinstance(visit.last, Drawing) else LINE_HEARTBEAT
                try:
                    event = visit.told.get(timeout=patience)
                except queue.Empty:
                    event = visit.last or Waiting(self.waiting, None)
                if isinstance(event, Exception):
                    raise event
                self._count(visit, event)
                yield event
        finally:
            following.cancel()
            self._visits.discard(visit)

    def likelihoods(self, tokens: TokenizedPrompt, codes: np.ndarray) -> np.ndarray:
        """As Scheduler.likelihoods, by any of the replicas."""
        return self._handle.likelihoods.remote(tokens, codes).result(timeout_s=LOST * ATTEMPTS)

    def _whole(self, event: Waiting | Drawing | None) -> bool:
        return isinstance(event, Drawing) and all(len(codes) == self.config.image_length for codes in event.codes)

    def _count(self, visit: _Visit, event: Waiting | Drawing) -> None:
        visit.last, now = event, time.monotonic()
        if isinstance(event, Drawing) and visit.begun is None:
            visit.begun = now
            self.metrics.took("waiting", now - visit.asked)
        if visit.begun is not None and self._whole(event):
            self.metrics.took("drawing", now - visit.begun)

    async def _follow(self, visit: _Visit, tokens: TokenizedPrompt, params: SamplingParams, visitor: str) -> None:
        """Tell a visit the events of its request, at one replica after another if need be. An error comes last."""
        attempts, admitted = 0, False
        while True:
            try:
                with ExitStack() as asked:
                    response = self._handle.options(stream=True).stream.remote(tokens, params, visitor)
                    asked.callback(response.cancel)
                    async for event in response:
                        admitted = True
                        visit.told.put(event)
                return
            except (Exception, asyncio.CancelledError) as error:
                if (task := asyncio.current_task()) and task.cancelling():
                    return  # the visitor's doing; Serve cancels, too, where a replica ends
                reason = self._reason(error)
                if not (isinstance(reason, QueueFullError) and admitted):
                    attempts += 1
                    if isinstance(reason, RefusedError | ValueError) or attempts == ATTEMPTS:
                        visit.told.put(reason)
                        return
                    logger.warning("a request begins again at another replica: %s", reason)
            await asyncio.sleep(AGAIN * 2**attempts)

    def _reason(self, error: BaseException) -> Exception:
        """What a request has failed with, in our own words where we have some."""
        if isinstance(error, BackPressureError):
            return QueueFullError(self.waiting, None)
        if isinstance(error, RayTaskError):
            error = error.cause
        return error if isinstance(error, Exception) else RuntimeError("the replica has ended")

    def warm_up(self) -> Iterator[None]:
        """Every replica has done it."""
        yield from ()

    # The replicas -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Ask the replicas how they are, until the end."""
        self._loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            try:
                answers = await self._handle.broadcast("status").results_async(timeout_s=LOST, return_exceptions=True)
                self._note({answer.name: answer for answer in answers if isinstance(answer, Status)})
            except Exception as error:
                logger.warning("the replicas do not answer: %s", error)
                if time.monotonic() > self._heard + LOST:
                    self._statuses = {}
            if len(self._statuses) >= self._fewest:
                self._ready.set()
            await asyncio.to_thread(self._stop.wait, FRESH)

    def _note(self, statuses: dict[str, Status]) -> None:
        self._heard, self._statuses = time.monotonic(), statuses
        for name, status in statuses.items():
            self.metrics.drew(int(max(0, status.codes_drawn - self._counted.get(name, 0))))
            self._counted[name] = status.codes_drawn

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return sum(not isinstance(visit.last, Drawing) for visit in list(self._visits))

    @property
    def slots_in_use(self) -> int:
        return sum(status.slots_in_use for status in self._statuses.values())

    @property
    def capacity(self) -> int:
        """Requests that may be here at once, in line or being drawn, when there are as many replicas as may be."""
        return self._most * max((status.capacity for status in self._statuses.values()), default=1)

    @property
    def device(self) -> str:
        """What draws, in words."""
        devices = sorted({status.device for status in self._statuses.values()})
        return f"{len(self._statuses)} Ray replicas ({', '.join(devices)})"

    @property
    def state(self) -> str:
        """ready, draining or broken (no replica is ready)."""
        if self._closing:
            return "draining"
        return "ready" if any(status.state == "ready" for status in self._statuses.values()) else "broken"

    def close(self, seconds: float = 0.0) -> None:
        """Take no more requests, let those that are here finish for `seconds`, end the others and the replicas."""
        with self._lock:
            self._closing = True
        deadline = time.monotonic() + seconds - REMOVING
        while self._visits and time.monotonic() < deadline:
            time.sleep(0.01)
        for visit in list(self._visits):
            visit.told.put(ClosedError())
        self._stop.set()
        self._thread.join()
        self._started.close()
