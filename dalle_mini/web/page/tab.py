"""Coming back to a tab, after a reload or a connection that broke off: fields as they were left, and the drawing.

The tab has its id and its fields from tab.js; the server keeps the drawing (web/visits.py).
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from dalle_mini.web.page import gr
from dalle_mini.web.page.draw_button import OWN, Page, toggle, updates
from dalle_mini.web.visits import Visits

HEAD = f"<script>{Path(__file__).with_suffix('.js').read_text(encoding='utf-8')}</script>"


def connect_tab(demo: gr.Blocks, page: Page, visits: Visits) -> None:
    """Fields are kept whenever they change. Gradio reloads the page when a lost server is there again."""
    fields = [page.prompt, *page.controls.values()]
    gr.on([field.change for field in fields], None, fields, js="(...fields) => tab.keep(...fields)", **OWN)
    kept = [page.tab, *fields]
    there = demo.load(None, kept, kept, js="(...fields) => tab.back(...fields)", **OWN)
    buttons = [page.draw, page.stop]
    shown = [page.gallery, page.previews, page.told, page.about, page.reuse]
    run = there.then(returned(visits), page.tab, [*shown, *buttons], concurrency_limit=None, **OWN)
    run.failure(lambda: toggle(drawing=False, text="stopped"), None, [*buttons, page.told, page.reuse], **OWN)
    page.stop.click(None, cancels=[run])


def returned(visits: Visits) -> Callable[[str], Iterator[tuple[Any, ...]]]:
    """As `updates`, with (draw button, stop button): of the visit of the tab, where there is one."""

    def show(tab: str) -> Iterator[tuple[Any, ...]]:
        visit = visits.find(tab)
        if visit is None:
            yield (gr.skip(),) * 7  # Gradio makes something of nothing
            return
        with closing(visit.watch()) as events:
            for values in updates(events):
                yield *values, gr.Button(visible=False), gr.Button(visible=True)
        yield *[gr.skip()] * 5, gr.Button(visible=True), gr.Button(visible=False)

    return show
