"""Coming back to a tab, after a reload or a connection that broke off: fields as they were left, and the drawing.

The tab has its id and its fields from tab.js; the server keeps the drawing (web/visits.py).
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from dalle_mini.web.page import gr
from dalle_mini.web.page.drawing import OWN, Page
from dalle_mini.web.page.stage import values
from dalle_mini.web.visits import Visits


def connect_tab(demo: gr.Blocks, page: Page, visits: Visits) -> None:
    """Fields are kept whenever they change. Gradio reloads the page when a lost server is there again."""
    gr.on([field.change for field in page.fields], None, page.fields, js="(...fields) => tab.keep(...fields)", **OWN)
    kept = [page.tab, *page.fields]
    there = demo.load(None, kept, kept, js="(...fields) => tab.back(...fields)", **OWN)
    there.then(returned(visits), page.tab, page.stage, js="(id) => tab.settled(id)", concurrency_limit=None, **OWN)
    page.stage.hear(returned(visits), page.tab, page.stage, concurrency_limit=None, **OWN)


def returned(visits: Visits) -> Callable[[str], Iterator[dict[str, Any]]]:
    """What is told of the visit of the tab, where there is one."""

    def show(tab: str) -> Iterator[dict[str, Any]]:
        visit = visits.find(tab)
        if visit is None:
            yield {"nothing": True}
        else:
            with closing(visit.watch()) as events:
                yield from values(visit.drawing, events)
        yield gr.skip()  # Gradio makes something of nothing, and sends the last once more

    return show
