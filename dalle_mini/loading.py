"""A model's name to a `Pipeline`: where its networks are, whether they fit together, and what draws.

Contract: a model that cannot be read is a `CheckpointError`, in one sentence that says where it is and what is wrong.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import vqgan
from dalle_mini import device, model_names
from dalle_mini.config import ModelConfig
from dalle_mini.model_names import Preset
from dalle_mini.pipeline import Pipeline
from dalle_mini.sampling_params import whole
from dalle_mini.serving.engine import ROWS, load_engines
from dalle_mini.serving.scheduler import MAX_WAITING, Scheduler
from dalle_mini.tokenizer import Tokenizer
from dalle_mini.vocabulary import Vocabulary
from dalle_mini.web.limits import Limits
from vqgan.files import CheckpointError

if TYPE_CHECKING:
    from clip_rerank import Reranker
    from dalle_mini.serving.ray.scheduler import RayScheduler


def load(
    model: str | Path = "emoji",
    *,
    rerank: bool = True,
    slots: int | None = None,
    max_waiting: int = MAX_WAITING,
    limits: Limits | None = None,
    replicas: int | tuple[int, int] | None = None,
) -> Pipeline:
    """A preset (emoji, mini, mega), a folder or a hub id, ready to draw. `rerank=False` goes without CLIP.

    slots: candidates that each device draws at once, or what its memory holds; at most `max_waiting` requests wait
    for them, and `limits` says what one visitor may ask. Every device of this machine is used; with `replicas`, how
    many or the fewest and the most, Ray's processes draw instead (serving/ray/), and slots and max_waiting are those
    of each. Compiled programs are kept on disk for the next start. Raises `CheckpointError`, and ValueError naming the
    setting.
    """
    if slots is not None:
        whole("slots", slots, ROWS // 2)
    whole("max_waiting", max_waiting, 1)
    device.set_up()
    if replicas is None:  # else Ray forks, which JAX's threads might not survive
        device.check_platforms()
    preset = model_names.find(model)
    if rerank:
        _check_clip(preset)
    with ThreadPoolExecutor(1) as pool:
        reranker = pool.submit(load_reranker, preset.clip) if rerank else None  # torch takes seconds to import
        config, tokenizer = _load_tokenizer(preset.dalle)
        scheduler: Scheduler | RayScheduler
        if replicas is None:
            scheduler = Scheduler(load_engines(preset.dalle, config, slots=slots), max_waiting=max_waiting)
        else:  # before anything is computed here: Ray forks, which JAX's threads might not survive
            scheduler = _ray_scheduler()(model, config, replicas=replicas, slots=slots, max_waiting=max_waiting)
        with ExitStack() as failed:
            failed.callback(scheduler.close)
            card = preset.card.read_text(encoding="utf-8", errors="replace") if preset.card else ""
            pipeline = Pipeline(preset.name, tokenizer, scheduler, _load_vqgan(preset, config), None, card, limits)
            failed.callback(pipeline.close)
            pipeline.vocabulary = Vocabulary.load(preset.dalle)
            pipeline.warm_up()
            pipeline.reranker = reranker.result() if reranker else None
            failed.pop_all()
    return pipeline


def _check_clip(preset: Preset) -> None:
    if isinstance(preset.clip, Path) and not preset.clip.is_dir():
        raise CheckpointError(
            f"{preset.clip.parent} must hold clip/ to rank with, got none: leave ranking out (--no-rerank, "
            "rerank=False) or train one (python -m dalle_mini train clip)"
        )


def load_reranker(location: str | Path, *, setting: str | None = None) -> "Reranker":
    """CLIP from a folder, or by open_clip's MODEL/TAG.

    Raises `CheckpointError`; where a setting says which CLIP, ValueError with its name.
    """
    from clip_rerank import Reranker, RerankerError  # imports torch

    try:
        return Reranker.load(str(location))
    except RerankerError as error:
        if setting:
            raise ValueError(f"{setting} must be a CLIP model: {error}") from None
        raise CheckpointError(str(error)) from None


def _load_tokenizer(folder: Path) -> tuple[ModelConfig, Tokenizer]:
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
    return config, tokenizer


def _load_vqgan(preset: Preset, config: ModelConfig) -> vqgan.VQGAN:
    """The VQGAN whose codes the text-to-code model draws."""
    found = vqgan.load(preset.vqgan)
    if found.config.n_embed != config.codebook_size or found.config.side != config.side:
        raise CheckpointError(
            f"{preset.vqgan} must have {config.codebook_size} codes and a grid of side {config.side} for "
            f"{preset.dalle}, got {found.config.n_embed} and {found.config.side}"
        )
    return found


def _ray_scheduler() -> "type[RayScheduler]":
    try:
        from dalle_mini.serving.ray.scheduler import RayScheduler
    except ModuleNotFoundError as error:
        raise ValueError(f"replicas need Ray: pip install -r requirements-ray.txt ({error})") from error
    return RayScheduler
