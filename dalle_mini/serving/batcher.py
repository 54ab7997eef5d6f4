"""Work of many requests done together, by one thread: painting and ranking.

Contract: `submit` does not block. Whatever waits at a time, from any caller, is done in one go, urgent items first; an
item that fails fails for its own caller only. After `close`, `submit` raises ClosedError.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from dalle_mini.serving.refusals import ClosedError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """`run(items)` returns one result for each of at most `most` items."""

    def __init__(self, run: Callable[[list[Item]], Sequence[Result]], *, most: int) -> None:
        self._run, self._most = run, most
        self._count = itertools.count()
        self._jobs: queue.PriorityQueue[tuple[bool, int, Any, Future[Any]]] = queue.PriorityQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, items: Sequence[Item], *, urgent: bool = True) -> "list[Future[Result]]":
        """What is cancelled before it begins is not done."""
        futures: list[Future[Result]] = [Future() for _ in items]
        with self._lock:  # nothing comes after what close() puts at the end
            if self._closed:
                raise ClosedError
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
                self._thread.start()
            for item, future in zip(items, futures, strict=True):
                self._jobs.put((not urgent, next(self._count), item, future))
        return futures

    def close(self) -> None:
        """End the thread, when everything that was asked for is done."""
        with self._lock:
            self._closed = True
            self._jobs.put((True, next(self._count), None, Future()))
        if self._thread:
            self._thread.join()

    def _work(self) -> None:
        last = False
        while not last:
            jobs = [self._jobs.get()]
            while len(jobs) < self._most and not self._jobs.empty():
                jobs.append(self._jobs.get())
            last = any(item is None for _, _, item, _ in jobs)
            wanted = [(item, future) for _, _, item, future in jobs if item is not None]
            work = [(item, future) for item, future in wanted if future.set_running_or_notify_cancel()]
            try:
                results = self._run([item for item, _ in work]) if work else []
            except Exception:
                for item, future in work:
                    self._alone(item, future)
            else:
                for (_, future), result in zip(work, results, strict=True):
                    future.set_result(result)

    def _alone(self, item: Item, future: "Future[Result]") -> None:
        try:
            future.set_result(self._run([item])[0])
        except Exception as error:
            future.set_exception(error)
