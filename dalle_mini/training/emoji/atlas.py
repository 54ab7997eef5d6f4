"""The pictures of the emoji world: every object in every style, rendered once into one file.

    python -m dalle_mini.training.emoji.atlas PACKED ATLAS.npz        # PACKED: a folder of four .tgz files (Makefile)

Contract: sprites, uint8 [objects, styles, SIDE, SIDE, 4], RGBA, in the order of objects.csv and of STYLES; each is cut
to what is drawn and stands in the middle of its square. Rendering needs resvg-py (requirements-dev.txt), reading does
not. The same packages give the same bytes.

Pictures: Noto Emoji (Apache-2.0, Google), Twemoji (CC BY 4.0, Twitter and contributors), Fluent Emoji (MIT, Microsoft).
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from dalle_mini.training.emoji import objects
from dalle_mini.training.emoji.objects import Object

SIDE = 128
FAINT = 8  # of 255: what covers no more than this is not drawn
# package of @iconify-json: what people call its style
STYLES: dict[str, tuple[str, ...]] = {
    "noto": ("cartoon", "detailed"),
    "twemoji": ("simple", "plain"),
    "fluent-emoji-flat": ("flat", "two dimensional"),
    "fluent-emoji": ("glossy", "shiny"),
}


class Atlas(NamedTuple):
    sprites: UInt8[np.ndarray, "objects styles SIDE SIDE 4"]
    objects: tuple[Object, ...]
    styles: tuple[str, ...] = tuple(STYLES)

    @classmethod
    def load(cls, path: Path, first: int | None = None, styles: tuple[str, ...] = tuple(STYLES)) -> "Atlas":
        """Its first objects, or all, in these styles. Raises FileNotFoundError and ValueError."""
        if not path.exists():
            raise FileNotFoundError(f"atlas must be a file that `python -m {__name__}` made, got {path}")
        with np.load(path) as file:
            icons, drawn, sprites = json.loads(str(file["icons"])), json.loads(str(file["styles"])), file["sprites"]
        known = tuple(each for each in objects.load() if each.icon in icons)
        if [each.icon for each in known] != icons:
            raise ValueError(f"atlas must hold objects of objects.csv, in that order, got {len(icons)} in {path}")
        if first and len(icons) < first:
            raise ValueError(f"first must be <= {len(icons)}, the objects in {path}, got {first}")
        if unknown := set(styles) - set(drawn):
            raise ValueError(f"styles must be some of {', '.join(drawn)}, got {', '.join(sorted(unknown))}")
        return cls(sprites[:first, [drawn.index(style) for style in styles]], known[:first], styles)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        icons = json.dumps([each.icon for each in self.objects])
        np.savez_compressed(path, sprites=self.sprites, icons=icons, styles=json.dumps(self.styles))


def build(packed: Path, out: Path) -> None:
    """Render every object of the table in every style. Raises ValueError naming the package or the pictures missing."""
    sets = [_read_icons(packed, style) for style in STYLES]
    known = objects.load()
    missing = [f"{style} {each.icon}" for style, icons in zip(STYLES, sets, strict=True) for each in known
               if each.icon not in icons]  # fmt: skip
    if missing:
        raise ValueError(f"packages must hold every icon of objects.csv, got none of {', '.join(missing)}")
    sprites = np.zeros((len(known), len(sets), SIDE, SIDE, 4), np.uint8)
    for i, each in enumerate(tqdm(known, unit="object", desc="atlas", mininterval=5)):
        for j, icons in enumerate(sets):
            sprites[i, j] = _render(icons[each.icon])
    Atlas(sprites, known).save(out)


def _read_icons(packed: Path, style: str) -> dict[str, str]:
    """Name -> SVG, aliases included, of the one npm package `iconify-json-STYLE-VERSION.tgz`."""
    found = sorted(packed.glob(f"iconify-json-{style}-[0-9]*.tgz"))
    if len(found) != 1:
        raise ValueError(f"{packed} must hold one iconify-json-{style}-VERSION.tgz, got {len(found)}")
    with tarfile.open(found[0]) as archive:
        file = archive.extractfile("package/icons.json")
        assert file is not None
        content: dict[str, Any] = json.load(file)
    size = f"{content.get('width', 16)} {content.get('height', 16)}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {size}">'
    icons = {name: f"{head}{icon['body']}</svg>" for name, icon in content["icons"].items()}
    aliases = {name: alias["parent"] for name, alias in content.get("aliases", {}).items() if list(alias) == ["parent"]}
    return icons | {name: icons[parent] for name, parent in aliases.items() if parent in icons}


def _render(svg: str) -> UInt8[np.ndarray, "SIDE SIDE 4"]:
    """What is drawn, as large as the square allows, in its middle."""
    import resvg_py

    whole = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE))).convert("RGBA")
    seen = whole.getchannel("A").point(lambda alpha: 255 * (alpha > FAINT))
    return np.asarray(fit(whole.crop(seen.getbbox()), SIDE))


def fit(drawn: Image.Image, side: int) -> Image.Image:
    """A picture scaled to a square, in its middle, its colours weighed by how much they cover."""
    scale = side / max(drawn.size)
    wide, high = (max(1, round(length * scale)) for length in drawn.size)
    small = drawn.convert("RGBa").resize((wide, high), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (side, side))
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return square


if __name__ == "__main__":
    typer.run(build)
