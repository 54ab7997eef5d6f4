"""The page over HTTP: a FastAPI app with /healthz and /metrics, served from a thread, and an end that never hangs.

Contract: knows a `Pipeline`, not the page; app.py mounts that. `serve` for as long as its context lasts.
"""

import ipaddress
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from dalle_mini.pipeline import Pipeline
from dalle_mini.web.answers import Answers, StorageError
from dalle_mini.web.reconstruct import reconstruct_route
from dalle_mini.web.visits import Visits

# The last seconds of a grace: what was drawn is fetched, connections end, and one is to spare.
FETCHING, ENDING, SPARE = 1.0, 1.0, 1.0
LONGEST_GRACE = 86400.0


def new_app(pipeline: Pipeline, answers: Answers, visits: Visits) -> FastAPI:
    """/healthz: 200 where requests are taken, 503 otherwise, and the state in words. /metrics: see metrics.py.

    /leave: a tab says that its page goes. /stop: that a drawing of its is not wanted any more. /reconstruct: see
    reconstruct.py.
    """
    app = FastAPI(openapi_url=None)

    @app.get("/healthz")
    def healthz(response: Response) -> dict[str, str]:
        found = {"state": pipeline.scheduler.state}
        if found["state"] == "ready":
            try:
                answers.check()
            except StorageError as error:
                found = {"state": "storage", "reason": str(error)}
        response.status_code = 200 if found["state"] == "ready" else 503
        return found

    @app.get("/metrics")
    def metrics() -> Response:
        pipeline.metrics.storage.set(answers.works)
        return Response(pipeline.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/leave", status_code=204)
    def leave(tab: Annotated[str, Body(embed=True)]) -> None:
        visits.leave(tab)

    @app.post("/stop", status_code=204)
    def stop(tab: Annotated[str, Body()], drawing: Annotated[str, Body()]) -> None:
        visits.stop(tab, drawing)

    app.include_router(reconstruct_route(pipeline))
    return app


@contextmanager
def serve(
    app: Callable[..., Awaitable[Any]],
    pipeline: Pipeline,
    *,
    listener: socket.socket,
    trusted_proxy: str | None = None,
    grace: float | None = None,
) -> Iterator[str]:
    """Gives the address. Visitors have the addresses that a trusted proxy reports of them.

    At the end new requests are refused, those that are here have `grace` seconds, and the pipeline is closed; without
    a grace the server just ends.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        proxy_headers=trusted_proxy is not None,
        forwarded_allow_ips=trusted_proxy,
        timeout_graceful_shutdown=int(ENDING),
        server_header=False,
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="web", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the web server did not start; its log says why")
        time.sleep(0.01)
    try:
        host, port = listener.getsockname()[:2]
        name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        yield f"http://{name}:{port}/"
    finally:
        if grace is not None:
            _drain(server, pipeline, grace)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # open tabs are cut off, which is no error
        server.should_exit = True
        thread.join(ENDING + SPARE)


def _drain(server: uvicorn.Server, pipeline: Pipeline, grace: float) -> None:
    """Refuse what is new, and let what is here finish and be fetched. The process has `grace` seconds to live."""
    grace = max(grace, FETCHING + ENDING + SPARE)
    kill = threading.Timer(grace, os._exit, [1])  # whatever hangs
    kill.daemon = True
    kill.start()
    until = time.monotonic() + grace - ENDING - SPARE
    busy, answered = pipeline.metrics.open > 0, -1
    pipeline.close(grace - FETCHING - ENDING - SPARE)
    # Who has been drawn for fetches the pictures now: until nothing was asked for a while.
    while busy and answered != server.server_state.total_requests and time.monotonic() < until:
        answered = server.server_state.total_requests
        time.sleep(FETCHING)


def listen(host: str, port: int) -> socket.socket:
    """Port 0 is any free one. Raises ValueError. Who connects before `serve` waits for it."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"host and port must be free to listen on, got {host}:{port} ({reason})") from error


def check(*, trusted_proxy: str | None, root_path: str, grace: float) -> None:
    """The settings of `serve`, and the path or the address under which a proxy shows the page. Raises ValueError."""
    for part in [] if trusted_proxy in (None, "*") else trusted_proxy.split(","):
        try:
            ipaddress.ip_network(part.strip())
        except ValueError as error:  # uvicorn would take it for the name of something
            rule = "trusted_proxy must be addresses and networks, such as 127.0.0.1,10.0.0.0/8, or *"
            raise ValueError(f"{rule}, got {part.strip()!r} ({error})") from None
    if not re.fullmatch(r"(https?://[\w.:\[\]-]+)?(/[\w.~-]+)*/?", root_path):
        rule = "root_path must be a path such as /dalle, or an address such as https://example.org/dalle"
        raise ValueError(f"{rule}, got {root_path!r}")
    if not 0 <= grace <= LONGEST_GRACE:
        raise ValueError(f"grace must be a number of seconds from 0 to {LONGEST_GRACE:.0f}, got {grace:g}")


def stop_signal() -> threading.Event:
    """What SIGTERM or Ctrl+C will set, the first time; the second time they end the process, whatever it is doing."""
    asked, numbers = threading.Event(), (signal.SIGTERM, signal.SIGINT)

    def ask(*_: object) -> None:
        asked.set()
        for number in numbers:  # no KeyboardInterrupt: Python's own end, amid threads that draw, is an abort
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, ask)
    return asked
