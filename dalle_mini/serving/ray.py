"""The engine as replicas on Ray Serve, on this machine or on many, behind one web process. An optional extra.

`RayScheduler` stands where a `Scheduler` stands in a pipeline. Each `Replica` is a process with the text-to-code model
and a scheduler of its own; the web process keeps the tokenizer, the painting and the ranking. The way of one request:

 1. Serve sends it to the replica with the fewer requests of two picked at random. It waits in that replica's line,
    where visitors take turns; the visitor is passed along, so every replica is fair, each for itself.
 2. Its events come back as the replica's scheduler makes them. Where there are none for a while, the last is repeated.
 3. When its replica dies, or fails with it, it begins again at another: the same seed gives the same codes. Only the
    rows begin again. Once it was let in it is not refused any more.
 4. Closing the stream reaches the replica, where the slots are free before the next row.

A replica whose line is full refuses with QueueFullError; so does Serve, in the web process, when as many as the
replicas would take wait for one that lives. Numbers of the replicas in /metrics are at most `FRESH` seconds old, plus
the time of a call; those of requests are of now.

Where the environment variable RAY_ADDRESS names a cluster, as for Ray itself, the replicas are put there: the code and
the model must be on all its machines, at the same place. Otherwise a cluster is started here, which asks for a
token that nobody else has, without dashboard and statistics, and which ends with this process. See docs/scaling.md.
"""

import asyncio
import logging
import os
import queue
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

if "RAY_ADDRESS" not in os.environ:  # Ray reads these when it is imported; its processes have them from this one
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # its ports are open to the network
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
import ray
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from dalle_mini import device, presets
from dalle_mini.config import ModelConfig, SamplingParams
from dalle_mini.serving.engine import MOST_SLOTS, load_engines
from dalle_mini.serving.metrics import Metrics
from dalle_mini.serving.refusals import ClosedError, QueueFullError, RefusedError
from dalle_mini.serving.request import Drawing, Waiting
from dalle_mini.serving.scheduler import HEARTBEAT, LINE_HEARTBEAT, Scheduler
from dalle_mini.tokenizer import TokenizedPrompt
from vqgan.files import CheckpointError

logger = logging.getLogger(__name__)
APPLICATION = "dalle-mini"
FRESH = 1.0  # seconds between two looks at the replicas
LOST = 10.0  # seconds; what a replica said so long ago does not count any more
# A request that has lost its replica asks another after AGAIN seconds, twice as many each time: a replica whose device
# is dead has the fewest requests and is asked first, until Serve, which looks every HEALTH seconds, has replaced it.
AGAIN, HEALTH = 0.5, 2.0
ATTEMPTS = 5  # of a request; what kills five replicas would kill the next
MANY = 10_000  # requests at one replica, more than its scheduler takes: that refuses first, and says how long it takes
BUSY = 8  # requests at each replica, above which a cluster that scales starts another
LEAVE = 60.0  # seconds that a replica which is not needed any more has to finish
REMOVING = 2.0  # seconds until Ray's files can be removed
OBJECT_STORE = 80 * 2**20  # bytes, about the least that Ray takes; our events are too small to go there


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a replica says of itself."""

    name: str  # host:process
    device: str
    state: str
    capacity: int
    slots_in_use: int
    codes_drawn: float


class Replica:
    """The engines of one process with their scheduler; Serve makes it and calls its methods."""

    def __init__(self, model: str, config: ModelConfig, slots: int | None, max_waiting: int) -> None:
        device.set_up()
        self._scheduler = Scheduler(
            load_engines(presets.find(model).dalle, config, slots=slots), max_waiting=max_waiting
        )
        self._threads = ThreadPoolExecutor(MANY, "stream")  # each stream blocks one until its next event
        for _ in self._scheduler.warm_up():
            pass

    async def stream(
        self, tokens: TokenizedPrompt, params: SamplingParams, visitor: str
    ) -> AsyncGenerator[Waiting | Drawing, None]:
        """As Scheduler.stream. It is asynchronous because Serve can cancel nothing else."""
        request = self._scheduler.submit(tokens, params, visitor=visitor)
        events, loop = self._scheduler.events(request), asyncio.get_running_loop()
        try:
            while event := await loop.run_in_executor(self._threads, next, events, None):
                yield event
        finally:
            self._scheduler.cancel(request)  # ends `events`, too

    async def status(self) -> Status:
        return Status(
            name=f"{socket.gethostname()}:{os.getpid()}",
            device=self._scheduler.device,
            state=self._scheduler.state,
            capacity=self._scheduler.capacity,
            slots_in_use=self._scheduler.slots_in_use,
            codes_drawn=self._scheduler.metrics.value("codes_drawn_total"),
        )

    def check_health(self) -> None:
        """Serve asks this now and then, and starts a new replica for one that is broken several times in a row."""
        if self._scheduler.state == "broken":
            raise RuntimeError("the device has failed, and no row has succeeded since")


@dataclass(eq=False)
class _Visit:
    """A request as the web process sees it."""

    told: "queue.SimpleQueue[Waiting | Drawing | Exception]" = field(default_factory=queue.SimpleQueue)
    last: Waiting | Drawing | None = None
    asked: float = field(default_factory=time.monotonic)
    begun: float | None = None  # when it was first drawn


class RayScheduler:
    """What `Scheduler` is for engines in this process; see the module.

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
            started.enter_context(_cluster(self._most))
            self._handle = self._deploy(_everywhere(model), slots, max_waiting)
            self._thread = threading.Thread(target=asyncio.run, args=(self._watch(),), name="ray", daemon=True)
            self._thread.start()
            self._ready.wait()
            self._started = started.pop_all()

    def _deploy(self, model: str, slots: int | None, max_waiting: int) -> "DeploymentHandle[Replica]":
        """The replicas, all of them ready."""
        scaling = AutoscalingConfig(min_replicas=self._fewest, max_replicas=self._most, target_ongoing_requests=BUSY)
        fixed = self._fewest == self._most
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        deployment = serve.deployment(
            Replica,
            num_replicas=self._fewest if fixed else None,
            autoscaling_config=None if fixed else scaling,
            max_ongoing_requests=MANY,
            max_queued_requests=self._most * (max_waiting + 2 * (slots or MOST_SLOTS)),  # as many as they would take
            ray_actor_options=_place(self._fewest),
            graceful_shutdown_timeout_s=LEAVE,
            health_check_period_s=HEALTH,
            max_constructor_retry_count=2,
            logging_config=quiet,
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config=quiet)
        try:
            bound = deployment.bind(model, self.config, slots, max_waiting)
            return serve.run(bound, name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            raise CheckpointError(f"no replica could be started: {error}") from error

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


def _everywhere(model: str | Path) -> str:
    """What a replica, which has another working folder, finds the model by."""
    on_the_shelf = str(model) in ("emoji", *presets.SHELF)
    return str(Path(model).resolve()) if not on_the_shelf and Path(model).is_dir() else str(model)


def _place(fewest: int) -> dict[str, float]:
    """What a replica takes of its machine. Raises ValueError where there is too little for the fewest replicas."""
    if not (gpus := int(ray.cluster_resources().get("GPU", 0))):
        return {"num_cpus": 1}  # a cluster that is started here has as many as there are replicas
    if fewest > gpus and "RAY_ADDRESS" not in os.environ:  # other clusters may grow
        raise ValueError(f"replicas must be <= {gpus}, the GPUs of this machine, got {fewest}")
    return {"num_gpus": 1}


@contextmanager
def _cluster(processes: int) -> Iterator[None]:
    """Ray, connected: to the cluster that RAY_ADDRESS names, or to one for this process alone."""
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level=logging.WARNING)
        try:
            yield
        finally:
            serve.delete(APPLICATION, _blocking=False)
            ray.shutdown()
        return
    folder = Path(tempfile.mkdtemp(prefix="dalle-ray-"))
    try:
        ray.init(
            "local",
            num_cpus=processes,
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _temp_dir=str(folder),
        )
        yield
    finally:
        ray.shutdown()
        deadline = time.monotonic() + REMOVING
        while folder.exists() and time.monotonic() < deadline:  # Ray's last processes are still writing
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)
