"""A part of the page: its template and its script, which lie beside this file."""

from pathlib import Path
from typing import Any

from dalle_mini.web.page import gr

FOLDER = Path(__file__).parent


def part(name: str, value: Any = None, *, elem_id: str | None = None) -> gr.HTML:
    """The script is run when Gradio has made the template, which has no braces: values are never part of it."""
    return gr.HTML(
        value,
        html_template=(FOLDER / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=(FOLDER / f"{name}.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=elem_id or name,
    )
