"""The recipe of a dVAE: every setting of its training, checked."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DVAETrainConfig:
    """Defaults are those of Ramesh et al. 2021 (arXiv:2102.12092, appendix A.2).

    They trained for 3,000,000 updates; a `_part` is the part of the steps in which something moves to its last value,
    along half a cosine.
    """

    steps: int
    batch_size: int = 16  # theirs: 512
    learning_rate: float = 1e-4
    last_learning_rate: float = 1.25e-6
    learning_rate_part: float = 0.4  # 1,200,000 updates
    temperature: float = 1.0
    last_temperature: float = 1 / 16
    temperature_part: float = 0.05  # 150,000 updates
    kl_weight: float = 6.6  # of the sum over a picture's codes, divided by the number of its values, as the rest is
    kl_part: float = 1 / 600  # 5,000 updates, from 0
    weight_decay: float = 1e-4
    ema_decay: float = 0.999  # of the network's moving average, which is the result
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("learning_rate", "last_learning_rate", "temperature", "last_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("kl_weight", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("learning_rate_part", "temperature_part", "kl_part"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be > 0 and <= 1, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
