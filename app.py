"""The page: a prompt, pictures that appear row by row, the ranked gallery, the model card.

All it shows comes from a `Pipeline`: nothing is drawn or ranked here. This file lays the page out in the order of the
screen and serves it; what its parts do and say is in dalle_mini/web/page/.

    build_demo(pipeline, answers, visits) -> gr.Blocks, heads    the page and the API's endpoints
    launch(pipeline) -> address                            the one way it is served, by main() and by the tests
"""

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse

import dalle_mini
from dalle_mini import environment
from dalle_mini.serving.scheduler import MAX_WAITING
from dalle_mini.web import server as web
from dalle_mini.web.answers import Answers, kept
from dalle_mini.web.door import Door
from dalle_mini.web.limits import Limits
from dalle_mini.web.page import gr
from dalle_mini.web.page.api import api_function, checker, events_of, is_listened_to, parameters_of
from dalle_mini.web.page.bar import chips, examples, prompt_bar, title
from dalle_mini.web.page.card import card
from dalle_mini.web.page.drawing import Page, connect
from dalle_mini.web.page.head import heads
from dalle_mini.web.page.look import footer, theme
from dalle_mini.web.page.our_head import PICTURE, OurHead
from dalle_mini.web.page.part import part
from dalle_mini.web.page.settings import settings_panel
from dalle_mini.web.page.tab import connect_tab
from dalle_mini.web.page.texts import tokenizer_line
from dalle_mini.web.page.tray import connect_tray, tray
from dalle_mini.web.page.words import i18n, say
from dalle_mini.web.visits import Visits
from vqgan.files import CheckpointError

ASSETS = Path(__file__).parent / "assets"
IN_A_SPACE = "SPACE_ID" in os.environ
HOST = "0.0.0.0" if IN_A_SPACE else "127.0.0.1"  # a Space is reached from outside
# ... through proxies in private networks. The last address before theirs is the visitor's: anybody can send others.
PROXY = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16" if IN_A_SPACE else None
EXAMPLES = (
    "a cat left of a pizza",
    "a panda wearing a crown",
    "three hearts on a black background",
    "a glossy dragon",
    "a robot under a rainbow",
    "an avocado on a yellow background",
    "a bee between a rose and a sunflower",
    "a tiny dog",
)


def lay_out(pipeline: dalle_mini.Pipeline, shown: list[dict[str, Any]]) -> Page:
    """One column (assets/style.css), in the order of the screen."""
    title()
    prompt, draw = prompt_bar()
    chips(shown)
    pictures = part("stage", {})
    part("history")
    words = tray(pipeline.vocabulary)
    with gr.Accordion(say("settings"), open=False, elem_id="settings"):
        controls = settings_panel(pipeline.defaults)
    part("start")
    part("inside")
    card(tokenizer_line(pipeline), pipeline.model_card, (ASSETS / "MODEL_CARD.md").read_text(encoding="utf-8"))
    gr.HTML(footer(pipeline), elem_id="about", apply_default_css=False)
    page = Page(tab=gr.Textbox(visible=False), prompt=prompt, draw=draw, controls=controls, stage=pictures)
    connect_tray(page, words, pipeline.vocabulary)
    return page


def build_demo(pipeline: dalle_mini.Pipeline, answers: Answers, visits: Visits) -> tuple[gr.Blocks, dict[str, str]]:
    """The page and the API's endpoints, for one pipeline; and what belongs into the head of the page."""
    gr.set_static_paths(answers.folder)  # served from where they are, without a copy that Gradio would keep
    shown = examples(ASSETS / "images" / "examples", EXAMPLES)
    with gr.Blocks(title="DALL·E mini") as demo:
        page = lay_out(pipeline, shown)
        connect(page, pipeline, answers, visits)
        connect_tab(demo, page, visits)
        for name, parameters in parameters_of(pipeline).items():
            gr.api(api_function(pipeline, answers, parameters), api_name=name, concurrency_limit=None)
    # Everyone here needs a thread, and those to be refused some more: Gradio's own line has no place and no end.
    demo.max_threads = pipeline.scheduler.capacity + 40
    return demo.queue(), heads(pipeline, shown, ["prompt", *page.controls])


def everything_served(pipeline: dalle_mini.Pipeline, answers: Answers, visits: Visits, *, root_path: str = "") -> Door:
    """The page, its API, /healthz and /metrics, behind the door that keeps strangers from the rest of Gradio."""
    gr.routes.DEFAULT_TEMP_DIR = str(answers.folder)  # Gradio makes a folder there; in /tmp/gradio it may not
    demo, scripts = build_demo(pipeline, answers, visits)
    served = web.new_app(pipeline, answers, visits)
    served.add_middleware(OurHead, heads=scripts)
    served.add_middleware(GZipMiddleware, minimum_size=1000)  # Gradio compresses its scripts, but not the page
    served.get(PICTURE)(lambda: FileResponse(ASSETS / "images" / "preview.jpg"))
    mounted = gr.mount_gradio_app(
        served,
        demo,
        path="/",
        root_path=root_path.rstrip("/"),
        theme=theme(),
        css_paths=ASSETS / "style.css",
        i18n=i18n(),
        favicon_path=str(ASSETS / "images" / "favicon.png"),
        footer_links=["api"],  # Gradio's "Settings" beside ours would confuse
        show_error=False,  # only what messages() words
        enable_monitoring=False,  # /monitoring/summary is public otherwise
        run_history=False,  # it would keep prompts and pictures in the browser, and browsers are shared
        ssr_mode=False,
        mcp_server=False,
    )
    return Door(
        mounted,
        endpoints=parameters_of(pipeline),
        check=checker(pipeline),
        events=events_of(demo),
        known=partial(is_listened_to, demo),
        folder=answers.folder,
        root_path=root_path,
    )


@contextmanager
def launch(
    pipeline: dalle_mini.Pipeline,
    *,
    listener: socket.socket | None = None,
    trusted_proxy: str | None = None,
    grace: float | None = None,
    root_path: str = "",
) -> Iterator[str]:
    """Serve the page while the context lasts; gives the address. See web.serve and web.check.

    listener: where visitors come to; any free port of this machine when left out.
    """
    with kept() as answers, closing(Visits()) as visits:
        served = everything_served(pipeline, answers, visits, root_path=root_path)
        listener = listener or web.listen("127.0.0.1", 0)
        with web.serve(served, pipeline, listener=listener, trusted_proxy=trusted_proxy, grace=grace) as address:
            yield address


def replica_counts(engine: str, replicas: str | None) -> int | tuple[int, int] | None:
    """`--replicas`: a number (2 if unset), or the fewest and the most; None for an engine in this process."""
    if engine == "local":
        if replicas is not None:
            raise ValueError(f"replicas must be left out without engine ray, got {replicas!r}")
        return None
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", "2" if replicas is None else replicas)
    if found is None:
        raise ValueError(f"replicas must be a number or two, such as 2 or 1-8, got {replicas!r}")
    fewest, most = int(found[1]), int(found[2] or found[1])
    return fewest if fewest == most else (fewest, most)


def _warm_up(pipeline: dalle_mini.Pipeline, stop: threading.Event) -> None:
    """Beside the main thread, which would not hear that it is to end while a program is compiled."""
    for _ in pipeline.warm_up_rest():
        if stop.is_set():
            return


def main(
    model: Annotated[str, typer.Option(help="A preset, a folder or a hub id.")] = "emoji",
    rerank: Annotated[bool, typer.Option("--rerank/--no-rerank", help="Rank the pictures with CLIP.")] = True,
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 is every network.", envvar="GRADIO_SERVER_NAME")
    ] = HOST,
    port: Annotated[
        int, typer.Option(help="Port; 0 is any free one.", min=0, max=65535, envvar="GRADIO_SERVER_PORT")
    ] = 7860,
    root_path: Annotated[
        str, typer.Option(help="Path, or address, where a proxy shows the page.", envvar="GRADIO_ROOT_PATH")
    ] = "",
    slots: Annotated[int | None, typer.Option(help="Pictures drawn at once; what the memory holds when unset.")] = None,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more are refused.")] = MAX_WAITING,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Draw in this process, or in replicas on Ray.")
    ] = "local",
    replicas: Annotated[
        str | None, typer.Option(help="With Ray: how many, or MIN-MAX to follow the load; 2 when unset.")
    ] = None,
    per_visitor: Annotated[int | None, typer.Option(help="Requests that a visitor may have at once.")] = None,
    per_minute: Annotated[int | None, typer.Option(help="Requests that a visitor may make a minute.")] = None,
    trusted_proxy: Annotated[
        str | None, typer.Option(help="Proxies that may say who visits: addresses, networks.")
    ] = PROXY,
    grace: Annotated[float, typer.Option(help="Seconds to finish what is being drawn, when stopped.")] = 10,
) -> None:
    """Serve DALL·E mini as a web page, until SIGTERM or Ctrl+C."""
    try:
        limits = Limits(per_visitor=per_visitor, per_minute=per_minute)
        web.check(trusted_proxy=trusted_proxy, root_path=root_path, grace=grace)
        counts = replica_counts(engine, replicas)
        listener = web.listen(host, port)  # first: who cannot should not have to wait for it
        pipeline = dalle_mini.load(
            model,
            rerank=rerank,
            slots=slots,
            max_waiting=max_waiting,
            limits=limits,
            replicas=counts,
        )
        stop = web.stop_signal()
        with launch(
            pipeline, listener=listener, trusted_proxy=trusted_proxy, grace=grace, root_path=root_path
        ) as address:
            facts = f"device {pipeline.device}, model {pipeline.name}, room for {pipeline.scheduler.capacity} requests"
            typer.echo(f"DALL·E mini is at {address} ({facts})")
            threading.Thread(target=_warm_up, args=(pipeline, stop), name="warm-up", daemon=True).start()
            while not stop.wait(1):  # without a time, Windows would not hear Ctrl+C
                pass
    except (ValueError, CheckpointError, OSError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    sys.argv[1:] = environment.set_up(sys.argv[1:])
    try:
        typer.run(main)
    except SystemExit as ended:
        if ended.code:
            raise
        sys.stdout.flush()
        os._exit(0)  # Python's own end takes seconds with torch and JAX, and the timer of the grace is dead by then
