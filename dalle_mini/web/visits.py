"""Drawings that outlive a connection: who comes back to the page finds what was drawn meanwhile.

Contract: a tab of a browser has an id that nobody else knows, and one newest visit; its drawings have names, by which
they are stopped, be it before they have begun. A visit runs in a thread of its own, watched or not, until

    its end           what it came to is kept for `KEPT` seconds, of the latest `SESSIONS` tabs
    it is stopped     whoever watches is told at once
    nobody watches    for `AWAY` seconds; for `LEFT`, once the page has said that it goes (a reload says so, too); not
                      at all, once the tab has begun another

It looks at the clock when its events come, which repeat themselves every few seconds. Any thread may ask for anything.
"""

import re
import threading
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, cast

from dalle_mini.web.answers import SESSIONS

KEPT, AWAY, LEFT = 300.0, 60.0, 10.0
MAKE_WAY = 5.0  # seconds that a drawing waits for the end of a stopped one, whose place in the limits it may need
REPEAT = 1.0  # after so many seconds a watcher is given the newest event again: it is found out who has gone

Events = Generator[Any, None, None]


class Visit:
    """One drawing. `ended`: when, by time.monotonic(); None while it runs."""

    def __init__(self, events: Events, drawing: str = "") -> None:
        self.drawing, self.ended = drawing, cast(float | None, None)
        self._newest: Any = None
        self._number = 0  # of events so far
        self._error: Exception | None = None
        self._stopped = False
        self._watchers, self._unwatched, self._patience = 0, time.monotonic(), AWAY
        self._changed = threading.Condition()
        threading.Thread(target=self._run, args=(events,), name="visit", daemon=True).start()

    def watch(self) -> Events:
        """What is new, at last what the drawing came to; raises what it raised. Ends early where it is stopped."""
        seen = 0
        with self._changed:
            self._watchers, self._patience = self._watchers + 1, AWAY
        try:
            while True:
                with self._changed:
                    if self._number == seen and self.ended is None and not self._stopped:
                        self._changed.wait(REPEAT)
                    if self._stopped:
                        return
                    seen, newest, ended = self._number, self._newest, self.ended is not None
                if self._error:
                    raise self._error
                if newest is not None:
                    yield newest
                if ended:
                    return
        finally:
            with self._changed:
                self._watchers, self._unwatched = self._watchers - 1, time.monotonic()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def make_way(self) -> None:
        """Waits for its end, where it is stopped."""
        with self._changed:
            if self._stopped:
                self._changed.wait_for(lambda: self.ended is not None, MAKE_WAY)

    def be_patient(self, seconds: float) -> None:
        """How long it may be unwatched, until somebody watches again."""
        with self._changed:
            self._patience = seconds

    def _run(self, events: Events) -> None:
        try:
            with closing(events):
                for event in events:
                    with self._changed:
                        self._newest, self._number = event, self._number + 1
                        self._changed.notify_all()
                        if self._is_given_up():
                            self._newest = None  # its pictures are large
                            return
        except Exception as error:  # whatever it is, it is raised where somebody watches
            self._newest, self._error = None, error
        finally:
            with self._changed:
                self.ended = time.monotonic()
                self._changed.notify_all()

    def _is_given_up(self) -> bool:
        return self._stopped or (not self._watchers and time.monotonic() - self._unwatched > self._patience)


class Visits:
    """The newest visit of every tab. What is asked about an id that is none, or not known, does nothing."""

    def __init__(self) -> None:
        self._newest: dict[str, Visit] = {}  # in the order in which they began
        self._stopped: dict[tuple[str, str], float] = {}  # tabs and drawings that have not begun, and since when
        self._lock = threading.Lock()

    def begin(self, tab: str, events: Events, drawing: str = "") -> Events:
        """What to watch. For a tab without an id these are the events themselves, which end with their watcher."""
        if not re.fullmatch(r"[\w-]{1,64}", tab):
            return events
        if former := self.find(tab):
            former.make_way()
        with self._lock:
            self._forget()
            if self._stopped.pop((tab, drawing), None):
                events.close()
                return _nothing()
            visit = Visit(events, drawing)
            # A duplicated tab has the id of the first, where somebody may be watching.
            if former := self._newest.pop(tab, None):
                former.be_patient(0)
            self._newest[tab] = visit
        return visit.watch()

    def find(self, tab: str) -> Visit | None:
        with self._lock:
            self._forget()
            return self._newest.get(tab)

    def stop(self, tab: str, drawing: str = "") -> None:
        """The tab's drawing of this name, which may be about to begin."""
        with self._lock:
            self._forget()
            visit = self._newest.get(tab)
            if visit and visit.drawing == drawing:
                visit.stop()
            else:
                self._stopped[tab, drawing] = time.monotonic()

    def leave(self, tab: str) -> None:
        """The page of the tab goes, and may come back."""
        if visit := self.find(tab):
            visit.be_patient(LEFT)

    def close(self) -> None:
        """Stop all of them."""
        with self._lock:
            for visit in self._newest.values():
                visit.stop()

    def _forget(self) -> None:
        ended = [(tab, visit.ended) for tab, visit in self._newest.items() if visit.ended is not None]
        for i, (tab, when) in enumerate(reversed(ended), 1):
            if i > SESSIONS or when < time.monotonic() - KEPT:
                del self._newest[tab]
        for i, (key, when) in enumerate(reversed(list(self._stopped.items())), 1):
            if i > SESSIONS or when < time.monotonic() - AWAY:
                del self._stopped[key]


def _nothing() -> Events:
    yield from ()
