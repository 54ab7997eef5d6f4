"""The sizes and the recipe of a small CLIP, checked."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTrainConfig:
    """Sizes and recipe. The defaults are the embedded model's: 1.6 M parameters at 64 x 64 pixels."""

    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.1
    seed: int = 0

    image_size: int = 64
    patch_size: int = 8
    context_length: int = 32
    width: int = 128
    heads: int = 4
    vision_layers: int = 4
    text_layers: int = 3
    embed_dim: int = 128

    def __post_init__(self) -> None:
        for name in ("steps", "heads", "vision_layers", "text_layers", "embed_dim"):
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
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {self.warmup_steps}")
