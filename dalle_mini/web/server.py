"""The page over HTTP: a FastAPI app with /healthz and /metrics, served from a thread, and an end that never hangs.

Contract: knows a `Pipeline`, not the page; app.py mounts that. `serve` for as long as its context lasts.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from dalle_mini.pipeline import Pipeline

# The last seconds of a grace: what was drawn is fetched, connections end, and one is to spare.
FETCHING, ENDING, SPARE = 1.0, 1.0, 1.0


def new_app(pipeline: Pipeline) -> FastAPI:
    """/healthz: 200 where requests are taken, 503 otherwise, and the state in words. /metrics: see metrics.py."""
    app = FastAPI(openapi_url=None)

    @app.get("/healthz")
    async def healthz(response: Response) -> dict[str, str]:
        state = pipeline.scheduler.state
        response.status_code = 200 if state == "ready" else 503
        return {"state": state}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(pipeline.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


@contextmanager
def serve(
    app: FastAPI,
    pipeline: Pipeline,
    *,
    host: str,
    port: int,
    trusted_proxy: str | None = None,
    grace: float | None = None,
) -> Iterator[str]:
    """Gives the address; port 0 is any free one. Visitors have the addresses that a trusted proxy reports of them.

    At the end new requests are refused, those that are here have `grace` seconds, and the pipeline is closed; without
    a grace the server just ends. Raises ValueError where it cannot listen.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        proxy_headers=trusted_proxy is not None,
        forwarded_allow_ips=trusted_proxy,
        timeout_graceful_shutdown=int(ENDING),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="web", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the web server did not start; its log says why")
        time.sleep(0.01)
    try:
        name = "localhost" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        yield f"http://{name}:{listener.getsockname()[1]}/"
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


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ValueError(f"host and port must be free to listen on, got {host}:{port} ({error.strerror})") from error


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
