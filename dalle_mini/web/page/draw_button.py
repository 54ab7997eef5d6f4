"""What the buttons do: Draw (or Enter) runs the pipeline and shows its events, Stop ends it, Reuse seed fills it in."""

import html
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from dalle_mini.gallery import Gallery
from dalle_mini.pipeline import Pipeline
from dalle_mini.serving.request import Waiting
from dalle_mini.web.answers import Answers
from dalle_mini.web.limits import visitor_at
from dalle_mini.web.page import gr
from dalle_mini.web.page.settings import whole
from dalle_mini.web.page.texts import caption, footer, line, messages, status, summary, unfinished

REUSE = "Reuse seed "


@dataclass(frozen=True, kw_only=True)
class Page:
    """The parts of the page that events read or change."""

    prompt: gr.Textbox
    draw: gr.Button
    stop: gr.Button
    panel: gr.Accordion
    controls: dict[str, gr.Component]  # by the names of SamplingParams
    told: gr.HTML
    reuse: gr.Button
    gallery: gr.Gallery
    previews: gr.HTML
    about: gr.HTML


def connect(page: Page, pipeline: Pipeline, answers: Answers) -> None:
    """Draw and Enter run the pipeline, Stop cancels it, waiting or running. Who waits does so in the pipeline."""
    own: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    now: dict[str, Any] = own | {"queue": False, "outputs": [page.draw, page.stop, page.told, page.reuse]}
    asked = gr.on([page.draw.click, page.prompt.submit], lambda: toggle(drawing=True), **now)
    run = asked.then(
        page_generator(pipeline, answers, list(page.controls)),
        [page.prompt, *page.controls.values()],
        [page.gallery, page.previews, page.told, page.about, page.reuse],
        preprocess=False,  # what SamplingParams says of a bad value names the setting
        concurrency_limit=None,
        **own,
    )
    run.success(lambda: toggle(drawing=False), **now)
    run.failure(lambda: toggle(drawing=False, text="stopped"), **now)  # a cancelled event has failed, too
    page.stop.click(None, cancels=[run])
    again: dict[str, Any] = own | {"queue": False, "outputs": [page.controls["seed"], page.panel]}
    page.reuse.click(lambda label: (label.removeprefix(REUSE), gr.Accordion(open=True)), page.reuse, **again)


def page_generator(pipeline: Pipeline, answers: Answers, names: list[str]) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """What Draw runs: (gallery, previews, status, footer, reuse button) for every event of the pipeline."""

    def draw(request: gr.Request, prompt: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        settings = dict(zip(names, values, strict=True))
        settings["seed"] = whole(str(settings["seed"] or "").strip())
        shown, told = None, ""  # events repeat themselves, so that Gradio finds out who has gone
        settings["visitor"] = visitor_at(request.client.host)
        # When a visitor stops or leaves, Gradio closes this generator: closing() passes that on to the pipeline.
        with messages(pipeline, html.escape), closing(pipeline.stream(prompt or "", **settings)) as events:
            answers.check()  # before anything is drawn for nothing
            for event in events:
                if isinstance(event, Gallery):
                    paths = answers.save(event, request.session_hash)
                    ranked = [(path, caption(*c)) for path, c in zip(paths, enumerate(event, 1), strict=True)]
                    reuse = gr.Button(REUSE + str(event.params.seed), visible=True)
                    gallery = gr.Gallery(ranked, visible=True)
                    yield gallery, gr.HTML(visible=False), status(summary(event)), footer(pipeline, event), reuse
                    continue
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

    return draw


def toggle(*, drawing: bool, text: str | None = None) -> tuple[Any, ...]:
    """Updates for (draw button, stop button, status, reuse button)."""
    return (
        gr.Button(visible=not drawing),
        gr.Button(visible=drawing),
        gr.skip() if text is None else status(text),
        gr.Button(visible=False) if drawing else gr.skip(),
    )
