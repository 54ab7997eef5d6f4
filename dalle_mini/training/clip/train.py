"""Trains a small CLIP from scratch and writes it as a folder that open_clip (and our Reranker) reads.

Contract: `batches(step)` returns the pictures and captions of that step, the same ones whenever it is asked,
so that a stopped run goes on exactly where its last checkpoint left it. The caller decides what shares a
batch, and with it which captions have to be told apart: hard negatives are simply put side by side. Pictures after
those of the captions are right for none of them: what a bad picture looks like.

The loss is the symmetric cross-entropy of Radford et al. 2021, section 2.3, except that equal captions are no
negatives of each other.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from jaxtyping import Float, Int
from open_clip.model import CLIP
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch.nn import functional
from tqdm import tqdm

from clip_rerank.reranker import CONFIG_NAME, WEIGHTS_NAME

# Pixels are scaled to [-1, 1]; the exported config says so to whoever loads the model.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.5
# Prompts arrive in any case and with punctuation that no training caption has; open_clip then drops both.
CLEANING = "canonicalize"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
MAX_LOGIT_SCALE = math.log(100.0)  # Radford et al. 2021, section 2.5

Batch = tuple[np.ndarray, list[str]]  # pixels uint8 [B + E, image_size, image_size, 3], B captions

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipTrainConfig:
    """Sizes and recipe. The defaults are the embedded model's: 1.6 M parameters at 64 x 64 pixels."""

    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.1
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500

    image_size: int = 64
    patch_size: int = 8
    context_length: int = 32
    width: int = 128
    heads: int = 4
    vision_layers: int = 4
    text_layers: int = 3
    embed_dim: int = 128

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "checkpoint_every", "heads", "vision_layers", "text_layers", "embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be >= 2, or there is nothing to tell apart, got {self.batch_size}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        for name, divisor in (("image_size", "patch_size"), ("width", "heads")):
            value, by = getattr(self, name), getattr(self, divisor)
            if value < 1 or by < 1 or value % by:
                raise ValueError(f"{name} must be a multiple of {divisor} = {by}, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if self.context_length < 3:
            raise ValueError(f"context_length must be >= 3, a word and its frame, got {self.context_length}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps must be in [0, steps = {self.steps}), got {self.warmup_steps}")


@dataclass(kw_only=True)
class _State:
    """What a step changes and a checkpoint keeps."""

    model: CLIP
    optimizer: torch.optim.AdamW
    step: int = 0


def train_clip(config: ClipTrainConfig, batches: Callable[[int], Batch], *, tokenizer_folder: Path, out: Path) -> Path:
    """Trains, or goes on training, and returns the folder of the finished model, `out`/model.

    `out` also gets checkpoint.pt and metrics.jsonl (step, loss, accuracy, examples_per_second).
    Raises ValueError when `out` holds a run of another config, or a batch does not fit the config.
    """
    folder = out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_NAME).unlink(missing_ok=True)  # until training ends the folder is visibly unfinished
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)
    # The tokenizer of the exported folder: training and scoring cannot read text differently.
    tokenizer = HFTokenizer(str(folder), context_length=config.context_length, clean=CLEANING)
    model_config = _model_config(config, tokenizer)
    _write_config(model_config, folder / CONFIG_NAME)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = CLIP(**model_config).to(device)
    state = _State(model=model.train(), optimizer=_optimizer(model, config))
    _resume(state, config, out)
    _train(state, config, batches=batches, tokenizer=tokenizer, out=out)
    _write_weights(model, folder / WEIGHTS_NAME)
    return folder


def contrastive_loss(
    image: Float[torch.Tensor, "M D"],
    text: Float[torch.Tensor, "B D"],
    *,
    tokens: Int[torch.Tensor, "B T"],
    logit_scale: Float[torch.Tensor, ""],
) -> tuple[Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
    """Unit rows of pictures and captions -> (loss, share of rows and columns whose own pair wins).

    tokens are the captions as read: rows that are equal are not negatives of each other. Picture i belongs to caption
    i, pictures from B on to none.
    """
    caption_ids = torch.unique(tokens, dim=0, return_inverse=True)[1].to(image.device)  # [B]
    same = (caption_ids[:, None] == caption_ids[None, :]).fill_diagonal_(False)
    same = functional.pad(same, (0, 0, 0, len(image) - len(text)))  # [M, B]
    logits = (logit_scale.exp() * image @ text.T).masked_fill(same, -math.inf)  # [M, B]
    pairs = torch.arange(len(text), device=image.device)
    own = logits[: len(text)]
    loss = (functional.cross_entropy(own, pairs) + functional.cross_entropy(logits.T, pairs)) / 2
    wins = torch.cat([own.argmax(1) == pairs, logits.argmax(0) == pairs])
    return loss, wins.float().mean()


def _model_config(config: ClipTrainConfig, tokenizer: HFTokenizer) -> dict:
    """The `model_cfg` of open_clip."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "width": config.width,
            "head_width": config.width // config.heads,
            "layers": config.vision_layers,
        },
        "text_cfg": {
            # Any name makes open_clip read the tokenizer files beside this config.
            "hf_tokenizer_name": "tokenizer files of this folder",
            "tokenizer_kwargs": {"clean": CLEANING},
            "context_length": config.context_length,
            "vocab_size": len(tokenizer.tokenizer),
            "width": config.width,
            "heads": config.heads,
            "layers": config.text_layers,
            # open_clip's default pools at the highest id: the end token of its vocabulary, any word of ours.
            "pool_type": "eos",
            "eos_id": tokenizer.tokenizer.eos_token_id,
            "pad_id": tokenizer.tokenizer.pad_token_id,
        },
    }


def _optimizer(model: torch.nn.Module, config: ClipTrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only: gains, biases and the logit scale are not pulled to zero."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6)


def _learning_rate(config: ClipTrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine that reaches zero after the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def _train(
    state: _State,
    config: ClipTrainConfig,
    *,
    batches: Callable[[int], Batch],
    tokenizer: HFTokenizer,
    out: Path,
) -> None:
    since, examples = time.perf_counter(), 0
    with (
        tqdm(total=config.steps, initial=state.step, unit="step", dynamic_ncols=True, mininterval=5) as bar,
        _metrics(out, state.step) as metrics,
    ):
        while state.step < config.steps:
            pixels, captions = batches(state.step)
            loss, accuracy = _update(
                state, config, images=_images(pixels, len(captions), config), tokens=tokenizer(captions)
            )
            examples += len(captions)
            bar.update()
            last = state.step == config.steps
            if last or state.step % config.log_every == 0:
                line = {"step": state.step, "loss": loss.item(), "accuracy": accuracy.item()}
                bar.set_postfix_str(" ".join(f"{name} {value:.4g}" for name, value in line.items()))
                line["examples_per_second"] = round(examples / (time.perf_counter() - since), 1)
                metrics.write(json.dumps(line) + "\n")
                metrics.flush()
                since, examples = time.perf_counter(), 0
            if last or state.step % config.checkpoint_every == 0:
                _save_checkpoint(state, config, out)


def _update(
    state: _State, config: ClipTrainConfig, *, images: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step on images [B + E, 3, H, W] and tokens [B, T] -> (loss, accuracy)."""
    model, optimizer = state.model, state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(config, state.step)
    device = model.logit_scale.device
    image, text, _ = model(images.to(device), tokens.to(device))
    loss, accuracy = contrastive_loss(image, text, tokens=tokens, logit_scale=model.logit_scale)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
    state.step += 1
    return loss.detach(), accuracy


def _images(pixels: np.ndarray, captions: int, config: ClipTrainConfig) -> torch.Tensor:
    """uint8 [M, H, W, 3] -> float32 [M, 3, H, W], as open_clip's transform does at the model's own size."""
    size = [config.image_size, config.image_size, 3]
    if pixels.dtype != np.uint8 or list(pixels.shape[1:]) != size or len(pixels) < captions:
        rule = f"pixels must be uint8 {[captions, *size]}, or more of them"
        raise ValueError(f"{rule}, got {pixels.dtype} {list(pixels.shape)}")
    unit = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    return (unit - PIXEL_MEAN) / PIXEL_STD


def _metrics(out: Path, start: int) -> TextIO:
    """metrics.jsonl opened for more lines, without those that the resumed run will write again."""
    path = out / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]  # a killed run may have left half a line
    path.write_text("".join(line for line in whole if json.loads(line)["step"] <= start), "utf-8")
    return path.open("a", encoding="utf-8")


def _save_checkpoint(state: _State, config: ClipTrainConfig, out: Path) -> None:
    saved = {
        "config": asdict(config),
        "step": state.step,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    torch.save(saved, out / "checkpoint.tmp")
    os.replace(out / "checkpoint.tmp", out / "checkpoint.pt")


def _resume(state: _State, config: ClipTrainConfig, out: Path) -> None:
    """Brings `state` to the last checkpoint of `out`, if there is one."""
    path = out / "checkpoint.pt"
    if not path.is_file():
        return
    saved = torch.load(path, map_location="cpu", weights_only=True)
    changed = [name for name, value in asdict(config).items() if saved["config"].get(name) != value]
    if changed:
        raise ValueError(f"config must be the one that {path} was trained with, got another {', '.join(changed)}")
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.step = saved["step"]
    log.info("resuming %s at step %d of %d", path, state.step, config.steps)


def _write_config(model_config: dict, path: Path) -> None:
    preprocess = {
        "mean": [PIXEL_MEAN] * 3,
        "std": [PIXEL_STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    text = json.dumps({"model_cfg": model_config, "preprocess_cfg": preprocess}, indent=2)
    path.write_text(text + "\n", "utf-8")


def _write_weights(model: CLIP, path: Path) -> None:
    """float16 halves the file; open_clip copies it into its float32 parameters."""
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.cpu().half().contiguous() for name, tensor in model.state_dict().items()}, temporary)
    os.replace(temporary, path)
