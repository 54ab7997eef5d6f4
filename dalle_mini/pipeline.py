"""From a prompt to a ranked gallery: the one way through the code, which the page, the API and the command line share.

    prompt ── tokenizer ──► tokens [2, T]             the prompt and the empty prompt
           ── engine ─────► codes  [N, n]             ints in [0, codebook_size)
           ── vqgan ──────► pixels [N, H, W, 3]       uint8
           ── clip_rerank ► scores [N]                higher is better
           ── gallery ────► [Candidate]               best first

Contract: what a gallery shows depends on the model, the prompt, the seed and the sampling params, and nothing else.
A `Pipeline` may be shared by threads: their requests are drawn together (serving/scheduler.py), and so are they painted
and ranked (serving/batcher.py); previews are painted in between (serving/previews.py).
"""

import dataclasses
import secrets
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

import vqgan
from dalle_mini.config import ModelConfig
from dalle_mini.gallery import Candidate, Gallery, Preview
from dalle_mini.sampling_params import MAX_SEED, SamplingParams
from dalle_mini.serving.batcher import Batcher
from dalle_mini.serving.previews import Previews
from dalle_mini.serving.refusals import QueueFullError
from dalle_mini.serving.request import Waiting
from dalle_mini.serving.scheduler import HEARTBEAT, Scheduler
from dalle_mini.text import readable
from dalle_mini.tokenizer import MAX_CHARACTERS, TokenizedPrompt, Tokenizer
from dalle_mini.vocabulary import Vocabulary
from dalle_mini.web.limits import Limits

if TYPE_CHECKING:
    from clip_rerank import Reranker
    from dalle_mini.serving.ray.scheduler import RayScheduler

BATCH = 16  # pictures that are painted or ranked in one go


class Pipeline:
    """The loaded networks; see loading.py. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        scheduler: "Scheduler | RayScheduler",
        vqgan: vqgan.VQGAN,
        reranker: "Reranker | None",
        model_card: str = "",
        limits: Limits | None = None,
    ) -> None:
        self.name, self.model_card, self.limits = name, model_card, limits or Limits()
        self.vocabulary: Vocabulary | None = None  # what it was trained on, where its folder says so
        self.metrics = scheduler.metrics
        self.tokenizer, self.scheduler, self.vqgan, self.reranker = tokenizer, scheduler, vqgan, reranker
        self._paint = Batcher(self._pixels, most=BATCH)
        self._rank = Batcher(self._scores, most=BATCH)

    def generate(self, prompt: str, **settings: Any) -> Gallery:
        """The ranked gallery of a prompt. `settings` are fields of `SamplingParams`; unset ones are `defaults`.

        Raises ValueError, naming the setting, the rule and the value.
        """
        *_, gallery = self.stream(prompt, previews=False, **settings)
        assert isinstance(gallery, Gallery)
        return gallery

    def stream(
        self, prompt: str, *, visitor: str = "", previews: bool = True, **settings: Any
    ) -> Generator[Waiting | Preview | Gallery, None, None]:
        """As `generate`: at times a place in line, a preview after every row of the grid, the gallery last.

        Without `previews` nothing is painted before the gallery: a preview then only counts the rows. Closing the
        stream stops it. Visitors take turns. Raises RefusedError, at the first event, where too many wait, the visitor
        asks too often, or the pipeline is being closed.
        """
        prompt, params = self.checked(prompt, settings)
        return self._admitted(prompt, params, visitor, previews)

    def checked(self, prompt: str, settings: dict[str, Any]) -> tuple[str, SamplingParams]:
        """The prompt as it is read, and the settings with a seed. Raises ValueError, which counts as a refusal."""
        try:
            shown = readable(prompt)
            params = dataclasses.replace(self.defaults, **settings)
        except ValueError:
            self.metrics.ended("refused")
            raise
        if params.seed is None:
            params = dataclasses.replace(params, seed=secrets.randbelow(MAX_SEED + 1))
        return shown, params

    def _admitted(
        self, prompt: str, params: SamplingParams, visitor: str, previews: bool
    ) -> Generator[Waiting | Preview | Gallery, None, None]:
        with self.metrics.request(), self.limits.admit(visitor):
            if self.metrics.open > self.scheduler.capacity:  # painting is slower than drawing, and has no line
                raise QueueFullError(self.metrics.open - 1, None)
            gallery = yield from self._walk(prompt, params, visitor, previews)
        yield gallery

    def _walk(
        self, prompt: str, params: SamplingParams, visitor: str, previews: bool
    ) -> Generator[Waiting | Preview, None, Gallery]:
        tokens = self.tokenizer.encode(prompt)  # [2, T]
        prompt = prompt[:MAX_CHARACTERS]  # the rest is no part of the picture; CLIP would read it for minutes
        codes, drawn, begun = yield from self._draw(tokens, params, visitor, previews)  # [N, n]
        with self.metrics.stage("painting"):
            pixels = yield from _results(self._paint.submit(codes), drawn)  # [N, H, W, 3]
        scores: Sequence[float | None] = [None] * len(pixels)  # [N]
        if self.reranker:
            with self.metrics.stage("ranking"):
                scores = yield from _results(self._rank.submit([(prompt, picture) for picture in pixels]), drawn)
        candidates = [
            Candidate(
                image=Image.fromarray(pixels[i]),
                codes=codes[i],
                index=i,
                score=scores[i],
                prompt=prompt,
                params=params,
                model=self.name,
            )
            for i in range(params.num_candidates)
        ]
        return Gallery(candidates=candidates, seconds=time.perf_counter() - begun, notes=self._notes(tokens))

    def _draw(
        self, tokens: TokenizedPrompt, params: SamplingParams, visitor: str, previews: bool
    ) -> Generator[Waiting | Preview, None, tuple[Sequence[np.ndarray], Preview, float]]:
        """Codes [N, n] of all candidates, row by row, their last preview, and the time when their turn came."""
        turn = time.perf_counter()
        side, sizes = self.config.side, {"image_length": self.config.image_length, "resolution": self.resolution}
        pictures = Previews(self._paint, candidates=params.num_candidates, **sizes)
        with closing(self.scheduler.stream(tokens, params, visitor=visitor)) as events, closing(pictures):
            for event in events:
                if isinstance(event, Waiting):
                    turn = time.perf_counter()
                    yield event
                    continue
                codes = event.codes
                row = sum(map(len, codes)) // (params.num_candidates * side)
                if row == side:
                    break
                images = pictures.update(codes) if previews else pictures.images
                yield Preview(images=images, row=row, rows=side, painted=pictures.painted // side)
        return codes, Preview(images=pictures.images, row=side, rows=side, painted=pictures.painted // side), turn

    def _pixels(self, grids: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.vqgan.decode(np.stack(grids)))

    def _scores(self, pairs: list[tuple[str, np.ndarray]]) -> list[float]:
        assert self.reranker is not None
        prompts, pictures = zip(*pairs, strict=True)
        return self.reranker.score(prompts, np.stack(pictures)).tolist()

    def _notes(self, tokens: TokenizedPrompt) -> list[str]:
        notes = self.vocabulary.notes(tokens.text) if self.vocabulary else []
        if tokens.truncated:
            notes.append(
                f"the prompt is longer than the model reads and was cut to {self.config.max_text_length} tokens"
            )
        return notes

    def warm_up(self) -> None:
        """Compile (or read from the disk) what the first gallery needs; `scheduler.warm_up()` what a crowd needs."""
        with closing(self._walk("warm-up", dataclasses.replace(self.defaults, seed=0), "", False)) as events:
            next(event for event in events if isinstance(event, Preview))

    @property
    def config(self) -> ModelConfig:
        """Sizes of the text-to-code model."""
        return self.scheduler.config

    @property
    def defaults(self) -> SamplingParams:
        """The model's own sampling params; every way in starts from these."""
        return self.config.sampling

    @property
    def resolution(self) -> int:
        """Pixels along a side of a picture."""
        return self.vqgan.config.resolution

    @property
    def device(self) -> str:
        """What draws, in words."""
        return self.scheduler.device

    def close(self, seconds: float = 0.0) -> None:
        """Take no more requests, let those that run finish for `seconds`, and give back the memory of the devices."""
        deadline = time.monotonic() + seconds
        self.scheduler.close(seconds)
        while self.metrics.open and time.monotonic() < deadline:  # they are being painted and ranked
            time.sleep(0.01)
        self._paint.close()
        self._rank.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _results(jobs: "list[Future[Any]]", drawn: Preview) -> Generator[Preview, None, list[Any]]:
    """What the jobs come to. Until then `drawn` is repeated: who has gone is found out, and the jobs are cancelled."""
    try:
        while wait(jobs, HEARTBEAT).not_done:
            yield drawn
        return [job.result() for job in jobs]
    finally:
        for job in jobs:
            job.cancel()
