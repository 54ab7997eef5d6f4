"""From a prompt to a ranked gallery: the one way through the code, which the page, the API and the command line share.

    prompt ── tokenizer ──► tokens [2, T]             the prompt and the empty prompt
           ── engine ─────► codes  [N, n]             ints in [0, codebook_size)
           ── vqgan ──────► pixels [N, H, W, 3]       uint8
           ── clip_rerank ► scores [N]                higher is better
           ── gallery ────► [Candidate]               best first

Contract: what a gallery shows depends on the model, the prompt, the seed and the sampling params, and nothing else.
A `Pipeline` may be shared by threads; requests are worked off one after another.
"""

import dataclasses
import secrets
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from PIL import Image

import vqgan
from dalle_mini import device, presets
from dalle_mini.checkpoint import load_params
from dalle_mini.config import MAX_SEED, ModelConfig, SamplingParams
from dalle_mini.gallery import Candidate, Gallery, Preview
from dalle_mini.serving.engine import Engine
from dalle_mini.text import without_surrogates
from dalle_mini.tokenizer import TokenizedPrompt, Tokenizer
from vqgan.checkpoint import CheckpointError

if TYPE_CHECKING:
    from clip_rerank import Reranker

UNDRAWN = 128  # the grey of what is not drawn yet


class Pipeline:
    """The loaded networks; see `load`. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        engine: Engine,
        vqgan: vqgan.VQGAN,
        reranker: "Reranker | None",
        model_card: str = "",
    ) -> None:
        self.name, self.model_card = name, model_card
        self.tokenizer, self.engine, self.vqgan, self.reranker = tokenizer, engine, vqgan, reranker
        self._device = threading.Lock()

    def generate(self, prompt: str, **settings: Any) -> Gallery:
        """The ranked gallery of a prompt. `settings` are fields of `SamplingParams`; unset ones are `defaults`.

        Raises ValueError, naming the setting, the rule and the value.
        """
        *_, gallery = self.stream(prompt, **settings)
        assert isinstance(gallery, Gallery)
        return gallery

    def stream(self, prompt: str, **settings: Any) -> Generator[Preview | Gallery, None, None]:
        """As `generate`, with a preview after every row of the grid; the gallery comes last. Closing it stops it."""
        prompt, params = self._checked(prompt, settings)
        return self._walk(prompt, params)

    def _walk(self, prompt: str, params: SamplingParams) -> Generator[Preview | Gallery, None, None]:
        with self._device:
            started = time.perf_counter()
            tokens = self.tokenizer.encode(prompt)  # [2, T]
            codes = yield from self._draw(tokens, params)  # [N, n]
            pixels = self.vqgan.decode(codes)  # [N, H, W, 3]
            scores = self.reranker.score(prompt, pixels).tolist() if self.reranker else [None] * len(pixels)  # [N]
            images = [Image.fromarray(picture) for picture in pixels]
            candidates = [
                Candidate(
                    image=images[i],
                    codes=codes[i],
                    index=i,
                    score=scores[i],
                    prompt=prompt,
                    params=params,
                    model=self.name,
                )
                for i in range(params.num_candidates)
            ]
            seconds = time.perf_counter() - started
        yield Gallery(candidates=candidates, seconds=seconds, notes=self._notes(tokens))

    def _draw(self, tokens: TokenizedPrompt, params: SamplingParams) -> Generator[Preview, None, np.ndarray]:
        """Codes [N, n] of all candidates, row by row."""
        engine, config = self.engine, self.engine.config
        engine.reserve(params.num_candidates)
        slots: list[int] = []
        try:
            prefix = engine.prefill(tokens)
            for i in range(params.num_candidates):
                slots.append(engine.insert(prefix, params, candidate=i))
            images = [self._blank()] * len(slots)
            preview_seconds = 0.0
            for row in range(1, config.side + 1):
                begun = time.perf_counter()
                engine.decode()
                codes = np.stack([engine.codes(slot) for slot in slots])
                drawn = time.perf_counter()
                # Where painting is slower than drawing (large pictures on a CPU), previews would double the wait.
                if row < config.side and preview_seconds <= drawn - begun:
                    images = self._paint_partly(codes)
                    preview_seconds = time.perf_counter() - drawn
                if row < config.side:
                    yield Preview(images=images, row=row, rows=config.side)
        finally:
            for slot in slots:
                engine.evict(slot)
        return codes

    def _paint_partly(self, codes: np.ndarray) -> list[Image.Image]:
        """Pictures of the first rows of codes [N, m], the rest grey."""
        missing = self.engine.config.image_length - codes.shape[1]
        pixels = self.vqgan.decode(np.pad(codes, [(0, 0), (0, missing)], mode="edge")).copy()
        pixels[:, self.resolution * codes.shape[1] // self.engine.config.image_length :] = UNDRAWN
        return [Image.fromarray(picture) for picture in pixels]

    def _blank(self) -> Image.Image:
        return Image.new("RGB", (self.resolution, self.resolution), (UNDRAWN,) * 3)

    def _checked(self, prompt: str, settings: dict[str, Any]) -> tuple[str, SamplingParams]:
        readable = without_surrogates(prompt) if isinstance(prompt, str) else ""
        if not any(c.isprintable() and not c.isspace() for c in readable):
            raise ValueError(f"prompt must not be empty, got {prompt!r}")
        params = dataclasses.replace(self.defaults, **settings)
        if params.seed is None:
            params = dataclasses.replace(params, seed=secrets.randbelow(MAX_SEED + 1))
        return readable, params

    def _notes(self, tokens: TokenizedPrompt) -> list[str]:
        if not tokens.truncated:
            return []
        return [f"the prompt is longer than the model reads and was cut to {self.engine.config.max_text_length} tokens"]

    def warm_up(self) -> None:
        """Compile (or read from the disk) what the first gallery of the default size needs."""
        for _ in self.stream("warm-up", seed=0):
            break
        self.vqgan.decode(np.zeros((self.defaults.num_candidates, self.engine.config.image_length), np.int32))

    @property
    def defaults(self) -> SamplingParams:
        """The model's own sampling params; every way in starts from these."""
        return self.engine.config.sampling

    @property
    def resolution(self) -> int:
        """Pixels along a side of a picture."""
        return self.vqgan.config.resolution

    @property
    def device(self) -> str:
        """What draws, in words."""
        first = jax.devices()[0]
        return "CPU" if first.platform == "cpu" else f"{first.platform.upper()} ({first.device_kind})"

    def close(self) -> None:
        """Give back the memory of the device."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(model: str | Path = "emoji", *, rerank: bool = True) -> Pipeline:
    """A preset (emoji, mini, mega), a folder or a hub id, ready to draw. `rerank=False` goes without CLIP.

    Compiled programs are kept on disk for the next start. Raises `CheckpointError`.
    """
    device.set_up()
    preset = presets.find(model)
    with ThreadPoolExecutor(1) as pool:
        reranker = pool.submit(_load_reranker, preset.clip) if rerank else None  # torch takes seconds to import
        config, tokenizer, engine = _load_dalle(preset.dalle)
        painter = vqgan.load(preset.vqgan)
        if painter.config.n_embed != config.codebook_size or painter.config.side != config.side:
            raise CheckpointError(
                f"{preset.vqgan} must have {config.codebook_size} codes and a grid of side {config.side} for "
                f"{preset.dalle}, got {painter.config.n_embed} and {painter.config.side}"
            )
        card = preset.card.read_text(encoding="utf-8") if preset.card else ""
        pipeline = Pipeline(preset.name, tokenizer, engine, painter, None, card)
        pipeline.warm_up()
        pipeline.reranker = reranker.result() if reranker else None
    return pipeline


def _load_reranker(location: str | Path) -> "Reranker":
    from clip_rerank import Reranker, RerankerError  # imports torch

    try:
        return Reranker.load(str(location))
    except RerankerError as error:
        raise CheckpointError(str(error)) from None


def _load_dalle(folder: str | Path) -> tuple[ModelConfig, Tokenizer, Engine]:
    folder = Path(folder)
    try:
        config = ModelConfig.from_json(folder / "config.json")
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    tokenizer = Tokenizer.load(folder, max_text_length=config.max_text_length, normalize=config.normalize_text)
    if tokenizer.vocab_size > config.encoder_vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer must know at most the model's {config.encoder_vocab_size} tokens, "
            f"got {tokenizer.vocab_size}"
        )
    return config, tokenizer, Engine(config, load_params(folder, config, dtype=config.param_dtype))
