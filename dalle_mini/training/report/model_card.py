"""The model card of a published model, filled in from what a run left behind (Mitchell et al. 2019, arXiv:1810.03993).

Contract: the card says what the files say. What only the author can know is marked **[AUTHOR: ...]**, the licence
first of all; nothing is guessed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from flax import traverse_util
from huggingface_hub import ModelCardData

STATISTICS, METRICS, CONFIG = "statistics.json", "metrics.jsonl", "config.json"
SETTINGS = ("steps", "batch_size", "optimiser", "learning_rate", "warmup_steps", "seed")  # of a recipe: in the card
LICENCE = "author-please-choose"  # the hub takes any name with license: other
ROLES = {
    "dalle": "tokens to codes",
    "vqgan": "pictures to codes and back",
    "clip": "ranking, read by open_clip",
}


class Part(NamedTuple):
    """One network of a model."""

    name: str
    config: dict[str, Any]
    parameters: int
    dtype: str

    @classmethod
    def of(cls, name: str, config: dict[str, Any], params: Mapping[str, Any]) -> Self:
        arrays = traverse_util.flatten_dict(dict(params)).values()
        dtypes = sorted({str(array.dtype) for array in arrays})
        return cls(name, config, sum(int(np.size(array)) for array in arrays), " and ".join(dtypes))


class Facts(NamedTuple):
    """What a run's files say; empty where there are none."""

    training: dict[str, dict[str, float]]  # stage of the run -> the last value of each metric, and the step
    recipes: dict[str, dict[str, Any]]  # stage of the run -> what it was begun with
    statistics: dict[str, Any]
    report: dict[str, Any]

    @classmethod
    def gather(cls, folder: Path, *, report: Path | None = None, statistics: Path | None = None) -> Self:
        """Of a model folder; of its run too, if it is RUN/model. Raises ValueError for a file that cannot be read."""
        run = folder.resolve().parent
        in_run = folder.resolve().name == "model"
        logs = sorted(run.glob(f"*/{METRICS}")) if in_run else []
        training = {path.parent.name: values for path in logs if (values := _last_metrics(path))}
        configs = {stage: run / stage / CONFIG for stage in training}
        recipes = {
            stage: _read(f"{stage}'s {CONFIG}", path, needed=("recipe",))["recipe"]
            for stage, path in configs.items()
            if path.exists()
        }
        if statistics is None and in_run:
            statistics = next(iter(sorted([*run.glob(STATISTICS), *run.glob(f"*/{STATISTICS}")])), None)
        elif statistics is not None and statistics.is_dir():
            statistics = statistics / STATISTICS
        return cls(
            training,
            recipes,
            _read("statistics", statistics, needed=("read", "kept", "skipped", "vqgan")),
            _read("report", report, needed=("captions", "drawn", "reconstruction", "validation_loss")),
        )


def _read(name: str, path: Path | None, *, needed: Sequence[str]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in needed if key not in values]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{name} must be a JSON file that can be read, got {str(path)!r}: {error}") from None
    if missing:
        raise ValueError(f"{name} must have {', '.join(needed)}, got {str(path)!r} without {', '.join(missing)}")
    return values


def _last_metrics(path: Path) -> dict[str, float]:
    """Not every step measures everything; a line that a killed run left unfinished is left out."""
    values: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values |= json.loads(line)
        except (ValueError, TypeError):
            continue
    return values


def write_card(path: Path, *, name: str, layout: str, parts: Sequence[Part], facts: Facts) -> None:
    """A README.md with the front matter that the hub reads."""
    head = ModelCardData(
        license="other",
        license_name=LICENCE,
        library_name="flax",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "dalle-mini", "jax", *(part.name for part in parts if part.name != "dalle")],
    ).to_yaml()
    sections = [
        f"# Model card: {name}",
        _details(parts, layout),
        _use(name),
        _data(facts.statistics),
        _training(facts.training, facts.recipes),
        _performance(facts.report),
        _limitations(parts, layout, facts.report),
        "## Licence\n\n**[AUTHOR: choose a licence, write its name here and in the head of this file, and say whose "
        "pictures and captions the model was trained on and under which terms.]**",
    ]
    path.write_text(f"---\n{head}\n---\n" + "\n\n".join(sections) + "\n", encoding="utf-8")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _details(parts: Sequence[Part], layout: str) -> str:
    sizes = {part.name: part.config for part in parts}
    dalle, vqgan = sizes["dalle"], sizes.get("vqgan")
    side = int(dalle["image_length"] ** 0.5)
    about = [
        f"- Text-to-code model, the architecture of DALL·E mini: width {dalle['d_model']}, {dalle['encoder_layers']} "
        f"encoder and {dalle['decoder_layers']} decoder layers, {dalle['decoder_attention_heads']} heads, feed-forward "
        f"{dalle['decoder_ffn_dim']}; prompts of {dalle['max_text_length']} tokens out of "
        f"{dalle['encoder_vocab_size']}; pictures of {side} x {side} codes out of {dalle['codebook_size']}.",
        f"- Sampling, unless asked otherwise: condition scale {dalle['condition_scale']:g}, temperature "
        f"{dalle['temperature']:g}, top-k {dalle['top_k']}, top-p {dalle['top_p']:g}.",
    ]
    if vqgan:
        about.append(f"- {_codec(vqgan)}")
    else:
        about.append("- The VQGAN is not part of these files.")
    if "clip" not in sizes:
        about.append("- There is no CLIP: pictures are not ranked.")
    rows = [(f"{part.name}: {ROLES[part.name]}", f"{part.parameters:,}", part.dtype) for part in parts]
    files = "`model.safetensors`" if layout == "safetensors" else "`flax_model.msgpack`, as DALL·E mini was published"
    about.append(f"- Files: {files}. **[AUTHOR: who made this model, when, and how to reach you.]**")
    return (
        "## Model details\n\n"
        + markdown_table(("network", "parameters", "stored as"), rows)
        + "\n\n"
        + "\n".join(about)
    )


def _codec(config: Mapping[str, Any]) -> str:
    pictures = f"pictures of {config['resolution']} x {config['resolution']} pixels"
    if "n_hid" in config:
        return (
            f"dVAE (OpenAI's architecture): {pictures}; {config['vocab_size']} codes; widths from {config['n_hid']} to "
            f"{8 * config['n_hid']}, {config['n_blk_per_group']} blocks a group."
        )
    widths = ", ".join(str(config["ch"] * multiple) for multiple in config["ch_mult"])
    return f"VQGAN: {pictures}; {config['n_embed']} codes of dimension {config['embed_dim']}; widths {widths}."


def _use(name: str) -> str:
    return f"""## Use

    python app.py --model {name}
    python -m dalle_mini generate "..." --model {name}

**Meant for:** pictures from prompts like the captions it was trained on, and for others to use for training their own
generative models. **[AUTHOR: what you made it for.]**

**Not meant for:** high-fidelity image processing or image compression; pictures of real people or events that could
be taken for photographs; any decision about anyone. **[AUTHOR: what else it must not be used for.]**"""


def _data(statistics: Mapping[str, Any]) -> str:
    where = "**[AUTHOR: where the pictures and captions are from, and how they were chosen.]**"
    if not statistics:
        return f"## Training data\n\n{where}"
    reasons = sorted(statistics["skipped"].items(), key=lambda item: -item[1]["count"])
    left_out = ", ".join(f"{values['count']:,} {reason}" for reason, values in reasons)
    text = f"{statistics['kept']:,} pictures with captions out of {statistics['read']:,} that were read"
    text += f" (left out: {left_out})." if left_out else "."
    if "words_per_caption" in statistics:
        text += f" A caption has {statistics['words_per_caption']:g} words on average."
    if book := statistics.get("codebook"):
        text += f" Their codes are {book['used']:,} of {book['size']:,}, with a perplexity of {book['perplexity']:g}."
    return f"## Training data\n\n{text} {where}"


def _training(training: Mapping[str, Mapping[str, float]], recipes: Mapping[str, Mapping[str, Any]]) -> str:
    if not training:
        return "## Training\n\n**[AUTHOR: steps, batch size, optimiser, seed, machine and time.]**"
    rows = []
    for stage, values in training.items():
        shown = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items() if name != "step"]
        rows.append((stage, f"{values.get('step', 0):,.0f}", ", ".join(shown)))
    table = markdown_table(("stage", "steps", "the last that was logged"), rows)
    lines = [f"- {stage}, by recipe: {_settings(recipe)}." for stage, recipe in recipes.items()]
    unsaid = ", ".join(stage for stage in training if stage not in recipes)
    lines.append(
        f"- **[AUTHOR: {f'batch size, optimiser and seed of {unsaid}; ' if unsaid else ''}machine and time.]**"
    )
    return f"## Training\n\n{table}\n\n" + "\n".join(lines)


def _settings(recipe: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {recipe[name]}" for name in SETTINGS if name in recipe)


def _performance(report: Mapping[str, Any]) -> str:
    if not report:
        return "## Performance\n\n**[AUTHOR: not measured yet; see `python -m dalle_mini evaluate`.]**"
    rebuilt, loss = report["reconstruction"], report["validation_loss"]
    asked = f"{report['captions']['number']:,} captions, {report['candidates']} candidates each"
    lines = [f"- Asked: {asked}, from: {report['captions']['source']}."]
    lines.append(
        f"- Validation loss: {loss['nats_per_code']:g} nats a code on {loss['rows']:,} rows. {loss.get('note', '')}"
    )
    if "psnr_decibels" in rebuilt:
        lines.append(f"- The VQGAN alone: PSNR {rebuilt['psnr_decibels']:g} dB, SSIM {rebuilt['ssim']:g}.")
    if "clip" in report:
        true = report["clip"]["score_of_true_pictures"]
        lines.append(f"- {report['clip']['note']} The CLIP score of the true pictures is {true:g}.")
    rows = []
    for drawn in report["drawn"]:
        for which in ("best", "first"):
            values = [drawn.get(measure, {}).get(which) for measure in ("clip_score", "fid")]
            right = drawn.get("template_accuracy", {}).get(which, {})
            shown = ["" if value is None else f"{value:g}" for value in values]
            shown.append(", ".join(f"{kind} {share:g} %" for kind, share in right.items()))
            if any(shown):
                rows.append((f"{drawn['condition_scale']:g}", which, *shown))
    table = markdown_table(("condition scale", "which candidate", "CLIP score", "FID", "right, by templates"), rows)
    return "## Performance\n\n" + "\n".join(line.rstrip() for line in lines) + (f"\n\n{table}" if rows else "")


def _limitations(parts: Sequence[Part], layout: str, report: Mapping[str, Any]) -> str:
    sizes = {part.name: part.config for part in parts}
    lines = [
        "- It draws what its training pictures showed, with whatever they over- and under-represent; other prompts "
        "give nonsense, and no warning.",
        f"- A prompt longer than {sizes['dalle']['max_text_length']} tokens is cut.",
        "- The compression to codes loses detail: faces, thin lines and letters suffer first.",
    ]
    if "clip" in sizes:
        lines.append("- CLIP scores compare pictures of one prompt; they say nothing in comparison with another CLIP.")
    if layout == "msgpack" and sizes.get("vqgan", {}).get("num_groups", 32) != 32:
        groups = sizes["vqgan"]["num_groups"]
        lines.append(
            f"- The VQGAN normalises in {groups} groups. The original code knows 32 alone: it reads this VQGAN's file "
            "and paints wrongly."
        )
    lines.append("- **[AUTHOR: what you saw it get wrong.]**")
    return "## Limitations\n\n" + "\n".join(lines)
