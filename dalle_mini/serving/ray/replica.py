"""One replica: a process with the text-to-code model and a scheduler of its own, which Ray Serve starts and asks."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dalle_mini import device, model_names
from dalle_mini.config import ModelConfig
from dalle_mini.sampling_params import SamplingParams
from dalle_mini.serving.engine import load_engines
from dalle_mini.serving.request import Drawing, Waiting
from dalle_mini.serving.scheduler import Scheduler
from dalle_mini.tokenizer import TokenizedPrompt

MANY = 10_000  # requests at one replica, more than its scheduler takes: that refuses first, and says how long it takes


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
            load_engines(model_names.find(model).dalle, config, slots=slots), max_waiting=max_waiting
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

    async def likelihoods(self, tokens: TokenizedPrompt, codes: np.ndarray) -> np.ndarray:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._scheduler.likelihoods, tokens, codes)

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
