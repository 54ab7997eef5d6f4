"""What one visitor may ask for: requests at once, and requests a minute.

Contract: a visitor is a name (the page uses that of the client's address); any thread may ask. Off unless set.
"""

import ipaddress
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dalle_mini.serving.refusals import LimitError

MINUTE = 60.0


def visitor_at(address: str) -> str:
    """Who is at an address: with IPv6 a network of 64 bits, since whoever has one has all of its addresses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))


class Limits:
    """`per_visitor` requests at once, `per_minute` begun within 60 seconds; None is no limit."""

    def __init__(
        self,
        *,
        per_visitor: int | None = None,
        per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("per_visitor", per_visitor), ("per_minute", per_minute)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.per_visitor, self.per_minute, self._clock = per_visitor, per_minute, clock
        self._lock = threading.Lock()
        self._open: defaultdict[str, int] = defaultdict(int)  # only visitors with an open request
        self._begun: defaultdict[str, deque[float]] = defaultdict(deque)  # only visitors of the last minute

    @contextmanager
    def admit(self, visitor: str) -> Iterator[None]:
        """Holds one of the visitor's places. Raises LimitError where there is none."""
        self._enter(visitor)
        try:
            yield
        finally:
            with self._lock:
                self._open[visitor] -= 1
                if not self._open[visitor]:
                    del self._open[visitor]

    def _enter(self, visitor: str) -> None:
        with self._lock:
            now = self._clock()
            self._forget(now - MINUTE)
            running, begun = self._open.get(visitor, 0), self._begun.get(visitor, deque())
            if self.per_visitor is not None and running >= self.per_visitor:
                raise LimitError(
                    f"a visitor may have at most {self.per_visitor} requests at once, got one more: "
                    "please try again when one of them has ended"
                )
            if self.per_minute is not None and len(begun) >= self.per_minute:
                seconds = math.ceil(begun[0] + MINUTE - now)
                raise LimitError(
                    f"a visitor may ask at most {self.per_minute} times a minute, got one more: "
                    f"please try again in {seconds} s"
                )
            self._open[visitor] += 1
            if self.per_minute is not None:
                self._begun[visitor].append(now)

    def _forget(self, before: float) -> None:
        for visitor, begun in list(self._begun.items()):
            while begun and begun[0] <= before:
                begun.popleft()
            if not begun:
                del self._begun[visitor]
