"""The endpoint /generate, for programs: the same pipeline, with events and answers as JSON."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

from PIL import Image

from dalle_mini.gallery import Preview
from dalle_mini.pipeline import Pipeline
from dalle_mini.serving.request import Waiting
from dalle_mini.web.answers import Answers
from dalle_mini.web.limits import visitor_at
from dalle_mini.web.page import gr
from dalle_mini.web.page.texts import caption, data_url, messages


def settings_of(pipeline: Pipeline) -> dict[str, Any]:
    """What /generate takes after the prompt, in order, and what is left out of it."""
    return {**asdict(pipeline.defaults), "previews": False}


def checker(pipeline: Pipeline) -> Callable[[dict[str, Any]], None]:
    """Whether /generate would draw with these values. Raises ValueError naming the setting, the rule and the value."""

    def check(values: dict[str, Any]) -> None:
        pipeline.checked(values["prompt"], {name: values[name] for name in asdict(pipeline.defaults)})

    return check


def events_of(demo: gr.Blocks) -> dict[str, dict[int, int]]:
    """How many values each event takes, by its number: those that wait in Gradio's queue, and those that do not."""
    queued, direct = (
        {number: len(event.inputs) for number, event in demo.fns.items() if bool(event.queue) == kind}
        for kind in (True, False)
    )
    return {"/gradio_api/queue/join": queued, "/gradio_api/run/predict": direct}


def is_listened_to(demo: gr.Blocks, name: str) -> bool:
    """Whether a session or an event has something to tell, or will have."""
    queue = demo._queue
    told, running = queue.pending_messages_per_session, queue.event_ids_to_events
    return name in told or name in running or any(name in ids for ids in queue.pending_event_ids_session.values())


def api_function(pipeline: Pipeline, answers: Answers) -> Callable[..., Iterator[dict[str, Any]]]:
    """The endpoint /generate: Gradio documents its typed parameters to clients and checks none of them."""
    defaults = pipeline.defaults

    def generate(
        request: gr.Request,
        prompt: str,
        num_candidates: int = defaults.num_candidates,
        seed: int | None = defaults.seed,
        condition_scale: float = defaults.condition_scale,
        temperature: float = defaults.temperature,
        top_k: int = defaults.top_k,
        top_p: float = defaults.top_p,
        previews: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """In line: {place, seconds}. Then {row, rows}. At last {seed, model, seconds, notes, candidates}, best first.

        At least one every three seconds: what has not changed is said again. With `previews`, what has a row has
        {previews}, too, where there are new ones: of every candidate a JPEG as a data URL, grey below what is drawn.
        """
        settings: dict[str, Any] = {"num_candidates": num_candidates, "seed": seed, "condition_scale": condition_scale}
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings |= {"visitor": visitor_at(request.client.host), "previews": previews}
        shown: list[Image.Image] = []
        with messages(pipeline), closing(pipeline.stream(prompt, **settings)) as events:
            answers.check()  # before anything is drawn for nothing
            for event in events:
                if isinstance(event, Waiting):
                    yield {"place": event.place, "seconds": event.seconds}
                    continue
                if isinstance(event, Preview):
                    new = previews and event.images is not shown
                    shown = event.images
                    pictures = {"previews": [data_url(image) for image in shown]} if new else {}
                    yield {"row": event.row, "rows": event.rows} | pictures
                    continue
                facts = {"seed": event.params.seed, "model": event.model, "seconds": event.seconds}
                candidates = [
                    {
                        "image": gr.FileData(path=str(path), orig_name=path.name).model_dump(),
                        "caption": caption(rank, candidate),
                        "score": candidate.score,
                        "seed": candidate.seed,
                        "candidate": candidate.index,
                    }
                    for rank, (path, candidate) in enumerate(
                        zip(answers.save(event, request.session_hash), event, strict=True), 1
                    )
                ]
                yield facts | {"notes": list(event.notes), "candidates": candidates}

    return generate
