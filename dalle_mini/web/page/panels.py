"""What can be done with a picture that somebody brings: start from it, and look at what the codes keep of it."""

from pathlib import Path

from dalle_mini.web.page import gr

FOLDER = Path(__file__).parent


def panel(name: str) -> gr.HTML:
    """`name` is the panel's id, its template and its script."""
    return gr.HTML(
        html_template=(FOLDER / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=(FOLDER / f"{name}.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=name,
    )
