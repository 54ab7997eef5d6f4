"""Your drawings: a strip of thumbnails, kept by the browser alone. A click brings one back, with its settings."""

from pathlib import Path

from dalle_mini.web.page import gr

FOLDER = Path(__file__).parent


def history() -> gr.HTML:
    return gr.HTML(
        html_template=(FOLDER / "history.html").read_text(encoding="utf-8"),
        js_on_load=(FOLDER / "strip.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="history",
    )
