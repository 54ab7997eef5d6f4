"""Trains a small CLIP from scratch and writes it as a folder that open_clip (and our Reranker) reads.

Contract: `batches(step)` returns the pictures and captions of that step, the same ones whenever it is asked,
so that a stopped run goes on exactly where its last checkpoint left it. The caller decides what shares a
batch, and with it which captions have to be told apart: hard negatives are simply put side by side. Pictures after
those of the captions are right for none of them: what a bad picture looks like. The network is torch's, the loop that
of all networks (training/loop.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import HFTokenizer

from dalle_mini.training.clip.config import ClipTrainConfig
from dalle_mini.training.clip.export import PIXEL_MEAN, PIXEL_STD, begin_export, finish_export
from dalle_mini.training.clip.loss import contrastive_loss
from dalle_mini.training.loop import LoopConfig, fit
from dalle_mini.training.schedule import learning_rate

MAX_LOGIT_SCALE = math.log(100.0)  # Radford et al. 2021, section 2.5

Batch = tuple[np.ndarray, list[str]]  # pixels uint8 [B + E, image_size, image_size, 3], B captions


@dataclass(frozen=True)
class ClipState:
    """What a step changes in place and a checkpoint keeps."""

    model: CLIP
    optimizer: torch.optim.AdamW

    def arrays(self) -> dict[str, Any]:
        """Copies of all of it, by name."""
        moments = {str(i): self.optimizer.state[p] for i, p in enumerate(self.model.parameters())}
        return _map(lambda tensor: tensor.detach().cpu().numpy().copy(), {"model": self.model.state_dict(), **moments})

    def restore(self, arrays: dict[str, Any]) -> None:
        tensors = _map(lambda array: torch.from_numpy(np.array(array)), arrays)
        self.model.load_state_dict(tensors["model"])
        for i, parameter in enumerate(self.model.parameters()):
            for name, moment in self.optimizer.state[parameter].items():
                moment.copy_(tensors[str(i)][name])


def _map(each: Callable[[Any], Any], trees: dict[str, Any]) -> dict[str, Any]:
    return {place: {name: each(leaf) for name, leaf in tree.items()} for place, tree in trees.items()}


def train(config: ClipTrainConfig, batches: Callable[[int], Batch], *, tokenizer_folder: Path, out: Path) -> Path:
    """Train from scratch, or on from the newest checkpoint in `out`; returns the folder of the model, `out`/model.

    Raises ValueError when a batch does not fit the config.
    """
    folder = out / "model"
    model_config, tokenizer = begin_export(folder, config, tokenizer_folder=tokenizer_folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = CLIP(**model_config).to(device)
    state = ClipState(model.train(), _optimizer(model, config))
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    fit(state, _make_step(config, tokenizer), lambda step: (step, *batches(step)), config=loop)
    finish_export(folder, model)
    return folder


def _optimizer(model: torch.nn.Module, config: ClipTrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only: gains, biases and the logit scale are not pulled to zero."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6)
    for parameter in model.parameters():  # as its first step would, so that a checkpoint has somewhere to go before
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}
    return optimizer


def _make_step(
    config: ClipTrainConfig, tokenizer: HFTokenizer
) -> Callable[[ClipState, tuple[int, np.ndarray, list[str]]], tuple[ClipState, dict[str, torch.Tensor]]]:
    rate = learning_rate(config)

    def step_fn(
        state: ClipState, batch: tuple[int, np.ndarray, list[str]]
    ) -> tuple[ClipState, dict[str, torch.Tensor]]:
        step, pixels, captions = batch
        model, optimizer = state.model, state.optimizer
        images, tokens = _images(pixels, len(captions), config), tokenizer(captions)
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step))
        device = model.logit_scale.device
        image, text, _ = model(images.to(device), tokens.to(device))
        loss, accuracy = contrastive_loss(image, text, tokens=tokens, logit_scale=model.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)
        return state, {"loss": loss.detach(), "accuracy": accuracy}

    return step_fn


def _images(pixels: np.ndarray, captions: int, config: ClipTrainConfig) -> torch.Tensor:
    """uint8 [M, H, W, 3] -> float32 [M, 3, H, W], as open_clip's transform does at the model's own size."""
    size = [config.image_size, config.image_size, 3]
    if pixels.dtype != np.uint8 or list(pixels.shape[1:]) != size or len(pixels) < captions:
        rule = f"pixels must be uint8 {[captions, *size]}, or more of them"
        raise ValueError(f"{rule}, got {pixels.dtype} {list(pixels.shape)}")
    unit = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    return (unit - PIXEL_MEAN) / PIXEL_STD
