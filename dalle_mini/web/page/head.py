"""What stands in the head of the page: its facts, and its scripts in the order in which they need each other."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dalle_mini.pipeline import Pipeline
from dalle_mini.web.page.words import WORDS

FOLDER = Path(__file__).parent
SCRIPTS = ("base", "tab", "share", "fields", "opened", "gallery", "history", "drawing", "png", "embed", "ready")


def head(pipeline: Pipeline, examples: list[dict[str, Any]], fields: list[str]) -> str:
    """`fields`: the names of the prompt and the settings, in the order in which events take them."""
    facts = {
        "fields": fields,
        "defaults": dataclasses.asdict(pipeline.defaults),
        "model": pipeline.name,
        "examples": examples,
        "words": WORDS,
    }
    style = (FOLDER / "head.css").read_text(encoding="utf-8")
    scripts = "\n".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    safe = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")  # which could end the script
    return f"<style>{style}</style><script>window.page = {safe};\n{scripts}</script>"
