"""What stands in the head of the page: its facts, and its scripts in the order in which they need each other."""

import json
from pathlib import Path
from typing import Any

from dalle_mini.pipeline import Pipeline
from dalle_mini.sampling_params import STRENGTH
from dalle_mini.web.page.settings import usual
from dalle_mini.web.page.words import WORDS

FOLDER = Path(__file__).parent
SCRIPTS: tuple[str, ...] = ("base", "tab", "share", "fields", "pictures", "report", "actions", "opened")
SCRIPTS += ("gallery", "past", "drawing", "png", "embed", "ready")


def heads(pipeline: Pipeline, examples: list[dict[str, Any]], fields: list[str]) -> dict[str, str]:
    """In every language. `fields`: the names of the prompt and the settings, in the order in which events take them."""
    facts = {
        "fields": fields,
        "usual": usual(pipeline.defaults),
        "side": pipeline.config.side,
        "resolution": pipeline.resolution,
        "strength": STRENGTH,
        "model": pipeline.name,
        "examples": examples,
    }
    style = (FOLDER / "head.css").read_text(encoding="utf-8")
    scripts = "\n".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    found = {}
    for language, words in WORDS.items():
        told = json.dumps({**facts, "lang": language, "words": words}, ensure_ascii=False)
        safe = told.replace("<", "\\u003c")  # which could end the script
        found[language] = f"<style>{style}</style><script>window.page = {safe};\n{scripts}</script>"
    return found
