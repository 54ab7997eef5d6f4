"""Waiting for what other threads and processes do, at whatever pace the machine has."""

import time
from collections.abc import Callable
from typing import TypeVar

Held = TypeVar("Held")


def eventually(holds: Callable[[], Held], seconds: float = 60) -> Held:
    """What it gave once it held, or at the end of the time."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return held
