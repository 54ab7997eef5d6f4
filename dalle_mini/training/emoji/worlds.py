"""The emoji world of a recipe."""

from pathlib import Path

from dalle_mini.training.emoji.atlas import Atlas
from dalle_mini.training.emoji.config import WorldConfig
from dalle_mini.training.emoji.scene import EmojiWorld
from dalle_mini.training.emoji.scenes import Scenes
from dalle_mini.training.emoji.world import World


def open_world(config: WorldConfig, resolution: int) -> EmojiWorld:
    """At `resolution` pixels. Raises ValueError or FileNotFoundError for an atlas or a font that is none."""
    if not config.atlas:
        return World(resolution)
    return Scenes(Atlas.load(Path(config.atlas), config.first, config.styles), resolution)
