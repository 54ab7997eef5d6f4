"""What the server does, in numbers that Prometheus reads.

Contract: every `Metrics` has a registry of its own; any thread may count.

    dalle_mini_requests_total{outcome}     finished, cancelled, failed (an error of ours), refused (bad input included)
    dalle_mini_requests_open               begun and not ended
    dalle_mini_requests_waiting            in line for a slot
    dalle_mini_slots_in_use                candidates that are being drawn
    dalle_mini_replicas                    that answer, with Ray (serving/ray/)
    dalle_mini_codes_drawn_total           its rate is the speed of the engines
    dalle_mini_storage_works               1 where answers can be saved, 0 where the disk fails (web/answers.py)
    dalle_mini_stage_seconds{stage}        histograms for one request: waiting, drawing, painting, ranking
    process_*                              memory, processor time and open files of the process (on Linux)
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from dalle_mini.serving.refusals import RefusedError

OUTCOMES = ("finished", "cancelled", "failed", "refused")
STAGES = ("encoding", "waiting", "drawing", "painting", "ranking")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # bounds of the histograms


class Metrics:
    """See the module."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("dalle_mini_requests", "Requests that ended.", ["outcome"], registry=registry)
        self._stages = Histogram(
            "dalle_mini_stage_seconds", "Seconds of a request.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._codes = Counter("dalle_mini_codes_drawn", "Image codes drawn.", registry=registry)
        self.storage = Gauge("dalle_mini_storage_works", "Whether answers can be saved.", registry=registry)
        self.storage.set(1)
        self._open, self._lock = 0, threading.Lock()
        self.gauge("requests_open", "Requests begun and not ended.", lambda: self._open)
        for outcome in OUTCOMES:  # counted from 0, so that the first failure shows as a rise
            self._requests.labels(outcome)
        for stage in STAGES:
            self._stages.labels(stage)
        ProcessCollector(registry=registry)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request by how its body ends; one that is closed early was cancelled."""
        outcome = "failed"
        with self._lock:
            self._open += 1
        try:
            yield
            outcome = "finished"
        except GeneratorExit:
            outcome = "cancelled"
            raise
        except RefusedError:
            outcome = "refused"
            raise
        finally:
            with self._lock:
                self._open -= 1
            self.ended(outcome)

    def ended(self, outcome: str) -> None:
        """Count a request that `request` knows nothing of."""
        assert outcome in OUTCOMES
        self._requests.labels(outcome).inc()

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """The body is a stage of one request."""
        begun = time.monotonic()
        yield
        self.took(stage, time.monotonic() - begun)

    def took(self, stage: str, seconds: float) -> None:
        assert stage in STAGES
        self._stages.labels(stage).observe(seconds)

    def drew(self, codes: int) -> None:
        self._codes.inc(codes)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A number that is read when it is asked for."""
        Gauge(f"dalle_mini_{name}", help_text, registry=self._registry).set_function(read)

    def value(self, name: str) -> float:
        """A number by its name, without `dalle_mini_`."""
        value = self._registry.get_sample_value(f"dalle_mini_{name}")
        assert value is not None, name
        return value

    @property
    def open(self) -> int:
        """Requests begun and not ended."""
        return self._open

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
