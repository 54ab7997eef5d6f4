"""What the page says, in words.json: {language: {name: sentence}}; the scripts fill in `{...}`."""

import json
import re
from pathlib import Path

from dalle_mini.web.page import gr

LABELS = (
    "prompt",
    "draw",
    "settings",
    "expert",
    "random",
)  # and the settings, which have an "-info", and their choices
WORDS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def i18n() -> gr.I18n:
    """For the labels that Gradio shows, which are `say(name)`."""
    return gr.I18n(
        **{
            language: {name: text for name, text in words.items() if _is_label(name)}
            for language, words in WORDS.items()
        }
    )


def language_of(wanted: str, accepted: str) -> str:
    """The page's: what its address wants, or the first that the browser accepts (RFC 9110, 12.5.4), or English."""
    liked = []
    for i, choice in enumerate(accepted.split(",")):
        name, _, weight = choice.partition(";")
        found = re.fullmatch(r"\s*q=([\d.]+)\s*", weight)
        liked.append((-float(found[1]) if found and found[1].count(".") < 2 else -1.0, i, name))
    names = [wanted, *(name for *_, name in sorted(liked))]
    return next((short for name in names if (short := name.strip()[:2].lower()) in WORDS), "en")


def say(name: str) -> str:
    """The name of a sentence, as Gradio looks it up in the browser."""
    assert _is_label(name), name
    return str(i18n()(name))


def _is_label(name: str) -> bool:
    return name in LABELS or f"{name.removesuffix('-info')}-info" in WORDS["en"]
