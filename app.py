"""The page: a prompt, pictures that appear row by row, the ranked gallery, the model card.

Gradio only. All it shows comes from a `Pipeline`: this file draws nothing, ranks nothing and holds no default
of a setting; it turns the pipeline's errors into messages for people. The page asks no other host for anything.

    build_demo(pipeline, answers) -> gr.Blocks     the page and the API endpoint /generate
    launch(pipeline) -> address                    the one way it is served, by main() and by the tests
"""

import base64
import enum
import html
import io
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

import dalle_mini
from dalle_mini.config import MAX_CANDIDATES
from dalle_mini.gallery import Candidate, Gallery, Preview
from dalle_mini.serving.refusals import RefusedError
from dalle_mini.serving.request import Waiting
from dalle_mini.serving.scheduler import MAX_WAITING
from dalle_mini.web import server as web
from dalle_mini.web.answers import Answers
from dalle_mini.web.limits import Limits, visitor_at
from vqgan.files import CheckpointError

os.environ |= {  # gradio reads them when it is imported, and when there is a queue
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",  # it would keep 10000 and make statistics of them after each one:
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",  # /metrics has ours
}
import gradio as gr

# Gradio looks for it before and after every event and, where it is not installed, in every folder of the path.
sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]

ASSETS = Path(__file__).parent / "assets"
IN_A_SPACE = "SPACE_ID" in os.environ
HOST = "0.0.0.0" if IN_A_SPACE else "127.0.0.1"  # a Space is reached from outside
# ... through proxies in private networks. The last address before theirs is the visitor's: anybody can send others.
PROXY = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16" if IN_A_SPACE else None
TAGLINE = "Type what you would like to see. The model draws it several times, and CLIP puts the best first."
REUSE = "Reuse seed "
EXAMPLES = (
    "a cat left of a pizza",
    "a red apple on a blue background",
    "three hearts",
    "an avocado on a yellow background",
    "a robot under a rainbow",
    "a big strawberry",
    "two trees on a green background",
    "a tiny dog",
)
# Setting: label, step, what it does. No ends: SamplingParams refuses what cannot be, where Gradio would change it.
NUMBERS = {
    "num_candidates": ("Candidates", 1, f"Pictures to draw and rank, up to {MAX_CANDIDATES}"),
    "condition_scale": ("Condition scale", 0.1, "How closely to follow the prompt"),
    "temperature": ("Temperature", 0.05, "Higher is more varied"),
    "top_k": ("Top-k", 1, "Only the k likeliest codes; 0 is off"),
    "top_p": ("Top-p", 0.05, "Only the likeliest codes, up to this probability; 1 is off"),
}


class Engine(enum.StrEnum):
    """What draws: this process, or replicas on Ray (dalle_mini/serving/ray.py)."""

    LOCAL = "local"
    RAY = "ray"


def counts(engine: Engine, replicas: str | None) -> int | tuple[int, int] | None:
    """`--replicas`: a number (2 if unset), or the fewest and the most; None for an engine in this process."""
    if engine is Engine.LOCAL:
        if replicas is not None:
            raise ValueError(f"replicas must be left out without engine ray, got {replicas!r}")
        return None
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", "2" if replicas is None else replicas)
    if found is None:
        raise ValueError(f"replicas must be a number or two, such as 2 or 1-8, got {replicas!r}")
    fewest, most = int(found[1]), int(found[2] or found[1])
    return fewest if fewest == most else (fewest, most)


@contextmanager
def messages(spell: Callable[[str], str] = str) -> Iterator[None]:
    """What the pipeline refuses reaches the page, which shows HTML, and the API's clients in its own sentence."""
    try:
        yield
    except (ValueError, CheckpointError, RefusedError) as error:
        raise gr.Error(spell(str(error)), duration=20, print_exception=False) from error


def caption(rank: int, candidate: Candidate) -> str:
    score = "" if candidate.score is None else f" · score {candidate.score:.3f}"
    return f"#{rank}{score} · seed {candidate.seed} · candidate {candidate.index}"


def whole(text: str) -> int | str | None:
    """A seed as typed: blank is None (random), and what is no whole number is left for the pipeline to refuse."""
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else text or None


def status(text: str, row: int = 0, rows: int = 0) -> str:
    bar = f'<progress value="{row}" max="{rows}" aria-label="rows drawn"></progress>' if rows else ""
    return f"<span>{html.escape(text)}</span>{bar}"


def data_url(image: Image.Image) -> str:
    """A picture inside the message itself: nine files a row would have to be kept and fetched."""
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def unfinished(images: list[Image.Image]) -> str:
    shown = (f'<img src="{data_url(image)}" alt="candidate {i}, not finished yet">' for i, image in enumerate(images))
    return f"<div>{''.join(shown)}</div>"


def summary(gallery: Gallery) -> str:
    order = "as drawn" if gallery[0].score is None else "best first"
    return " · ".join([f"{len(gallery)} drawn in {gallery.seconds:.1f} s, {order}", *gallery.notes])


def line(event: Waiting) -> str:
    wait = "" if event.seconds is None else f", about {max(1, round(event.seconds))} s"
    return f"waiting: place {event.place} in line{wait}"


def footer(pipeline: dalle_mini.Pipeline, gallery: Gallery | None = None) -> str:
    speed = f"{gallery.seconds / len(gallery):.2f}" if gallery else "not measured yet"
    facts = {"device": pipeline.device, "model": pipeline.name, "seconds per image": speed}
    return " · ".join(f"{name} <b>{html.escape(value)}</b>" for name, value in facts.items())


def card(text: str) -> str:
    """A model card as Markdown without YAML, pictures and HTML, which might ask other hosts for something."""
    text = re.sub(r"\A\s*---[ \t]*\n(.*?\n)??---[ \t]*(\n|\Z)", "", text, flags=re.DOTALL)
    return re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])?|<(?!https?:)[/!]?[a-zA-Z-][^>]*>", "", text)


def toggle(*, drawing: bool, text: str | None = None) -> tuple[Any, ...]:
    """Updates for (draw button, stop button, status, reuse button)."""
    return (
        gr.Button(visible=not drawing),
        gr.Button(visible=drawing),
        gr.skip() if text is None else status(text),
        gr.Button(visible=False) if drawing else gr.skip(),
    )


def page_generator(
    pipeline: dalle_mini.Pipeline, answers: Answers, names: list[str]
) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """What Draw runs: (gallery, previews, status, footer, reuse button) for every event of the pipeline."""

    def draw(request: gr.Request, prompt: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        settings = dict(zip(names, values, strict=True))
        settings["seed"] = whole(str(settings["seed"] or "").strip())
        shown, told = None, ""  # events repeat themselves, so that Gradio finds out who has gone
        settings["visitor"] = visitor_at(request.client.host)
        # When a visitor stops or leaves, Gradio closes this generator: closing() passes that on to the pipeline.
        with messages(html.escape), closing(pipeline.stream(prompt or "", **settings)) as events:
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


def api_function(pipeline: dalle_mini.Pipeline, answers: Answers) -> Callable[..., Iterator[dict[str, Any]]]:
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
        with messages(), closing(pipeline.stream(prompt, **settings)) as events:
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


def settings_panel(defaults: dalle_mini.SamplingParams) -> dict[str, gr.Component]:
    controls: dict[str, gr.Component] = {}
    for name, (label, step, info) in NUMBERS.items():
        value = getattr(defaults, name)
        controls[name] = gr.Number(value, step=step, label=label, info=info, min_width=240)
    # Not a Number, which shows 0 where it has no value.
    info = "The same seed, the same pictures"
    controls["seed"] = gr.Textbox(label="Seed", placeholder="random", info=info, min_width=240)
    return controls


def lay_out(pipeline: dalle_mini.Pipeline) -> Page:
    """Two columns on a desk, one on a phone (assets/style.css): prompt to gallery, and the model card."""
    gr.Markdown(f"# DALL·E mini 🥑\n{TAGLINE}")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            with gr.Row(equal_height=True):
                prompt = gr.Textbox(
                    label="Prompt", placeholder=EXAMPLES[0], max_lines=5, scale=4, min_width=240, elem_id="prompt"
                )
                draw = gr.Button("Draw", variant="primary", min_width=100, elem_id="draw")
                stop = gr.Button("Stop", variant="stop", min_width=100, elem_id="stop", visible=False)
            samples = [[text] for text in EXAMPLES]
            gr.Examples(samples, prompt, cache_examples=False, api_visibility="private", elem_id="examples")
            with gr.Accordion("Settings", open=False) as panel, gr.Row():
                controls = settings_panel(pipeline.defaults)
            with gr.Row(equal_height=True):
                told = gr.HTML(status("Nothing drawn yet."), elem_id="status")
                reuse = gr.Button(REUSE, visible=False, size="sm", scale=0, min_width=180, elem_id="reuse")
            gallery = gr.Gallery(
                label="Gallery",
                show_label=False,
                columns=3,
                height="auto",
                interactive=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_id="gallery",
            )
            pictures = gr.HTML(visible=False, elem_id="previews")
        with gr.Column(scale=2, min_width=300), gr.Accordion("Model card", elem_id="card"):
            for text in ((ASSETS / "MODEL_CARD.md").read_text(encoding="utf-8"), pipeline.model_card):
                gr.Markdown(card(text), visible=bool(text))
    about = gr.HTML(footer(pipeline), elem_id="about")
    return Page(
        prompt=prompt,
        draw=draw,
        stop=stop,
        panel=panel,
        controls=controls,
        told=told,
        reuse=reuse,
        gallery=gallery,
        previews=pictures,
        about=about,
    )


def connect(page: Page, pipeline: dalle_mini.Pipeline, answers: Answers) -> None:
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
    gr.api(api_function(pipeline, answers), api_name="generate", concurrency_limit=None)


def build_demo(pipeline: dalle_mini.Pipeline, answers: Answers) -> gr.Blocks:
    """The page and the endpoint /generate, for one pipeline."""
    gr.set_static_paths(answers.folder)  # served from where they are, without a copy that Gradio would keep
    with gr.Blocks(title="DALL·E mini") as demo:
        connect(lay_out(pipeline), pipeline, answers)
        demo.load(None, js="() => document.getElementById('status').setAttribute('aria-live', 'polite')")
    # Everyone here needs a thread, and those to be refused some more: Gradio's own line has no place and no end.
    demo.max_threads = pipeline.scheduler.capacity + 40
    return demo.queue()


@contextmanager
def launch(
    pipeline: dalle_mini.Pipeline,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    trusted_proxy: str | None = None,
    grace: float | None = None,
) -> Iterator[str]:
    """Serve the page, /healthz and /metrics while the context lasts; gives the address. See web.serve."""
    # Who was drawn for at the last moment may still be saving.
    with tempfile.TemporaryDirectory(prefix="dalle-mini-", ignore_cleanup_errors=True) as folder:
        served = gr.mount_gradio_app(
            web.new_app(pipeline),
            build_demo(pipeline, Answers(Path(folder).resolve())),
            path="/",
            theme=gr.themes.Default(primary_hue="lime", secondary_hue="yellow", font=["system-ui", "sans-serif"]),
            css_paths=ASSETS / "style.css",
            footer_links=["api"],  # Gradio's "Settings" beside ours would confuse
            show_error=False,  # only what messages() words
            enable_monitoring=False,  # /monitoring/summary is public otherwise
            run_history=False,  # it would keep prompts and pictures in the browser, and browsers are shared
            ssr_mode=False,
        )
        with web.serve(served, pipeline, host=host, port=port, trusted_proxy=trusted_proxy, grace=grace) as address:
            yield address


def _warm_up(pipeline: dalle_mini.Pipeline, stop: threading.Event) -> None:
    """Beside the main thread, which would not hear that it is to end while a program is compiled."""
    for _ in pipeline.warm_up_for_a_crowd():
        if stop.is_set():
            return


def main(
    model: Annotated[str, typer.Option(help="A preset, a folder or a hub id.")] = "emoji",
    rerank: Annotated[bool, typer.Option("--rerank/--no-rerank", help="Rank the pictures with CLIP.")] = True,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every network.")] = HOST,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is any free one.", min=0, max=65535)] = 7860,
    slots: Annotated[int | None, typer.Option(help="Pictures drawn at once; what the memory holds when unset.")] = None,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more are refused.")] = MAX_WAITING,
    engine: Annotated[Engine, typer.Option(help="Draw in this process, or in replicas on Ray.")] = Engine.LOCAL,
    replicas: Annotated[
        str | None, typer.Option(help="With Ray: how many, or MIN-MAX to follow the load; 2 when unset.")
    ] = None,
    per_visitor: Annotated[int | None, typer.Option(help="Requests that a visitor may have at once.")] = None,
    per_minute: Annotated[int | None, typer.Option(help="Requests that a visitor may make a minute.")] = None,
    trusted_proxy: Annotated[
        str | None, typer.Option(help="Proxies that may say who visits: addresses, networks.")
    ] = PROXY,
    grace: Annotated[float, typer.Option(help="Seconds to finish what is being drawn, when stopped.", min=0)] = 10,
) -> None:
    """Serve DALL·E mini as a web page, until SIGTERM or Ctrl+C."""
    try:
        limits = Limits(per_visitor=per_visitor, per_minute=per_minute)
        pipeline = dalle_mini.load(
            model,
            rerank=rerank,
            slots=slots,
            max_waiting=max_waiting,
            limits=limits,
            replicas=counts(engine, replicas),
        )
        stop = web.stop_signal()
        with launch(pipeline, host=host, port=port, trusted_proxy=trusted_proxy, grace=grace) as address:
            typer.echo(f"DALL·E mini is at {address} (device {pipeline.device}, model {pipeline.name})")
            threading.Thread(target=_warm_up, args=(pipeline, stop), name="warm-up", daemon=True).start()
            while not stop.wait(1):  # without a time, Windows would not hear Ctrl+C
                pass
    except (ValueError, CheckpointError, OSError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    try:
        typer.run(main)
    except SystemExit as ended:
        if ended.code:
            raise
        sys.stdout.flush()
        os._exit(0)  # Python's own end takes seconds with torch and JAX, and the timer of the grace is dead by then
