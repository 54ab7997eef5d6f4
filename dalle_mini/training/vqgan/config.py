"""The recipes of a VQGAN and of its halves alone: every setting of their training, checked."""

import dataclasses

import numpy as np

from dalle_mini.training.vqgan.discriminator import DiscriminatorConfig

DTYPES = ("float32", "bfloat16")
DECODER_OPTIMISERS = ("adam", "muon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANTrainConfig:
    """The recipe. Losses are means over values of pixels in [0, 1]."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 8e-4
    warmup_steps: int = 50
    l2_weight: float = 2.0
    gradient_weight: float = 0.5  # L1 of horizontal and vertical differences: thin lines and edges
    commitment_weight: float = 0.1
    consistency_weight: float = 1.0
    consistency_steps: tuple[int, int] = (500, 1500)  # the weight rises from 0 between these steps
    continuous_steps: int = 120  # no quantisation at first: codes are drawn from a useful encoder
    restart_every: int = 20
    codebook_decay: float = 0.98
    dead_below: float = 0.02  # average uses per step under which a code is restarted
    perceptual_weight: float = 0.0
    discriminator_weight: float = 0.0  # times the adaptive weight; Esser et al. 2021 took 0.8
    discriminator_start: int = 0  # steps for the rest to settle: a critic of noise teaches nothing
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    ema_decay: float = 0.0  # of the network's moving average, which is then the result; 0: no average
    dtype: str = "float32"  # what the networks compute in; losses, params and optimiser are float32 anyway
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "restart_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for field in dataclasses.fields(self):
            if field.name.endswith(("_weight", "_steps", "_start", "seed")) and np.min(getattr(self, field.name)) < 0:
                raise ValueError(f"{field.name} must be >= 0, got {getattr(self, field.name)}")
        for name in ("codebook_decay", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        if not self.consistency_steps[0] < self.consistency_steps[1]:
            raise ValueError(f"consistency_steps must be two rising steps, got {self.consistency_steps}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderTrainConfig:
    """The recipe of `train_decoder`, float32 throughout. Losses as in `VQGANTrainConfig`."""

    steps: int
    embed_dim: int = 0  # of codes, as the decoder reads them; as the VQGAN has them, if it has more
    batch_size: int = 16
    optimiser: str = "adam"
    learning_rate: float = 8e-4  # at its peak; with Muon, Adam's share has a tenth of it
    warmup_steps: int = 50
    l2_weight: float = 2.0
    gradient_weight: float = 0.5
    perceptual_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("embed_dim", "warmup_steps", "l2_weight", "gradient_weight", "perceptual_weight", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.optimiser not in DECODER_OPTIMISERS:
            raise ValueError(f"optimiser must be one of {', '.join(DECODER_OPTIMISERS)}, got {self.optimiser!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderTrainConfig:
    """The recipe of `train_encoder`, float32 throughout, with Muon."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-2  # at its peak; Adam's share has a tenth of it
    warmup_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
