"""From a prompt to a ranked gallery: the one way through the code, which the page, the API and the command line share.

    prompt ── tokenizer ──► tokens [2, T]             the prompt and the negative prompt
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
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

import vqgan
from dalle_mini.config import ModelConfig
from dalle_mini.gallery import Candidate, Gallery, Preview, read_recipe
from dalle_mini.notes import Note
from dalle_mini.reconstruction import Reconstruction, reconstruct
from dalle_mini.sampling_params import MAX_SEED, SamplingParams
from dalle_mini.seamless import middle, surrounded
from dalle_mini.serving.batcher import Batcher
from dalle_mini.serving.previews import Previews
from dalle_mini.serving.refusals import QueueFullError
from dalle_mini.serving.request import Waiting
from dalle_mini.serving.scheduler import HEARTBEAT, Scheduler
from dalle_mini.start import Source, Start, check, source
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
        vqgan: vqgan.Codec,
        reranker: "Reranker | None",
        model_card: str = "",
        limits: Limits | None = None,
    ) -> None:
        self.name, self.model_card, self.limits = name, model_card, limits or Limits()
        self.vocabulary: Vocabulary | None = None  # what it was trained on, where its folder says so
        self.metrics = scheduler.metrics
        self.tokenizer, self.scheduler, self.vqgan, self.reranker = tokenizer, scheduler, vqgan, reranker
        self._encode = Batcher(self._codes, most=BATCH)
        self._weigh = Batcher(self._likelihoods, most=1)
        self._paint = Batcher(self._pixels, most=BATCH)
        self._rank = Batcher(self._scores, most=BATCH)

    def generate(self, prompt: str, **settings: Any) -> Gallery:
        """The ranked gallery of a prompt. `settings` are fields of `SamplingParams`; unset ones are `defaults`.

        start: a picture (a path, or of Pillow), whose middle square is encoded, a candidate, or codes. keep: which of
        its codes are given, the others being drawn: a number of rows from above, by default half of them, or a boolean
        for every place of the grid. strength, instead of keep: the share of codes that each candidate gives up, beside
        what then no longer fits.
        Raises ValueError, naming the setting, the rule and the value.
        """
        *_, gallery = self.stream(prompt, previews=False, **settings)
        assert isinstance(gallery, Gallery)
        return gallery

    def redraw(self, picture: Path | str) -> Candidate:
        """The candidate that a PNG of ours is of, drawn again from what its text says. Raises ValueError."""
        recipe, index, model = read_recipe(picture)
        if model != self.name:
            raise ValueError(f"picture must be drawn by the model {self.name}, got one by {model}")
        gallery = self.generate(**recipe | {"num_candidates": index + 1})
        (found,) = (candidate for candidate in gallery if candidate.index == index)
        params = dataclasses.replace(found.params, num_candidates=recipe["num_candidates"])
        return dataclasses.replace(found, params=params)

    def reconstruct(self, picture: Image.Image) -> Reconstruction:
        """What the model's codes keep of a picture: its centred square, encoded and decoded again."""
        return reconstruct(self.vqgan, picture)

    def stream(
        self, prompt: str, *, visitor: str = "", previews: bool = True, **settings: Any
    ) -> Generator[Waiting | Preview | Gallery, None, None]:
        """As `generate`: at times a place in line, a preview after every row of the grid, the gallery last.

        Without `previews` nothing is painted before the gallery: a preview then only counts the rows. Closing the
        stream stops it. Visitors take turns. Raises RefusedError, at the first event, where too many wait, the visitor
        asks too often, or the pipeline is being closed.
        """
        prompt, params, begin = self.checked(prompt, settings)
        return self._admitted(prompt, params, begin, visitor, previews)

    def checked(self, prompt: str, settings: dict[str, Any]) -> tuple[str, SamplingParams, Source | None]:
        """All of a request, before it waits: also what to start from, where that is not codes of a PNG already.

        Raises ValueError, which counts as a refusal.
        """
        try:
            shown, begin = readable(prompt), None
            start, keep, strength = settings.get("start"), settings.pop("keep", None), settings.pop("strength", None)
            sizes = {"image_length": self.config.image_length, "codebook_size": self.config.codebook_size}
            if not isinstance(start, Start | Mapping | None):
                begin = source(settings.pop("start"), keep, strength, resolution=self.resolution, **sizes)
            for name, value in (("keep", keep), ("strength", strength)):
                if value is not None and not begin:
                    raise ValueError(f"{name} must come with a start, which is a picture or codes, got {value!r}")
            params = dataclasses.replace(self.defaults, **settings)
            if params.start:
                check(params.start, **sizes)
        except ValueError:
            self.metrics.ended("refused")
            raise
        if params.seed is None:
            params = dataclasses.replace(params, seed=secrets.randbelow(MAX_SEED + 1))
        return shown, params, begin

    def _admitted(
        self, prompt: str, params: SamplingParams, begin: Source | None, visitor: str, previews: bool
    ) -> Generator[Waiting | Preview | Gallery, None, None]:
        with self.metrics.request(), self.limits.admit(visitor):
            if self.metrics.open > self.scheduler.capacity:  # painting is slower than drawing, and has no line
                raise QueueFullError(self.metrics.open - 1, None)
            gallery = yield from self._walk(prompt, params, begin, visitor, previews)
        yield gallery

    def _walk(
        self, prompt: str, params: SamplingParams, begin: Source | None, visitor: str, previews: bool
    ) -> Generator[Waiting | Preview, None, Gallery]:
        tokens = self.tokenizer.encode(prompt, params.negative_prompt)  # [2, T]
        prompt = prompt[:MAX_CHARACTERS]  # the rest is no part of the picture; CLIP would read it for minutes
        params = dataclasses.replace(params, negative_prompt=params.negative_prompt[:MAX_CHARACTERS])
        if begin:
            params = yield from self._started(params, begin, tokens)
        codes, drawn, begun = yield from self._draw(tokens, params, visitor, previews)  # N of [n]
        notes = self._notes(tokens, params, whole=len(codes))
        with self.metrics.stage("painting"):
            grids = [surrounded(each, params.seamless) if params.seamless else each for each in codes.values()]
            pixels = yield from _results(self._paint.submit(grids), drawn)  # N of [H, W, 3]
        scores: Sequence[float | None] = [None] * len(pixels)  # [N]
        if self.reranker:
            with self.metrics.stage("ranking"):
                scores = yield from _results(self._rank.submit([(prompt, picture) for picture in pixels]), drawn)
        # What is not a picture's own is not in its file.
        common: dict[str, Any] = {"prompt": prompt, "model": self.name, "generate": self.generate}
        common["params"] = dataclasses.replace(params, show=None, seconds=None)
        candidates = [
            Candidate(image=Image.fromarray(picture), codes=codes[i], index=i, score=score, **common)
            for i, picture, score in zip(codes, pixels, scores, strict=True)
        ]
        ranked = Gallery(candidates=candidates, seconds=time.perf_counter() - begun, notes=notes)
        return dataclasses.replace(ranked, candidates=ranked[: params.show])

    def _started(
        self, params: SamplingParams, begin: Source, tokens: TokenizedPrompt
    ) -> Generator[Preview, None, SamplingParams]:
        """The params with what is given."""
        before = Preview(images=self._previews(params.num_candidates).images, row=0, rows=self.config.side)
        with self.metrics.stage("encoding"):
            codes, keep = begin.codes, begin.keep
            if begin.pixels is not None:
                (codes,) = yield from _results(self._encode.submit([begin.pixels]), before)
            assert codes is not None
            if begin.strength is not None:
                (likelihoods,) = yield from _results(self._weigh.submit([(tokens, codes)]), before)
                return dataclasses.replace(params, start=Start.varied(codes, likelihoods, begin.strength))
        return dataclasses.replace(params, start=Start.of(codes, keep))

    def _draw(
        self, tokens: TokenizedPrompt, params: SamplingParams, visitor: str, previews: bool
    ) -> Generator[Waiting | Preview, None, tuple[dict[int, np.ndarray], Preview, float]]:
        """Codes [n] of the candidates, row by row, their last preview, and the time when their turn came."""
        turn, side, pictures = time.perf_counter(), self.config.side, self._previews(params.num_candidates)
        with closing(self.scheduler.stream(tokens, params, visitor=visitor)) as events, closing(pictures):
            for event in events:
                if isinstance(event, Waiting):
                    turn = time.perf_counter()
                    yield event
                    continue
                whole = {i: codes for i, codes in enumerate(event.codes) if len(codes) == self.config.image_length}
                late = params.seconds is not None and time.perf_counter() >= turn + params.seconds
                if len(whole) == params.num_candidates or (whole and late):
                    break
                row = sum(map(len, event.codes)) // (params.num_candidates * side)
                images = pictures.update(event.codes) if previews else pictures.images
                yield Preview(images=images, row=row, rows=side, painted=pictures.painted // side)
        return whole, Preview(images=pictures.images, row=side, rows=side, painted=pictures.painted // side), turn

    def _previews(self, candidates: int) -> Previews:
        sizes = {"image_length": self.config.image_length, "resolution": self.resolution}
        return Previews(self._paint, candidates=candidates, **sizes)

    def _codes(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.vqgan.encode(np.stack(pictures)))

    def _likelihoods(self, pairs: list[tuple[TokenizedPrompt, np.ndarray]]) -> list[np.ndarray]:
        return [self.scheduler.likelihoods(tokens, codes) for tokens, codes in pairs]

    def _pixels(self, grids: list[np.ndarray]) -> list[np.ndarray]:
        painted: dict[int, np.ndarray] = {}
        for size in {len(grid) for grid in grids}:  # those of seamless pictures are larger
            alike = [i for i, grid in enumerate(grids) if len(grid) == size]
            pixels = self.vqgan.decode(np.stack([grids[i] for i in alike]))
            painted |= zip(alike, (middle(picture, self.resolution) for picture in pixels), strict=True)
        return [painted[i] for i in range(len(grids))]

    def _scores(self, pairs: list[tuple[str, np.ndarray]]) -> list[float]:
        assert self.reranker is not None
        prompts, pictures = zip(*pairs, strict=True)
        return self.reranker.score(prompts, np.stack(pictures)).tolist()

    def _notes(self, tokens: TokenizedPrompt, params: SamplingParams, *, whole: int) -> list[Note]:
        length, notes = self.config.max_text_length, list[Note]()
        if self.vocabulary:
            notes += self.vocabulary.notes(tokens.text)
            notes += [Note("negative", note=note) for note in self.vocabulary.notes(tokens.negative)]
        if tokens.truncated:
            notes.append(Note("cut", length=length))
        if tokens.negative_truncated:
            notes.append(Note("cut-negative", length=length))
        if tokens.negative and params.condition_scale == 1:
            notes.append(Note("no-guidance"))
        if whole < params.num_candidates:
            notes.append(Note("late", whole=whole, asked=params.num_candidates, seconds=f"{params.seconds:g}"))
        return notes

    def warm_up(self) -> None:
        """Compile (or read from the disk) what the first gallery needs."""
        with closing(self._walk("warm-up", dataclasses.replace(self.defaults, seed=0), None, "", False)) as events:
            next(event for event in events if isinstance(event, Preview))

    def warm_up_rest(self) -> Iterator[None]:
        """One program after another, what a crowd needs, and who starts from a picture or wants one that tiles."""
        yield from self.scheduler.warm_up()
        pixels = np.zeros((self.resolution, self.resolution, 3), np.uint8)
        codes = self._encode.submit([pixels])[0].result()
        yield
        self._weigh.submit([(self.tokenizer.encode("warm-up"), codes)])[0].result()
        yield
        self._paint.submit([surrounded(codes, "both")], urgent=False)[0].result()

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
        return self.vqgan.resolution

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
        self._encode.close()
        self._weigh.close()
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
