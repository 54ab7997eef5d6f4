"""The report of `evaluate` as a picture: rows of pictures with their captions, and the curves where there are any.

Contract: drawn by Pillow alone, with the font that it brings along, and a function of what is given.
"""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Points = list[tuple[float, float]]

TILE, GAP, EDGE = 128, 8, 24  # pixels: a picture, between two, around all
LABELS = 110  # pixels, of the names of the rows
COLUMNS = 8
CAPTION_LINES, CAPTION_LETTERS = 4, 20
PANEL = (500, 300)  # pixels, of a curve with its axes
SHARPER = 2  # curves are drawn at this size and then reduced, for smooth lines
INK, FAINT = (34, 34, 34), (214, 214, 214)
COLOURS = {"best": (101, 143, 0), "first": (214, 122, 0), "true pictures": (120, 120, 120)}


class Row(NamedTuple):
    """A row of the sheet: one picture for every caption."""

    name: str
    pictures: UInt8[np.ndarray, "M H W 3"]


class Panel(NamedTuple):
    """A diagram: named curves, whose points may have words."""

    x: str
    y: str
    curves: dict[str, Points]
    words: Sequence[str] = ()


def draw_report(report: dict[str, Any], captions: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Facts, the sheet of `rows` and, for several condition scales, what they change."""
    # Three rows of one scale leave room for more captions; the pictures of many scales are to be compared.
    blocks = range(0, min(len(captions), COLUMNS * (3 if len(rows) <= 3 else 1)), COLUMNS)
    parts = [_facts(report)]
    for start in blocks:
        some = [Row(row.name, row.pictures[start : start + COLUMNS]) for row in rows]
        parts.append(_sheet(captions[start : start + COLUMNS], some))
    panels = [_diagram(panel) for panel in _panels(report)]
    if panels:
        parts.append(_side_by_side(panels))
    width = max(part.width for part in parts) + 2 * EDGE
    page = Image.new("RGB", (width, sum(part.height + EDGE for part in parts) + EDGE), "white")
    top = EDGE
    for part in parts:
        page.paste(part, (EDGE, top))
        top += part.height + EDGE
    return page


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _facts(report: dict[str, Any]) -> Image.Image:
    number, rebuilt = report["captions"]["number"], report["reconstruction"]
    lines = [f"{report['captions']['source']}: {number} captions, {report['candidates']} candidates each"]
    facts = [f"validation loss {report['validation_loss']['nats_per_code']:.3f} nats a code of the encoder"]
    if "psnr_decibels" in rebuilt:
        facts.append(f"the VQGAN alone: PSNR {rebuilt['psnr_decibels']:.1f} dB, SSIM {rebuilt['ssim']:.3f}")
    book = rebuilt["codebook"]
    facts.append(f"codebook: {book['used']} of {book['size']} used, perplexity {book['perplexity']:.0f}")
    lines.append("; ".join(facts))
    for drawn in report["drawn"] if len(report["drawn"]) == 1 else []:
        facts = []
        for which in ("best", "first"):
            if which in drawn.get("clip_score", {}):
                fid = f", FID {drawn['fid'][which]:.2f}" if "fid" in drawn else ""
                facts.append(f"{which}: CLIP score {drawn['clip_score'][which]:.3f}{fid}")
        lines += ["; ".join(facts)] if facts else []
        if kinds := next(iter(drawn.get("template_accuracy", {}).values()), None):
            lines.append("right, by templates: " + ", ".join(f"{kind} {share} %" for kind, share in kinds.items()))
    if "clip" in report:
        lines += textwrap.wrap(report["clip"]["note"], 150)
    image = Image.new("RGB", (LABELS + COLUMNS * (TILE + GAP), 40 + 20 * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), report["model"], INK, _font(26))
    draw.multiline_text((0, 38), "\n".join(lines), INK, _font(14), spacing=5)
    return image


def _sheet(captions: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    above = 16 * CAPTION_LINES + 8
    image = Image.new("RGB", (LABELS + COLUMNS * (TILE + GAP) - GAP, above + len(rows) * (TILE + GAP) - GAP), "white")
    draw = ImageDraw.Draw(image)
    for column, caption in enumerate(captions):
        lines = textwrap.wrap(caption, CAPTION_LETTERS, max_lines=CAPTION_LINES, placeholder=" …")
        left = LABELS + column * (TILE + GAP)
        draw.multiline_text((left, above - 6), "\n".join(lines), INK, _font(12), spacing=3, anchor="ld")
    for number, row in enumerate(rows):
        top = above + number * (TILE + GAP)
        draw.text((0, top + TILE // 2), row.name, INK, _font(14), anchor="lm")
        for column, pixels in enumerate(row.pictures):
            # Small pictures show their pixels as they are; large ones are made smaller.
            filter = Image.Resampling.NEAREST if len(pixels) <= TILE else Image.Resampling.LANCZOS
            tile = Image.fromarray(pixels).resize((TILE, TILE), filter)
            image.paste(tile, (LABELS + column * (TILE + GAP), top))
    return image


def _panels(report: dict[str, Any]) -> list[Panel]:
    """CLIP score against condition scale and, the Pareto curve, against FID; none for a single scale."""
    drawn = sorted(report["drawn"], key=lambda row: row["condition_scale"])
    if len(drawn) < 2 or "clip" not in report:
        return []
    scales, names = [row["condition_scale"] for row in drawn], list(drawn[0]["clip_score"])
    scores = {name: [row["clip_score"][name] for row in drawn] for name in names}
    by_scale = {name: list(zip(scales, scores[name], strict=True)) for name in names}
    true = report["clip"]["score_of_true_pictures"]
    by_scale["true pictures"] = [(scales[0], true), (scales[-1], true)]
    panels = [Panel("condition scale", "CLIP score", by_scale)]
    if "fid" in drawn[0]:
        by_fid = {name: [(row["fid"][name], row["clip_score"][name]) for row in drawn] for name in names}
        panels.append(Panel("FID (lower is better)", "CLIP score", by_fid, [f"{scale:g}" for scale in scales]))
    return panels


def _diagram(panel: Panel) -> Image.Image:
    width, height = (side * SHARPER for side in PANEL)
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), _font(12 * SHARPER)
    left, top, right, bottom = 62 * SHARPER, 30 * SHARPER, width - 20 * SHARPER, height - 46 * SHARPER
    points = [point for curve in panel.curves.values() for point in curve]
    ticks = [_ticks([point[axis] for point in points]) for axis in (0, 1)]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        (x, y), (xs, ys) = point, ticks
        across, up = (x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    for x in ticks[0]:
        at = place((x, ticks[1][0]))
        draw.line([at, (at[0], top)], FAINT, SHARPER)
        draw.text((at[0], bottom + 5 * SHARPER), f"{x:g}", INK, font, anchor="ma")
    for y in ticks[1]:
        at = place((ticks[0][0], y))
        draw.line([at, (right, at[1])], FAINT, SHARPER)
        draw.text((left - 6 * SHARPER, at[1]), f"{y:g}", INK, font, anchor="rm")
    draw.text(((left + right) / 2, height - 2 * SHARPER), panel.x, INK, font, anchor="md")
    draw.text((left, 4 * SHARPER), panel.y, INK, font, anchor="la")
    end: float = right  # of what is left of the line of names
    for name, curve in reversed(panel.curves.items()):  # the best is drawn last, above the others
        draw.text((end, 4 * SHARPER), name, COLOURS[name], font, anchor="ra")
        end -= draw.textlength(name, font) + 14 * SHARPER
        _curve(draw, [place(point) for point in curve], panel.words, COLOURS[name])
    return image.resize(PANEL, Image.Resampling.LANCZOS)


def _curve(draw: ImageDraw.ImageDraw, places: Points, words: Sequence[str], colour: tuple[int, int, int]) -> None:
    draw.line(places, colour, 2 * SHARPER, joint="curve")
    for x, y in places:
        draw.circle((x, y), 4 * SHARPER, colour)
    for (x, y), word in zip(places, words, strict=False):  # no words, or one for each
        draw.text((x + 6 * SHARPER, y - 6 * SHARPER), word, colour, _font(12 * SHARPER), anchor="ls")


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, at least two, from below the smallest value to above the largest."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    step = 10.0 ** np.floor(np.log10(spread / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (step * factor) <= 6)
    first, last = int(np.floor(low / step)), int(np.ceil(high / step))
    return [float(f"{step * i:.6g}") for i in range(first, max(last, first + 1) + 1)]


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(image.width + EDGE for image in images), images[0].height), "white")
    for place, image in enumerate(images):
        row.paste(image, (place * (image.width + EDGE), 0))
    return row
