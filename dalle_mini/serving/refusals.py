"""Requests that are not drawn, and why: every refusal is a RefusedError, whose message is a sentence for people."""


class RefusedError(Exception):
    """A request that is not drawn. The message says why, and when to try again."""


class LimitError(RefusedError):
    """A visitor asks for more than one visitor may."""


class QueueFullError(RefusedError):
    """There is no place in line. `seconds` until all of it would have begun, or None where nothing was measured yet."""

    def __init__(self, waiting: int, seconds: float | None) -> None:
        super().__init__(waiting, seconds)  # so that it can be pickled
        self.seconds = seconds

    def __str__(self) -> str:
        when = "later" if self.seconds is None else f"in about {max(1, round(self.seconds))} s"
        return f"{self.args[0]} requests are waiting already: please try again {when}"


class ClosedError(RefusedError):
    """The server is stopping and takes no more requests."""

    def __str__(self) -> str:
        return "the server is stopping: please try again later"
