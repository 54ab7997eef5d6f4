"""The embedded model at a pace at which what happens while it draws can be watched."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import dalle_mini
from dalle_mini.gallery import Gallery, Preview


class Slow:
    """A pipeline with a pause after every event, which counts streams that began and that were closed early."""

    def __init__(self, pipeline: dalle_mini.Pipeline) -> None:
        self.pipeline, self.begun, self.closed_early = pipeline, 0, 0
        self.pause: Callable[[], Any] = lambda: time.sleep(0.2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def stream(self, prompt: str, **settings: Any) -> Iterator[Preview | Gallery]:
        self.begun += 1
        events = self.pipeline.stream(prompt, **settings)
        try:
            for event in events:
                yield event
                self.pause()
        except GeneratorExit:
            self.closed_early += 1
            raise
        finally:
            events.close()
