"""The recipe of a text-to-code network: every setting of its training, checked."""

import dataclasses

OPTIMISERS = ("adamw", "adafactor", "muon")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DalleTrainConfig:
    """The recipe: steps are optimiser steps, `batch_size` is the examples of one, over all devices."""

    steps: int
    batch_size: int = 32
    accumulation: int = 1  # parts in which a batch is computed, one after another, to save memory
    optimiser: str = "muon"
    learning_rate: float = 2e-2  # at its peak; with Muon, Adam's share has a tenth of it
    warmup_steps: int = 50
    weight_decay: float = 0.0  # of matrices
    clip_norm: float = 1.0  # of the whole gradient
    caption_dropout: float = 0.1  # what super conditioning needs (Ho & Salimans 2022, section 3.2)
    ema_decay: float = 0.0  # of the moving average of params, which is then the result; 0: no average
    dtype: str = "float32"
    remat: bool = False  # compute a layer again in the backward pass rather than keep it
    init: str = ""  # a model to go on from: a preset, a folder or a hub id, with the same sizes and the same tokenizer
    model_devices: int = 1  # that share one copy of the model; the other axis of the mesh shares the batch
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "model_devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("caption_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 0 and < 1, got {getattr(self, name)}")
        for name, allowed in (("optimiser", OPTIMISERS), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be a multiple of accumulation {self.accumulation}, got {self.batch_size}"
            )
