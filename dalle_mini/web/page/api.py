"""The endpoints for programs: the same pipeline, with events and answers as JSON.

/generate   prompt, settings
/complete   prompt, start, keep, settings        start: a picture as a data URL, or codes
/vary       prompt, start, strength, settings
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields
from inspect import Parameter, Signature
from typing import Any, get_type_hints

from PIL import Image

from dalle_mini.gallery import Candidate, Preview
from dalle_mini.pictures import data_url
from dalle_mini.pipeline import Pipeline
from dalle_mini.sampling_params import FIRST, STRENGTH, SamplingParams
from dalle_mini.serving.request import Waiting
from dalle_mini.web.answers import Answers
from dalle_mini.web.limits import visitor_at
from dalle_mini.web.page import gr
from dalle_mini.web.page.settings import sent
from dalle_mini.web.page.texts import caption, messages

# Settings after those that there have always been; a start is an argument of its own.
MORE = tuple(each.name for each in fields(SamplingParams) if each.name not in (*FIRST, "start"))
START = str | list[int]


def parameters_of(pipeline: Pipeline) -> dict[str, dict[str, Parameter]]:
    """What each endpoint takes, in order; a parameter without a default must be given."""
    hints, defaults = get_type_hints(SamplingParams), pipeline.defaults
    settings = {name: (hints[name], getattr(defaults, name)) for name in (*FIRST, *MORE)}
    first, more = ({name: settings[name] for name in names} for names in (FIRST, MORE))
    rest = {**first, "previews": (bool, False), **more}
    prompt, start = {"prompt": (str, Parameter.empty)}, {"start": (START, Parameter.empty)}
    taken: dict[str, dict[str, tuple[Any, Any]]] = {
        "generate": {**prompt, **rest},
        "complete": {**prompt, **start, "keep": (int | list[list[bool]] | None, None), **rest},
        "vary": {**prompt, **start, "strength": (float, STRENGTH), **rest},
    }
    return {
        endpoint: {
            name: Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
            for name, (kind, default) in names.items()
        }
        for endpoint, names in taken.items()
    }


def checker(pipeline: Pipeline) -> Callable[[dict[str, Any]], None]:
    """Whether an endpoint would draw with these values; a start is looked at when it is read. Raises ValueError."""

    def check(values: dict[str, Any]) -> None:
        pipeline.checked(values["prompt"], {name: values[name] for name in (*FIRST, *MORE)})

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


def api_function(
    pipeline: Pipeline, answers: Answers, parameters: Mapping[str, Parameter]
) -> Callable[..., Iterator[dict[str, Any]]]:
    """An endpoint: Gradio documents its typed parameters to clients and checks none of them."""

    def draw(request: gr.Request, *values: Any) -> Iterator[dict[str, Any]]:
        """In line: {place, seconds}. Then {row, rows}. At last {seed, model, seconds, notes, candidates}, best first.

        At least one every three seconds: what has not changed is said again. With `previews`, what has a row has
        {previews}, too, where there are new ones: of every candidate a JPEG as a data URL, grey below what is drawn.
        """
        settings = dict(zip(parameters, values, strict=True))
        previews, shown = settings["previews"], list[Image.Image]()
        settings["visitor"] = visitor_at(request.client.host)
        with messages(pipeline):
            if "start" in settings:
                settings["start"] = sent(settings["start"], pipeline.resolution)
            with closing(pipeline.stream(**settings)) as events:
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
                    saved = zip(answers.save(event, request.session_hash), event, strict=True)
                    candidates = [
                        {"image": gr.FileData(path=str(path), orig_name=path.name).model_dump(), **_told(rank, each)}
                        for rank, (path, each) in enumerate(saved, 1)
                    ]
                    yield facts | {"notes": list(event.notes), "candidates": candidates}

    own = [Parameter("request", Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request), *parameters.values()]
    draw.__signature__ = Signature(own, return_annotation=Iterator[dict[str, Any]])  # type: ignore[attr-defined]
    draw.__annotations__ = {each.name: each.annotation for each in own} | {"return": Iterator[dict[str, Any]]}
    return draw


def _told(rank: int, candidate: Candidate) -> dict[str, Any]:
    return {
        "caption": caption(rank, candidate),
        "score": candidate.score,
        "seed": candidate.seed,
        "candidate": candidate.index,
        "codes": candidate.codes.tolist(),
    }
