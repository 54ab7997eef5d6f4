"""What Draw runs: it begins a visit of the tab (web/visits.py), which goes on where the connection breaks off.

The browser (drawing.js) decides what is asked for and what is not wanted any more: every drawing has a name that the
tab gave it, and what is told of another than the newest is not shown.
"""

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from dalle_mini.gallery import Gallery, Preview
from dalle_mini.pipeline import Pipeline
from dalle_mini.serving.request import Waiting
from dalle_mini.web.answers import Answers, StorageError
from dalle_mini.web.limits import visitor_at
from dalle_mini.web.page import gr
from dalle_mini.web.page.settings import Control, settings_of
from dalle_mini.web.page.stage import Answer, answer, values
from dalle_mini.web.visits import Visits

OWN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # the page's events, not the API's


@dataclass(frozen=True, kw_only=True)
class Page:
    """The parts of the page that events read or change."""

    tab: gr.Textbox  # names, see drawing.js
    prompt: gr.Textbox
    draw: gr.HTML
    controls: dict[str, Control]  # by the names of SamplingParams
    stage: gr.HTML

    @property
    def fields(self) -> list[Control]:
        return [self.prompt, *self.controls.values()]


def connect(page: Page, pipeline: Pipeline, answers: Answers, visits: Visits) -> None:
    """Draw and Enter ask drawing.js, which asks for a drawing; who waits does so in the pipeline."""
    gr.on([page.draw.click, page.prompt.submit], None, page.fields, js="(...fields) => drawing.start(fields)", **OWN)
    asked = page.stage.draw(
        page_generator(pipeline, answers, visits, list(page.controls)),
        [page.tab, *page.fields],
        page.stage,
        js="() => drawing.asked()",
        preprocess=False,  # what SamplingParams says of a bad value names the setting
        concurrency_limit=None,
        trigger_mode="multiple",
        **OWN,
    )
    asked.failure(None, None, None, js="() => drawing.lost()", **OWN)
    page.stage.fill(None, None, page.fields, js="() => fields.filled()", **OWN)


def page_generator(
    pipeline: Pipeline, answers: Answers, visits: Visits, names: list[str]
) -> Callable[..., Iterator[dict[str, Any]]]:
    """What Draw runs: begins a visit of the tab, and shows it."""

    def draw(request: gr.Request, tab: str, prompt: str | None, *fields: Any) -> Iterator[dict[str, Any]]:
        tab, drawing, former = [*names_in(tab), "", "", ""][:3]
        settings = {**dict(zip(names, fields, strict=True)), "visitor": visitor_at(request.client.host)}
        if former:
            visits.stop(tab, former)
        events = drawn(pipeline, answers, tab or request.session_hash, prompt or "", settings)
        # When a visitor stops or leaves, Gradio closes this generator: closing() passes that on.
        with closing(visits.begin(tab, events, drawing)) as events:
            yield from values(drawing, events)
        yield gr.skip()  # Gradio sends the last once more

    return draw


def names_in(text: str | None) -> list[str]:
    """The names of a tab, its drawing, and the one that this replaces."""
    return re.findall(r"[\w-]{1,64}", text or "")


def drawn(
    pipeline: Pipeline, answers: Answers, session: str | None, prompt: str, settings: dict[str, Any]
) -> Generator[Waiting | Preview | Answer, None, None]:
    """The events of the pipeline, and an answer instead of its gallery. `settings`: fields as the page has them."""
    try:
        with closing(pipeline.stream(prompt, **settings_of(settings, pipeline.resolution))) as events:
            answers.check()  # before anything is drawn for nothing
            for event in events:
                yield answer(event, answers.save(event, session)) if isinstance(event, Gallery) else event
    except StorageError:  # drawn or not, nobody gets it
        pipeline.metrics.ended("failed")
        raise
