"""What the page says, in words.json: {language: {name: sentence}}; the scripts fill in `{...}`."""

import json
from pathlib import Path

from dalle_mini.web.page import gr

WORDS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def i18n() -> gr.I18n:
    """For the labels that Gradio shows, which are `say(name)`."""
    return gr.I18n(**WORDS)


def say(name: str) -> str:
    """The name of a sentence, as Gradio looks it up in the browser."""
    assert name in WORDS["en"], name
    return str(i18n()(name))
