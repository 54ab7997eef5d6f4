"""What the page says, in words.json: {language: {name: sentence}}; the scripts fill in `{...}`.

The English of notes is the pipeline's.
"""

import json
from pathlib import Path

from dalle_mini.notes import SENTENCES
from dalle_mini.web.page import gr

LABELS = ("prompt", "settings", "expert", "random")  # and the settings, which have an "-info"
WORDS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
WORDS["en"] |= SENTENCES


def i18n() -> gr.I18n:
    """For the labels that Gradio shows, which are `say(name)`."""
    return gr.I18n(
        **{
            language: {name: text for name, text in words.items() if _is_label(name)}
            for language, words in WORDS.items()
        }
    )


def language_of(wanted: str, accepted: str) -> str:
    """The page's: what its address wants, or the first of ours in Accept-Language, where the best liked is first."""
    names = (name.strip()[:2].lower() for name in (wanted, *accepted.split(",")))
    return next((name for name in names if name in WORDS), "en")


def say(name: str) -> str:
    """The name of a sentence, as Gradio looks it up in the browser."""
    assert _is_label(name), name
    return str(i18n()(name))


def _is_label(name: str) -> bool:
    return name in LABELS or f"{name.removesuffix('-info')}-info" in WORDS["en"]
