"""The shelf: where the three networks of a model come from.

`emoji` is embedded in this repository and works offline; `mini` and `mega` are the published models; anything else is
a folder or a hub id that holds `dalle/`, `vqgan/` and `clip/`, or a text-to-code model alone, which is then completed
by the published VQGAN and CLIP. A training run stands for its model, which is in RUN/model.
"""

import dataclasses
import os
from pathlib import Path

from dalle_mini.config import ModelConfig
from dalle_mini.environment import shipped
from vqgan.files import CheckpointError
from vqgan.hub import resolve

PUBLISHED_VQGAN = "dalle-mini/vqgan_imagenet_f16_16384"
PUBLISHED_CLIP = "ViT-B-32/laion2b_s34b_b79k"  # open_clip's name and tag
EMBEDDED = shipped("assets") / "models" / "emoji"
FILES = ("*.json", "*.txt", "README.md")  # and weights, in the one format that is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Folders or hub ids (for CLIP also open_clip's MODEL/TAG) and the name that galleries carry."""

    name: str
    dalle: Path
    vqgan: str | Path
    clip: str | Path
    card: Path | None = None  # a model card in Markdown


SHELF = {"mini": "dalle-mini/dalle-mini", "mega": "dalle-mini/dalle-mega"}


def find(model: str | Path) -> Preset:
    """The preset of a name on the shelf, a folder or a hub id. Raises `CheckpointError` if there is none."""
    location = EMBEDDED if model == "emoji" else SHELF.get(str(model), model)
    folder = model_of(resolve(location, FILES, check=ModelConfig.from_dict))
    name = str(model) if model in ("emoji", *SHELF) else _name(location)
    card = folder / "README.md"
    parts = [folder / part for part in ("dalle", "vqgan", "clip")]
    if parts[0].is_dir() and not parts[1].is_dir():
        raise CheckpointError(
            f"{folder} must hold vqgan/ beside dalle/, got none: copy there the one it was trained with"
        )
    dalle, vqgan, clip = parts if parts[0].is_dir() else (folder, PUBLISHED_VQGAN, PUBLISHED_CLIP)
    return Preset(name=name, dalle=dalle, vqgan=vqgan, clip=clip, card=card if card.is_file() else None)


def model_of(folder: Path) -> Path:
    """The model in the folder of a run, or the folder itself."""
    return folder / "model" if (folder / "model").is_dir() else folder


def _name(location: str | Path) -> str:
    """That of the folder or the repository; a run's model, RUN/model, is called as its run."""
    path = Path(os.path.abspath(location))
    return path.parent.name if path.name == "model" else path.name
