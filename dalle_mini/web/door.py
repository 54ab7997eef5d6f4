"""The door of the server: what strangers reach of it, and how much they may bring. See docs/security.md.

Contract: ASGI around everything. A path that the page and the API do not need is a 404, whatever Gradio mounts;
another method is a 405; a body is JSON of at most `MOST_BYTES` (413), and of the shape that its path takes (422). What
is refused is refused in a sentence: {"detail": "prompt must be given, got none"}.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import nullcontext
from inspect import Parameter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from dalle_mini.serving.refusals import RefusedError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BYTES = 1 << 20  # a prompt of 10,000 characters, each in JSON's longest spelling, is 120 kB
HOST = re.compile(rb"[\w.-]{1,255}(:\d{1,5})?|\[[0-9a-fA-F:.]{2,45}\](:\d{1,5})?")
READ = ("GET", "HEAD")
ENDPOINT = "(?:generate|complete|vary)"
# What the page asks for when it is opened, drawn with and looked at, the clients of the API, and who watches a server.
ROUTES = {
    r"/": READ,
    r"/(healthz|metrics)": READ,
    r"/(leave|stop|reconstruct)": ("POST",),
    r"/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|preview\.jpg)": READ,
    r"/(assets|static)/.+": READ,
    r"/gradio_api/(info|startup-events|app_id)": READ,
    r"/gradio_api/file=.+": READ,
    r"/gradio_api/heartbeat/[\w-]{1,64}": ("GET",),
    r"/gradio_api/queue/data": ("GET",),
    r"/gradio_api/(queue/join|run/predict|cancel)": ("POST",),
    rf"/gradio_api/call/(v2/)?{ENDPOINT}": ("POST",),
    rf"/gradio_api/call/(v2/)?{ENDPOINT}/[\w-]{{1,64}}": ("GET",),
}
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"strict-origin-when-cross-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
    b"content-security-policy": b"object-src 'none'; base-uri 'self'",  # no word on frames: anybody may embed the page
}


class BadRequestError(RefusedError):
    """What a client sent cannot be served: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class Door:
    """`endpoints`: of each of the API, what it takes, in order; `check` raises ValueError for values that cannot be
    drawn. Files are served from `folder` and nowhere else.

    `events`: how many values each event of the page takes, by path and number. `known`: whether somebody may listen to
    a session or an event. `root_path`: a part of the path that a proxy may have left in front of ours.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        endpoints: Mapping[str, Mapping[str, Parameter]],
        check: Callable[[dict[str, Any]], None],
        events: Mapping[str, Mapping[int, int]],
        known: Callable[[str], bool],
        folder: Path,
        root_path: str = "",
    ) -> None:
        self._app, self._endpoints, self._check = app, endpoints, check
        self._events, self._known, self._folder = events, known, folder
        self._cancelling = asyncio.Lock()
        self._prefix = re.sub(r"^https?://[^/]*", "", root_path).rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1000})
        send = _dressed(send)
        try:
            scope = self._admitted(scope)
            if scope["method"] == "POST":
                scope, receive = await self._read(scope, receive)
        except BadRequestError as error:
            return await _answer(send, error.status, {"detail": str(error)}, error.headers)
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _headers_only(send)
        # One at a time: of two that cancel one event Gradio answers one with an error of its own.
        async with self._cancelling if scope["path"] == "/gradio_api/cancel" else nullcontext():
            await self._app(scope, receive, send)

    def _admitted(self, scope: Scope) -> Scope:
        """The request as our routes have it. Raises BadRequestError."""
        path, method = scope["path"], scope["method"]
        if self._prefix and (path == self._prefix or path.startswith(self._prefix + "/")):
            path = path.removeprefix(self._prefix) or "/"
        if path != "/":
            path = path.rstrip("/")
        allowed = next((methods for route, methods in ROUTES.items() if re.fullmatch(route, path)), None)
        if allowed is None:
            raise BadRequestError(404, f"path must be one of the page's or the API's, got {path[:200]!r}")
        preflight = method == "OPTIONS" and any(n == b"access-control-request-method" for n, _ in scope["headers"])
        if method not in allowed and not preflight:
            methods = ", ".join(allowed)
            raise BadRequestError(405, f"method must be {' or '.join(allowed)}, got {method[:20]!r}", Allow=methods)
        file = path.removeprefix("/gradio_api/file=")
        if file != path and (".." in file or "\0" in file or not Path(file).is_relative_to(self._folder)):
            raise BadRequestError(404, "file must be one of an answer's, got another")
        listened = re.fullmatch(rf"/gradio_api/call/(?:v2/)?{ENDPOINT}/(.+)", path)
        if listened and not self._known(listened[1]):
            raise BadRequestError(404, f"event must be one that runs or has just ended, got {listened[1]!r}")
        session = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("session_hash", "")
        if path == "/gradio_api/queue/data" and not self._known(session):
            raise BadRequestError(404, f"session_hash must be one that has asked for something, got {session[:200]!r}")
        headers = [(name, value) for name, value in scope["headers"] if name != b"x-gradio-server"]
        for name, value in headers:
            if name in (b"host", b"x-forwarded-host") and not HOST.fullmatch(value.split(b",")[0].strip()):
                raise BadRequestError(400, f"{name.decode()} must be a name or an address, got {value[:200]!r}")
        return {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "headers": headers}

    async def _read(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """The body, checked, and as Gradio takes it."""
        try:
            sent = json.loads((await _body(scope, receive)).decode())
        except (ValueError, RecursionError):
            raise BadRequestError(400, 'the body must be JSON, such as {"prompt": "a cat"}, got another') from None
        if not isinstance(sent, dict):
            raise BadRequestError(422, f"the body must be a JSON object, got {type(sent).__name__}")
        path = scope["path"]
        if path.startswith("/gradio_api/call/v2/"):
            sent = self._drawable(_named(sent, self._endpoints[path.rpartition("/")[2]]))
        elif path.startswith("/gradio_api/call/"):
            named = _in_order(sent.get("data"), self._endpoints[path.rpartition("/")[2]])
            sent = {**sent, "data": list(self._drawable(named).values())}
        elif path in self._events:
            _check_event(sent, self._events[path])
        elif path == "/leave":
            _check_strings(sent, "tab")
        elif path == "/stop":
            _check_strings(sent, "tab", "drawing")
        elif path == "/reconstruct":
            _check_picture(sent)
        else:
            _check_strings(sent, "session_hash", "event_id")
        body = json.dumps(sent).encode()
        headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-type", b"content-length")]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        return {**scope, "headers": headers}, _replay(body, receive)

    def _drawable(self, values: dict[str, Any]) -> dict[str, Any]:
        try:
            self._check(values)
        except ValueError as error:
            raise BadRequestError(422, str(error)) from None
        return values


def _named(sent: dict[str, Any], taken: Mapping[str, Parameter]) -> dict[str, Any]:
    """A value for everything that an endpoint takes."""
    if unknown := sorted(sent.keys() - taken.keys()):
        raise BadRequestError(422, f"settings must be {', '.join(taken)}, got {unknown[0][:200]!r}")
    for name, parameter in taken.items():
        if parameter.default is Parameter.empty and name not in sent:
            raise BadRequestError(422, f"{name} must be given, got none")
    return {name: sent.get(name, parameter.default) for name, parameter in taken.items()}


def _in_order(data: Any, taken: Mapping[str, Parameter]) -> dict[str, Any]:
    if not isinstance(data, list) or len(data) > len(taken):
        got = f"{len(data)} of them" if isinstance(data, list) else type(data).__name__
        raise BadRequestError(422, f"data must be a list of {', '.join(taken)}, or the first of these, got {got}")
    return _named(dict(zip(taken, data, strict=False)), taken)


def _check_event(sent: Mapping[str, Any], events: Mapping[int, int]) -> None:
    """The page's, and gradio_client's."""
    _check_strings(sent, "session_hash")
    number, data = sent.get("fn_index"), sent.get("data")
    if type(number) is not int or number not in events:
        raise BadRequestError(422, f"fn_index must be one of the page's events, got {str(number)[:200]}")
    if not isinstance(data, list) or len(data) != events[number]:
        raise BadRequestError(422, f"data must be a list of {events[number]} values, got {str(data)[:200]}")


def _check_picture(sent: Mapping[str, Any]) -> None:
    """Whether it is one, is found out behind the door."""
    if sent.keys() != {"picture"} or not isinstance(sent["picture"], str):
        got = {name: type(value).__name__ for name, value in sent.items()}
        raise BadRequestError(422, f"the body must be a picture, a data URL or base64, alone, got {str(got)[:200]}")


def _check_strings(sent: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if not isinstance(sent.get(name), str) or not re.fullmatch(r"[\w-]{1,64}", sent[name]):
            raise BadRequestError(422, f"{name} must be 1 to 64 letters and digits, got {str(sent.get(name))[:200]!r}")


async def _body(scope: Scope, receive: Receive) -> bytes:
    rule, body = f"the body must have at most {MOST_BYTES} bytes", b""
    said = dict(scope["headers"]).get(b"content-length", b"0")
    if said.isdigit() and int(said) > MOST_BYTES:  # before any of it is read
        raise BadRequestError(413, f"{rule}, got {int(said)}", Connection="close")
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequestError(400, "the body must be sent to its end, got a part")
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            raise BadRequestError(413, f"{rule}, got more", Connection="close")
        if not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(messages, None) or await receive()

    return again


def _dressed(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() not in HEADERS]
            message = {**message, "headers": [*headers, *HEADERS.items()]}
        await send(message)

    return sent


def _headers_only(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sent


async def _answer(send: Send, status: int, values: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    body = json.dumps(values).encode()
    found = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in found.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
