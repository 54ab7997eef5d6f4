"""The page: a prompt, pictures that appear row by row, the ranked gallery, the model card.

Gradio only. All it shows comes from a `Pipeline`: this file draws nothing, ranks nothing and holds no default
of a setting; it turns the pipeline's errors into messages for people. The page asks no other host for anything.

    build_demo(pipeline) -> gr.Blocks     the page and the API endpoint /generate
    launch(demo) -> address               the one way it is served, by main() and by the tests
"""

import html
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub import ModelCard

import dalle_mini
from dalle_mini.config import MAX_CANDIDATES
from dalle_mini.gallery import Candidate, Gallery, Preview
from vqgan.checkpoint import CheckpointError

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
import gradio as gr

ASSETS = Path(__file__).parent / "assets"
HOST = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"  # a Space is reached from outside
QUEUE = "pipeline"  # page and API wait for it together
TAGLINE = "Type what you would like to see. The model draws it several times, and CLIP puts the best first."
EXAMPLES = (
    "a red apple on a blue background",
    "two rockets",
    "three hearts",
    "an avocado on a yellow background",
    "a big strawberry",
    "a cat left of a pizza",
    "two trees on a green background",
    "a tiny dog",
)
# Setting: label, the slider's ends and step (handy ranges: the rules are SamplingParams'), what it does.
SLIDERS = {
    "num_candidates": ("Candidates", 1, MAX_CANDIDATES, 1, "Pictures to draw and rank"),
    "condition_scale": ("Condition scale", 0, 20, 0.1, "How closely to follow the prompt"),
    "temperature": ("Temperature", 0.1, 2, 0.05, "Higher is more varied"),
    "top_k": ("Top-k", 0, 256, 1, "Only the k likeliest codes; 0 is off"),
    "top_p": ("Top-p", 0.05, 1, 0.05, "Only the likeliest codes, up to this probability; 1 is off"),
}


@contextmanager
def messages() -> Iterator[None]:
    """What the pipeline refuses reaches the page, and the API's clients, in the pipeline's own sentence."""
    try:
        yield
    except (ValueError, CheckpointError) as error:
        raise gr.Error(str(error), duration=20, print_exception=False) from error


@contextmanager
def saved(gallery: Gallery) -> Iterator[list[Path]]:
    """The gallery as PNG files, best first. Gradio copies them to its cache while the caller yields them."""
    stem = re.sub(r"\W+", "-", gallery.prompt)[:40].strip("-") or "picture"
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{stem}-seed{c.seed}-{rank:02}.png" for rank, c in enumerate(gallery, 1)]
        for path, candidate in zip(paths, gallery, strict=True):
            candidate.save_png(path)
        yield paths


def caption(rank: int, candidate: Candidate) -> str:
    score = "" if candidate.score is None else f" · score {candidate.score:.3f}"
    return f"#{rank}{score} · seed {candidate.seed} · candidate {candidate.index}"


def whole(text: str) -> int | str | None:
    """A seed as typed: blank is None (random), and what is no whole number is left for the pipeline to refuse."""
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else text or None


def status(text: str, row: int = 0, rows: int = 0) -> str:
    bar = f'<progress value="{row}" max="{rows}" aria-label="rows drawn"></progress>' if rows else ""
    return f"<span>{html.escape(text)}</span>{bar}"


def summary(gallery: Gallery) -> str:
    order = "as drawn" if gallery[0].score is None else "best first"
    return " · ".join([f"{len(gallery)} drawn in {gallery.seconds:.1f} s, {order}", *gallery.notes])


def footer(pipeline: dalle_mini.Pipeline, gallery: Gallery | None = None) -> str:
    speed = f"{gallery.seconds / len(gallery):.2f}" if gallery else "not measured yet"
    facts = {"device": pipeline.device, "model": pipeline.name, "seconds per image": speed}
    return " · ".join(f"{name} <b>{html.escape(value)}</b>" for name, value in facts.items())


def card(text: str) -> str:
    """A model card as Markdown without YAML, pictures and HTML, which might ask other hosts for something."""
    text = ModelCard(text, ignore_metadata_errors=True).text
    return re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])?|<(?!https?:)[/!]?[a-zA-Z-][^>]*>", "", text)


def toggle(*, drawing: bool, text: str | None = None) -> tuple[Any, ...]:
    """Updates for (draw button, stop button, status)."""
    return (
        gr.Button(visible=not drawing),
        gr.Button(visible=drawing),
        gr.skip() if text is None else status(text),
    )


def page_generator(pipeline: dalle_mini.Pipeline, names: list[str]) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """What Draw runs: (gallery, status, footer, seed used, reuse button) for every event of the pipeline."""

    def draw(prompt: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        settings = dict(zip(names, values, strict=True))
        settings["seed"] = whole((settings["seed"] or "").strip())
        # When a visitor stops or leaves, Gradio closes this generator: closing() passes that on to the pipeline.
        with messages(), closing(pipeline.stream(prompt or "", **settings)) as events:
            for event in events:
                if isinstance(event, Preview):
                    pictures = [(image, f"candidate {i}") for i, image in enumerate(event.images)]
                    told = status(f"drawing row {event.row} of {event.rows}", event.row, event.rows)
                    yield pictures, told, gr.skip(), None, gr.Button(visible=False)
                    continue
                with saved(event) as paths:
                    ranked = [(path, caption(*c)) for path, c in zip(paths, enumerate(event, 1), strict=True)]
                    seed = event.params.seed
                    reuse = gr.Button(f"Reuse seed {seed}", visible=True)
                    yield ranked, status(summary(event)), footer(pipeline, event), seed, reuse

    return draw


def api_function(pipeline: dalle_mini.Pipeline) -> Callable[..., Iterator[dict[str, Any]]]:
    """The endpoint /generate: Gradio documents its typed parameters to clients and checks none of them."""
    defaults = pipeline.defaults

    def generate(
        prompt: str,
        num_candidates: int = defaults.num_candidates,
        seed: int | None = defaults.seed,
        condition_scale: float = defaults.condition_scale,
        temperature: float = defaults.temperature,
        top_k: int = defaults.top_k,
        top_p: float = defaults.top_p,
    ) -> Iterator[dict[str, Any]]:
        """While drawing: {row, rows}. At last: {seed, model, seconds, notes, candidates}, best candidate first."""
        settings = {"num_candidates": num_candidates, "seed": seed, "condition_scale": condition_scale}
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        with messages(), closing(pipeline.stream(prompt, **settings)) as events:
            for event in events:
                if isinstance(event, Preview):
                    yield {"row": event.row, "rows": event.rows}
                    continue
                facts = {"seed": event.params.seed, "model": event.model, "seconds": event.seconds}
                with saved(event) as paths:
                    candidates = [
                        {
                            "image": gr.FileData(path=str(path), orig_name=path.name).model_dump(),
                            "caption": caption(rank, candidate),
                            "score": candidate.score,
                            "seed": candidate.seed,
                            "candidate": candidate.index,
                        }
                        for rank, (path, candidate) in enumerate(zip(paths, event, strict=True), 1)
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
    about: gr.HTML
    seed_used: gr.State


def settings_panel(defaults: dalle_mini.SamplingParams) -> dict[str, gr.Component]:
    controls: dict[str, gr.Component] = {}
    for name, (label, low, high, step, info) in SLIDERS.items():
        value = getattr(defaults, name)
        controls[name] = gr.Slider(low, high, value, step=step, label=label, info=info, min_width=240)
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
                # A prompt above max_length is one that the model cuts shorter still, and says so.
                size: dict[str, Any] = {"max_length": 2000, "scale": 4, "min_width": 240}
                prompt = gr.Textbox(label="Prompt", placeholder=EXAMPLES[0], **size)
                draw = gr.Button("Draw", variant="primary", min_width=100, elem_id="draw")
                stop = gr.Button("Stop", variant="stop", min_width=100, elem_id="stop", visible=False)
            samples = [[text] for text in EXAMPLES]
            gr.Examples(samples, prompt, cache_examples=False, api_visibility="private", elem_id="examples")
            with gr.Accordion("Settings", open=False) as panel, gr.Row():
                controls = settings_panel(pipeline.defaults)
            with gr.Row(equal_height=True):
                told = gr.HTML(status("Nothing drawn yet."), elem_id="status")
                reuse = gr.Button("Reuse seed", visible=False, size="sm", scale=0, min_width=180, elem_id="reuse")
            gallery = gr.Gallery(
                label="Gallery",
                show_label=False,
                columns=3,
                height="auto",
                format="jpeg",  # of the previews, ten times faster than webp; the final pictures are files
                interactive=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_id="gallery",
            )
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
        about=about,
        seed_used=gr.State(),
    )


def connect(page: Page, pipeline: dalle_mini.Pipeline) -> None:
    """Draw and Enter run the pipeline, Stop cancels it, waiting or running; page and API wait in one queue."""
    own: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    now: dict[str, Any] = own | {"queue": False, "outputs": [page.draw, page.stop, page.told]}
    place: dict[str, Any] = own | {"show_progress": "minimal", "show_progress_on": page.told}
    asked = gr.on([page.draw.click, page.prompt.submit], lambda: toggle(drawing=True, text="waiting …"), **now)
    run = asked.then(
        page_generator(pipeline, list(page.controls)),
        [page.prompt, *page.controls.values()],
        [page.gallery, page.told, page.about, page.seed_used, page.reuse],
        preprocess=False,  # Gradio's own "Value 17 is greater than maximum value 16." names no setting
        concurrency_id=QUEUE,
        **place,
    )
    run.success(lambda: toggle(drawing=False), **now)
    run.failure(lambda: toggle(drawing=False, text="stopped"), **now)  # a cancelled event has failed, too
    page.stop.click(None, cancels=[run])
    again = [page.controls["seed"], page.panel]
    page.reuse.click(lambda seed: (str(seed), gr.Accordion(open=True)), page.seed_used, again, queue=False, **own)
    gr.api(api_function(pipeline), api_name="generate", concurrency_id=QUEUE)


def build_demo(pipeline: dalle_mini.Pipeline) -> gr.Blocks:
    """The page and the endpoint /generate, for one pipeline."""
    # Files live for a day: long enough for an open tab, and the disk does not fill up.
    with gr.Blocks(title="DALL·E mini", delete_cache=(3600, 86400)) as demo:
        connect(lay_out(pipeline), pipeline)
        demo.load(None, js="() => document.getElementById('status').setAttribute('aria-live', 'polite')")
    return demo


def launch(demo: gr.Blocks, *, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Serve the page from a thread and return its address. port None: the first free one from 7860."""
    _, address, _ = demo.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        theme=gr.themes.Default(primary_hue="lime", secondary_hue="yellow", font=["system-ui", "sans-serif"]),
        css_paths=ASSETS / "style.css",
        footer_links=["api"],  # Gradio's "Settings" beside ours would confuse
        enable_monitoring=False,  # /monitoring/summary is public otherwise
        run_history=False,  # it would keep prompts and pictures in the browser, and browsers are shared
        ssr_mode=False,
    )
    return address


def main(
    model: Annotated[str, typer.Option(help="A preset, a folder or a hub id.")] = "emoji",
    rerank: Annotated[bool, typer.Option("--rerank/--no-rerank", help="Rank the pictures with CLIP.")] = True,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every network.")] = HOST,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
) -> None:
    """Serve DALL·E mini as a web page."""
    try:
        pipeline = dalle_mini.load(model, rerank=rerank)
        demo = build_demo(pipeline)
        address = launch(demo, host=host, port=port)
    except (ValueError, CheckpointError, OSError) as error:
        raise SystemExit(str(error)) from error
    typer.echo(f"DALL·E mini is at {address} (device {pipeline.device}, model {pipeline.name})")
    demo.block_thread()


if __name__ == "__main__":
    typer.run(main)
