"""Turns between visitors: in which order the requests in line are drawn.

Visitors take turns, a request a turn, so that somebody with ten requests is not ahead of somebody with one. A visitor's
own requests keep their order.

Contract: one thread at a time; the scheduler holds its lock.
"""

import itertools
from collections import OrderedDict, deque

from dalle_mini.serving.request import Request


class Turns:
    """A line of requests for every visitor; its length is all that wait."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Request]] = OrderedDict()  # visitors in the order of their turns

    def join(self, request: Request) -> None:
        """Put a request at the end of its visitor's line."""
        self._lines.setdefault(request.visitor, deque()).append(request)

    def join_first(self, request: Request) -> None:
        """Put a request before all others: it has had its turn and lost what was drawn."""
        self._lines.setdefault(request.visitor, deque()).appendleft(request)
        self._lines.move_to_end(request.visitor, last=False)

    def leave(self, request: Request) -> None:
        """Take a request out, if it is in line."""
        line = self._lines.get(request.visitor)
        if line and request in line:
            line.remove(request)
            if not line:
                del self._lines[request.visitor]
            elif request.started:  # this was the visitor's turn
                self._lines.move_to_end(request.visitor)

    def order(self) -> list[Request]:
        """All that wait, who is next first."""
        turns = itertools.zip_longest(*self._lines.values())
        return [request for turn in turns for request in turn if request is not None]

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))
