"""The model cards: what the model is and is not for in one line, the whole of it in one click, ours first."""

from markdown_it import MarkdownIt

from dalle_mini.web.page import gr
from dalle_mini.web.page.texts import harmless


def card(*texts: str) -> gr.HTML:
    """Markdown as HTML, without any HTML of its own."""
    markdown = MarkdownIt("js-default", {"html": False}).enable("table")
    whole = "".join(f"<article>{markdown.render(harmless(text))}</article>" for text in texts if text)
    whole = whole.replace("<th></th>", "<td></td>")  # a header without a word is none
    return gr.HTML(
        '<p><strong data-say="card-short"></strong> <span data-say="card-credit"></span></p>'
        f'<details><summary data-say="card"></summary><div class="cards" lang="en" dir="ltr">{whole}</div></details>',
        elem_id="card",
        apply_default_css=False,
    )
