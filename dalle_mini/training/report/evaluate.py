"""How good is a model? What it draws, what its codes keep, how well it predicts: one report and one picture.

Contract: `evaluate` asks a pipeline for captions whose true pictures are known: those of a source, or scenes of the
emoji world whose combinations training never saw. The report holds what could be measured and nothing else: without
CLIP, no CLIP score and no FID; template accuracy and the number of different right pictures for the emoji world alone.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from tqdm import tqdm

from dalle_mini.pictures import square
from dalle_mini.pipeline import Pipeline
from dalle_mini.serving.engine import Engine
from dalle_mini.serving.scheduler import Scheduler
from dalle_mini.training.dalle.loss import Batch, row_losses
from dalle_mini.training.dalle.validation import mean_loss
from dalle_mini.training.data.rows import read_samples
from dalle_mini.training.data.shards import fingerprint, held_back, read_codes
from dalle_mini.training.data.skipped import Report
from dalle_mini.training.data.sources import open_source
from dalle_mini.training.emoji.judge import different_right, percentages_right
from dalle_mini.training.emoji.scene import Scene
from dalle_mini.training.emoji.world import World
from dalle_mini.training.report.quality import codebook_use, frechet_distance, psnr, ssim
from dalle_mini.training.report.report_picture import Row, draw_report

if TYPE_CHECKING:
    from clip_rerank import Reranker

LOSS_ROWS = 16  # of one call: the logits of mega for them take 270 MB
ENCODER_SPELLS = (
    "Of the codes that the VQGAN's encoder gives. A model that was trained on other codes for the same pictures, as "
    "the embedded one was (training/tasks/from_emoji.py), does not predict these, however well it draws."
)
SHOWN = 24  # captions in the picture, at most


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """Captions to draw and their true pictures, M of each; `scenes` and `world` only for the emoji world."""

    source: str
    captions: list[str]
    truth: UInt8[np.ndarray, "M H W 3"]
    scenes: list[Scene] | None = None
    world: World | None = None


def emoji_questions(world: World, *, captions: int = 200, names: int = 0, seed: int = 0) -> Questions:
    """Scenes with a combination that training never saw; and the first `names` objects, each by its name alone."""
    rng = np.random.default_rng((seed, 1_000_003))  # not the stream that training's validation set is from
    scenes = [world.draw_held(rng) for _ in range(captions)] + [world.bare(name) for name in world.names[:names]]
    return Questions(
        source="held-out scenes of the emoji world",
        captions=[scene.caption for scene in scenes],
        truth=np.stack([world.paint(scene) for scene in scenes]),
        scenes=scenes,
        world=world,
    )


def source_questions(source: str | Path, resolution: int, *, captions: int = 200) -> Questions:
    """The first samples of a source that are of use (see training/data/rows.py), cropped to squares as encode does.

    Raises ValueError if there is none.
    """
    report = Report()
    samples = list(islice(read_samples(open_source(source), report), captions))
    if not samples:
        raise ValueError(f"data must hold pictures with captions, got {report.summary()} in {str(source)!r}")
    pictures = [square(sample.image, resolution) for sample in samples]
    return Questions(source=str(source), captions=[sample.caption for sample in samples], truth=np.stack(pictures))


def evaluate(
    pipeline: Pipeline,
    questions: Questions,
    *,
    condition_scales: Sequence[float] = (),
    num_candidates: int | None = None,
    shards: Sequence[Path] = (),
    features: "Reranker | None" = None,
) -> tuple[dict[str, Any], Image.Image]:
    """Everything that can be measured, for a JSON file, and a picture of it.

    condition_scales: each gives a row of the report, and several a curve; the model's own when left out. features:
    the CLIP that measures, the pipeline's own when left out. shards: what `encode` wrote: the validation loss is of the
    rows that training on it holds back; without shards it is of the questions' captions and pictures.
    """
    defaults = pipeline.defaults
    candidates = defaults.num_candidates if num_candidates is None else num_candidates
    settings = [
        dataclasses.replace(defaults, num_candidates=candidates, condition_scale=scale)
        for scale in condition_scales or [defaults.condition_scale]
    ]
    judges = _Judges(pipeline, questions, features or pipeline.reranker)
    codes, size = pipeline.vqgan.encode(questions.truth), pipeline.vqgan.codebook_size
    rebuilt = pipeline.vqgan.decode(codes)
    report: dict[str, Any] = {
        "model": pipeline.name,
        "captions": {"source": questions.source, "number": len(questions.captions)},
        "candidates": candidates,
        "sampling": {name: getattr(defaults, name) for name in ("temperature", "top_k", "top_p")},
        **judges.about(),
        "validation_loss": _validation_loss(pipeline, questions, codes, shards),
        "reconstruction": _reconstruction(questions.truth, rebuilt, np.bincount(codes.ravel(), minlength=size))
        | judges.opinions({"rebuilt": rebuilt}, flat=True),
        "drawn": [],
    }
    rows = [Row("true", questions.truth[:SHOWN]), Row("VQGAN alone", rebuilt[:SHOWN])]
    for params in settings:
        drawn, different = _draw(pipeline, questions, dataclasses.asdict(params))
        report["drawn"].append({"condition_scale": params.condition_scale, **judges.opinions(drawn), **different})
        which, pictures = next(iter(drawn.items()))
        rows.append(Row(f"scale {params.condition_scale:g}, {which}", pictures[:SHOWN]))
    report = _rounded(report)
    return report, draw_report(report, questions.captions[:SHOWN], rows)


class _Judges:
    """What is said of pictures that were drawn for the questions: by CLIP, and by the templates of the emoji world."""

    def __init__(self, pipeline: Pipeline, questions: Questions, clip: "Reranker | None") -> None:
        self._questions, self._clip = questions, clip
        self._own = clip is pipeline.reranker
        self._name = f"{pipeline.name}'s own CLIP" if self._own else getattr(clip, "name", "")
        if clip:
            self._truth = clip.features(questions.truth)

    def about(self) -> dict[str, Any]:
        """The entry of the report on the CLIP that measures; none without one."""
        if not self._clip:
            return {}
        number, width = self._truth.shape
        note = (
            f"FID on the image features of {self._name} ({width} numbers a picture), {number} drawn against {number} "
            "true pictures. Small sets make it too large: compare only figures of the same features and number."
        )
        if self._own:
            note += " The CLIP that measures is the one that ranks, which flatters the best."
        scores = self._clip.score(self._questions.captions, self._questions.truth)
        facts = {"name": self._name, "features": width, "score_of_true_pictures": scores.mean(), "note": note}
        styles = np.array([scene.style for scene in self._questions.scenes or []])
        if len(set(styles)) > 1:  # a style that scores higher is one that the best of nine always has
            facts["score_of_styles"] = {style: scores[styles == style].mean() for style in sorted(set(styles))}
        return {"clip": facts}

    def opinions(self, sets: dict[str, np.ndarray], *, flat: bool = False) -> dict[str, Any]:
        """measure -> name of the set -> value; `flat`, for a single set, leaves the name out."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, pictures in sets.items():
            if self._clip:
                found["clip_score"][name] = self._clip.score(self._questions.captions, pictures).mean()
                if len(pictures) > 1:
                    found["fid"][name] = frechet_distance(self._truth, self._clip.features(pictures))
            if self._questions.world and self._questions.scenes:
                right = percentages_right(self._questions.world, self._questions.scenes, pictures)
                found["template_accuracy"][name] = right
        return {measure: next(iter(values.values())) if flat else values for measure, values in found.items()}


def _draw(
    pipeline: Pipeline, questions: Questions, settings: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The best picture of every caption, where there is a ranking, and the first; of the emoji world, also how many
    pictures of a caption are right and differ, on average, by kind.
    """
    galleries, different = [], defaultdict[str, list[int]](list)
    for seed, caption in enumerate(tqdm(questions.captions, unit="caption", mininterval=5)):
        gallery = pipeline.generate(caption, **(settings | {"seed": seed}))
        pictures = [np.asarray(candidate.image) for candidate in gallery]
        first = min(range(len(gallery)), key=lambda i: gallery[i].index)
        galleries.append({"best": pictures[0], "first": pictures[first]})
        if questions.world and questions.scenes:
            scene = questions.scenes[seed]
            different[scene.kind].append(different_right(questions.world, scene, pictures))
    names = ("best", "first") if pipeline.reranker else ("first",)
    drawn = {name: np.stack([pictures[name] for pictures in galleries]) for name in names}
    means = {kind: float(np.mean(counts)) for kind, counts in sorted(different.items())}
    return drawn, {"different_right": means} if means else {}


def _validation_loss(
    pipeline: Pipeline, questions: Questions, codes: Int[np.ndarray, "M T"], shards: Sequence[Path]
) -> dict[str, Any]:
    facts = {"rows": len(codes), "source": questions.source, "note": ENCODER_SPELLS}
    captions = questions.captions
    if shards:
        encoded = read_codes(shards)
        if encoded.vqgan != fingerprint(pipeline.vqgan):
            raise ValueError(f"shards must be of {pipeline.name}'s own VQGAN, got those of another: {shards[0]}")
        held = held_back(encoded.keys)
        captions = [caption for caption, out in zip(encoded.captions, held, strict=True) if out]
        codes = encoded.codes[held].astype(np.int32)
        facts = {"rows": len(codes), "source": f"held back of {', '.join(map(str, shards))}"}
    return {"nats_per_code": validation_loss(pipeline, captions, codes), **facts}


def validation_loss(pipeline: Pipeline, captions: Sequence[str], codes: Int[np.ndarray, "M T"]) -> float:
    """Mean cross entropy of every code, in nats, given its caption and the codes before it."""
    assert isinstance(pipeline.scheduler, Scheduler), "the model is in this process"
    engine = pipeline.scheduler.engines[0]
    assert isinstance(engine, Engine), "load makes no others"
    losses = jax.jit(lambda params, batch: row_losses(params, pipeline.config, batch))
    data = Batch(*pipeline.tokenizer.encode_batch(captions), codes)
    return mean_loss(losses, engine.params, data, rows=min(LOSS_ROWS, len(codes)))


def _reconstruction(truth: np.ndarray, rebuilt: np.ndarray, uses: np.ndarray) -> dict[str, Any]:
    alike = {"psnr_decibels": psnr(truth, rebuilt).mean(), "ssim": ssim(truth, rebuilt).mean()}
    return alike | {"codebook": codebook_use(uses)}


def _rounded(value: Any) -> Any:
    """For people and for JSON: five digits, and without what is not a number (the PSNR of equal pictures)."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items() if not _is_infinite(item)}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float | np.floating) else value


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float | np.floating) and not np.isfinite(value)
