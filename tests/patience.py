"""Waiting for what other threads and processes do, at whatever pace the machine has."""

import time
from collections.abc import Callable
from typing import Any


def eventually(holds: Callable[[], Any], seconds: float = 60) -> bool:
    """Whether it came to hold within the time."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(holds())
