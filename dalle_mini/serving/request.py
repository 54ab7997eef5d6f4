"""One request for candidates: what was asked for, how far it is, and what its stream tells.

Contract: whoever reads or changes a `Request` holds its scheduler's lock, which `changed` is a condition of.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from dalle_mini.sampling_params import SamplingParams
from dalle_mini.serving.engine import Slot
from dalle_mini.tokenizer import TokenizedPrompt


@dataclass(frozen=True)
class Waiting:
    place: int  # in line, counted from 1
    seconds: float | None  # until drawing begins, an estimate


@dataclass(frozen=True)
class Drawing:
    """The codes so far, int [n] of every candidate; n is image_length for all of them in the last event."""

    codes: tuple[np.ndarray, ...]


@dataclass(eq=False)
class Request:
    tokens: TokenizedPrompt
    params: SamplingParams
    visitor: str
    changed: threading.Condition
    asked: float = field(default_factory=time.monotonic)
    begun: float = 0.0  # when its first candidate had a slot
    codes: list[np.ndarray] = field(default_factory=list)
    slots: dict[int, Slot] = field(default_factory=dict)  # candidate -> where it is being drawn
    started: int = 0  # candidates that have had a slot
    events: deque[Drawing] = field(default_factory=deque)  # that its stream has not yielded yet
    attempts: int = 0
    cancelled: bool = False
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.slots, self.started = {}, 0
        self.codes = [np.empty(0, np.int32)] * self.params.num_candidates
        self.events.clear()

    @property
    def unstarted(self) -> int:
        return self.params.num_candidates - self.started

    def fail(self, error: Exception) -> None:
        self.error = error
        self.changed.notify_all()
