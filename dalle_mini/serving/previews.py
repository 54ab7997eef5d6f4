"""The pictures of one request while it is drawn: the rows so far, and grey below them.

Contract: `update` waits for the painter, who has others to paint for, no longer than `PATIENCE`: then the pictures are
older than the codes. So rows go on, and whoever leaves is noticed, however long painting takes.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait

import numpy as np
from PIL import Image

from dalle_mini.serving.batcher import Batcher

PATIENCE = 0.1  # seconds
UNDRAWN = 128  # the grey of what is not drawn yet


class Previews:
    """`images`: the newest pictures, one for each candidate; another list only where one of them has changed.

    `painted`: codes that every one of them shows, at least.
    """

    def __init__(
        self, paint: Batcher[np.ndarray, np.ndarray], *, candidates: int, image_length: int, resolution: int
    ) -> None:
        self._paint, self._length, self._resolution = paint, image_length, resolution
        self._blank = Image.new("RGB", (resolution, resolution), (UNDRAWN,) * 3)
        self.images = [self._blank] * candidates
        self.painted = 0
        self._drawn: list[int] = []  # codes of every candidate that are, or are being, painted
        self._jobs: dict[int, Future[np.ndarray]] = {}  # by candidate
        self._asked, self._next = 0.0, 0.0

    def update(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        """The pictures of the codes so far, int [n] of every candidate, or older ones."""
        now, drawn = time.perf_counter(), [len(some) for some in codes]
        # Where painting is slower than drawing (large pictures, a crowd), previews take half of its time at most.
        if not self._jobs and drawn != self._drawn and now >= self._next:
            begun = [i for i, number in enumerate(drawn) if number]
            grids = [np.pad(codes[i], (0, self._length - drawn[i]), mode="edge") for i in begun]
            self._asked, self._drawn = now, drawn
            self._jobs = dict(zip(begun, self._paint.submit(grids, urgent=False), strict=True))
        if self._jobs and not wait(self._jobs.values(), max(0.0, self._asked + PATIENCE - now)).not_done:
            self.images, self.painted = [self._cut(i) for i in range(len(codes))], min(self._drawn)
            self._jobs, now = {}, time.perf_counter()
            self._next = now + (now - self._asked)
        return self.images

    def _cut(self, candidate: int) -> Image.Image:
        if candidate not in self._jobs:
            return self._blank
        pixels = self._jobs[candidate].result().copy()  # [H, W, 3]
        pixels[self._resolution * self._drawn[candidate] // self._length :] = UNDRAWN
        return Image.fromarray(pixels)

    def close(self) -> None:
        """Leave unpainted what has not begun."""
        for job in self._jobs.values():
            job.cancel()
