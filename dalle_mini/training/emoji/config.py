"""What of the emoji world a recipe is for, and how many of its scenes: checked."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    atlas: str  # a file of emoji/atlas.py
    examples: int  # scenes that the text-to-code network learns from
    clip_examples: int  # scenes that CLIP learns from, a multiple of 8
    first: int = 300  # objects of the atlas, likeliest to be asked for first
    styles: tuple[str, ...] = ("noto", "fluent-emoji")  # of those in the atlas

    def __post_init__(self) -> None:
        for name in ("examples", "clip_examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.clip_examples % 8:
            raise ValueError(f"clip_examples must be a multiple of 8, got {self.clip_examples}")
        if self.first < 4:
            raise ValueError(f"first must be >= 4, for four in a row, got {self.first}")
        if not self.styles:
            raise ValueError("styles must be one or more, got none")
