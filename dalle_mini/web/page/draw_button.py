"""What the buttons do: Draw (or Enter) runs the pipeline and shows its events, Stop ends it, Reuse seed fills it in.

What is drawn is a visit of the tab (web/visits.py), which goes on where the connection breaks off; see tab.py.
"""

import html
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle_mini.gallery import Gallery, Preview
from dalle_mini.pipeline import Pipeline
from dalle_mini.serving.request import Waiting
from dalle_mini.web.answers import Answers
from dalle_mini.web.limits import visitor_at
from dalle_mini.web.page import gr
from dalle_mini.web.page.settings import whole
from dalle_mini.web.page.texts import caption, footer, line, messages, status, summary, unfinished
from dalle_mini.web.visits import Visits

REUSE = "Reuse seed "
OWN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # the page's events, not the API's


@dataclass(frozen=True, kw_only=True)
class Page:
    """The parts of the page that events read or change."""

    tab: gr.Textbox  # the id of the tab, see tab.py
    prompt: gr.Textbox
    draw: gr.Button
    stop: gr.Button
    panel: gr.Accordion
    controls: dict[str, gr.Number | gr.Textbox]  # by the names of SamplingParams
    told: gr.HTML
    reuse: gr.Button
    gallery: gr.Gallery
    previews: gr.HTML
    about: gr.HTML


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the page shows of a gallery. The pictures are in files, not in memory."""

    pictures: list[tuple[Path, str]]  # with their captions
    summary: str
    footer: str
    seed: int


def connect(page: Page, pipeline: Pipeline, answers: Answers, visits: Visits) -> None:
    """Draw and Enter run the pipeline, Stop cancels it, waiting or running. Who waits does so in the pipeline."""
    now: dict[str, Any] = OWN | {"queue": False, "outputs": [page.draw, page.stop, page.told, page.reuse]}
    asked = gr.on([page.draw.click, page.prompt.submit], lambda: toggle(drawing=True), **now)
    run = asked.then(
        page_generator(pipeline, answers, visits, list(page.controls)),
        [page.tab, page.prompt, *page.controls.values()],
        [page.gallery, page.previews, page.told, page.about, page.reuse],
        preprocess=False,  # what SamplingParams says of a bad value names the setting
        concurrency_limit=None,
        **OWN,
    )
    run.success(lambda: toggle(drawing=False), **now)
    run.failure(lambda: toggle(drawing=False, text="stopped"), **now)  # a cancelled event has failed, too
    page.stop.click(visits.stop, page.tab, cancels=[run], queue=False, **OWN)
    again: dict[str, Any] = OWN | {"queue": False, "outputs": [page.controls["seed"], page.panel]}
    page.reuse.click(lambda label: (label.removeprefix(REUSE), gr.Accordion(open=True)), page.reuse, **again)


def page_generator(
    pipeline: Pipeline, answers: Answers, visits: Visits, names: list[str]
) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """What Draw runs: begins a visit of the tab, and shows it."""

    def draw(request: gr.Request, tab: str | None, prompt: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        settings = dict(zip(names, values, strict=True))
        settings["seed"] = whole(str(settings["seed"] or "").strip())
        settings["visitor"] = visitor_at(request.client.host)
        drawing = drawn(pipeline, answers, tab or request.session_hash, prompt or "", settings)
        # When a visitor stops or leaves, Gradio closes this generator: closing() passes that on.
        with closing(visits.begin(tab or "", drawing)) as events:
            yield from updates(events)

    return draw


def drawn(
    pipeline: Pipeline, answers: Answers, session: str | None, prompt: str, settings: dict[str, Any]
) -> Generator[Waiting | Preview | Answer, None, None]:
    """The events of the pipeline, and an answer instead of its gallery."""
    with messages(pipeline, html.escape), closing(pipeline.stream(prompt, **settings)) as events:
        answers.check()  # before anything is drawn for nothing
        for event in events:
            if not isinstance(event, Gallery):
                yield event
                continue
            captions = [caption(rank, candidate) for rank, candidate in enumerate(event, 1)]
            yield Answer(
                pictures=list(zip(answers.save(event, session), captions, strict=True)),
                summary=summary(event),
                footer=footer(pipeline, event),
                seed=event.params.seed or 0,
            )


def updates(events: Iterable[Waiting | Preview | Answer]) -> Iterator[tuple[Any, ...]]:
    """(gallery, previews, status, footer, reuse button) for every event."""
    shown, told = None, ""  # events repeat themselves, so that Gradio finds out who has gone
    for event in events:
        if isinstance(event, Answer):
            if not all(path.is_file() for path, _ in event.pictures):
                return  # it was kept longer than its files
            reuse = gr.Button(f"{REUSE}{event.seed}", visible=True)
            gallery = gr.Gallery(event.pictures, visible=True)
            yield gallery, gr.HTML(visible=False), status(event.summary), event.footer, reuse
            return
        gallery = pictures = gr.skip()
        if isinstance(event, Waiting):
            now = status(line(event))
        else:
            now = status(f"drawing row {event.row} of {event.rows}", event.row, event.rows)
            if event.images is not shown:
                gallery, pictures = gr.Gallery(visible=False), gr.HTML(unfinished(event.images), visible=True)
                shown = event.images
        yield gallery, pictures, gr.skip() if now == told else now, gr.skip(), gr.skip()
        told = now
    yield gr.skip(), gr.skip(), status("stopped"), gr.skip(), gr.skip()


def toggle(*, drawing: bool, text: str | None = None) -> tuple[Any, ...]:
    """Updates for (draw button, stop button, status, reuse button)."""
    return (
        gr.Button(visible=not drawing),
        gr.Button(visible=drawing),
        gr.skip() if text is None else status(text),
        gr.Button(visible=False) if drawing else gr.skip(),
    )
