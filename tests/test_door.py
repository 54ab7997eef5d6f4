"""What strangers reach of the server: every route that Gradio mounts, by name, and what they may bring.

`asked` speaks to the app itself, without a network; `address` is a server, for what is drawn.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import app
import dalle_mini
from dalle_mini.web.answers import Answers
from dalle_mini.web.door import MOST_BYTES, Door
from dalle_mini.web.visits import Visits

CALL = "/gradio_api/call/generate"
# Every route of the pinned Gradio. A new one fails the test below: decide here, and in door.py, who may reach it.
OPEN = {
    "/": "GET HEAD",
    "/assets/{path:path}": "GET",
    "/config": "GET",
    "/config/": "GET",
    "/favicon.ico": "GET",
    "/gradio_api/app_id": "GET",
    "/gradio_api/app_id/": "GET",
    "/gradio_api/call/v2/{api_name}": "POST",
    "/gradio_api/call/v2/{api_name}/": "POST",
    "/gradio_api/call/v2/{api_name}/{event_id}": "GET",
    "/gradio_api/call/{api_name}": "POST",
    "/gradio_api/call/{api_name}/": "POST",
    "/gradio_api/call/{api_name}/{event_id}": "GET",
    "/gradio_api/cancel": "POST",
    "/gradio_api/file={path_or_url:path}": "GET HEAD",
    "/gradio_api/heartbeat/{session_hash}": "GET",
    "/gradio_api/info": "GET",
    "/gradio_api/info/": "GET",
    "/gradio_api/queue/data": "GET",
    "/gradio_api/queue/join": "POST",
    "/gradio_api/run/{api_name}": "POST",
    "/gradio_api/run/{api_name}/": "POST",
    "/gradio_api/startup-events": "GET",
    "/healthz": "GET",
    "/leave": "POST",
    "/stop": "POST",
    "/manifest.json": "GET",
    "/metrics": "GET",
    "/preview.jpg": "GET",
    "/reconstruct": "POST",
    "/robots.txt": "GET",
    "/static/{path:path}": "GET",
    "/theme.css": "GET",
}
SHUT = {
    "/gradio_api/api/{api_name}": "POST",
    "/gradio_api/api/{api_name}/": "POST",
    "/gradio_api/component_server": "POST",
    "/gradio_api/component_server/": "POST",
    "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}": "GET",
    "/gradio_api/deep_link": "GET",
    "/gradio_api/dev/reload": "GET",
    "/gradio_api/file/{path:path}": "GET",
    "/gradio_api/login_check": "GET",
    "/gradio_api/login_check/": "GET",
    "/gradio_api/openapi.json": "GET",
    "/gradio_api/process_recording": "POST",
    "/gradio_api/proxy={url_path:path}": "GET HEAD",
    "/gradio_api/queue/status": "GET",
    "/gradio_api/reset": "POST",
    "/gradio_api/reset/": "POST",
    "/gradio_api/runs": "GET",
    "/gradio_api/runs/": "GET",
    "/gradio_api/stream/{event_id}": "POST",
    "/gradio_api/stream/{event_id}/close": "POST",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file": "GET",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8": "GET",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}": "GET",
    "/gradio_api/theme.css": "GET",
    "/gradio_api/token": "GET",
    "/gradio_api/token/": "GET",
    "/gradio_api/upload": "POST",
    "/gradio_api/upload_progress": "GET",
    "/gradio_api/user": "GET",
    "/gradio_api/user/": "GET",
    "/gradio_api/vibe-code": "GET POST",
    "/gradio_api/vibe-code/": "GET POST",
    "/gradio_api/vibe-edit": "POST",
    "/gradio_api/vibe-edit/": "POST",
    "/gradio_api/vibe-starter-queries": "POST",
    "/gradio_api/vibe-starter-queries/": "POST",
    "/gradio_api/undo-vibe-edit": "POST",
    "/gradio_api/undo-vibe-edit/": "POST",
    "/login": "POST",
    "/login/": "POST",
    "/logout": "GET",
    "/monitoring": "GET",
    "/monitoring/summary": "GET",
    "/monitoring/{key}": "GET",
    "/openapi.json": "GET HEAD",
    "/pwa_icon": "GET",
    "/pwa_icon/{size}": "GET",
    "/svelte/{path:path}": "GET",
}
Asked = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def door(emoji: dalle_mini.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Door:
    return app.everything_served(emoji, Answers(tmp_path_factory.mktemp("answers")), Visits())


@pytest.fixture(scope="module")
def asked(door: Door) -> Asked:
    def ask(method: str, path: str, **rest: Any) -> httpx.Response:
        async def asking() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://localhost") as client:
                return await client.request(method, path, **rest)

        with ThreadPoolExecutor(1) as pool:  # a browser of other tests may have a loop in this thread
            return pool.submit(asyncio.run, asking()).result()

    return ask


@pytest.fixture(scope="module")
def address(emoji: dalle_mini.Pipeline) -> Iterator[str]:
    with app.launch(emoji) as found:
        yield found.rstrip("/")


def mounted(routes: Any) -> Iterator[tuple[str, str]]:
    for route in routes:
        if hasattr(route, "methods"):
            yield from ((route.path, method) for method in route.methods)
        else:  # a mounted app or, within one, its router
            inner = route.app if hasattr(route, "app") else route.original_router
            yield from mounted(inner.routes)


def test_every_route_of_gradio_is_known_and_is_open_or_shut(door: Door) -> None:
    found: dict[str, set[str]] = {}
    for path, method in mounted(door._app.routes):  # type: ignore[attr-defined]
        found.setdefault(path, set()).add(method)
    assert {path: " ".join(sorted(methods)) for path, methods in found.items()} == OPEN | SHUT


@pytest.mark.parametrize("path", SHUT)
def test_what_the_page_does_not_need_is_not_there(asked: Asked, path: str) -> None:
    concrete = path.replace("{path:path}", "x").replace("{url_path:path}", "http://127.0.0.1:9/").replace("{", "")
    for method in ("GET", "POST", "HEAD"):
        answer = asked(method, concrete.replace("}", ""))
        assert answer.status_code == 404
        assert method == "HEAD" or answer.json()["detail"].startswith(
            "path must be one of the page's or the API's, got"
        )


@pytest.mark.parametrize(
    "file",
    [
        "https://example.com/",
        "http://127.0.0.1:7860/",
        "/etc/passwd",
        "{folder}/../../etc/passwd",
        "{folder}/nothing.png",
    ],
)
def test_no_file_but_those_of_answers_is_served_and_nothing_is_fetched(asked: Asked, door: Door, file: str) -> None:
    assert asked("GET", f"/gradio_api/file={file.format(folder=door._folder)}").status_code in (403, 404)


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/call/generate", "/gradio_api/queue/join"])
def test_large_bodies_are_refused_before_they_are_read(asked: Asked, path: str) -> None:
    answer = asked("POST", path, content=bytes(MOST_BYTES + 1))
    assert answer.status_code == (404 if path.endswith("upload") else 413)


def test_a_body_that_grows_without_saying_so_is_refused_when_it_is_too_large(asked: Asked) -> None:
    sent = []

    async def pieces() -> Any:
        for _ in range(1000):
            sent.append(1)
            yield bytes(MOST_BYTES // 4)

    answer = asked("POST", CALL, content=pieces())
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        f"the body must have at most {MOST_BYTES} bytes, got more",
    )


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/config", "/nowhere"])
def test_every_answer_has_the_headers_of_a_public_page_and_may_be_framed(asked: Asked, path: str) -> None:
    headers = asked("GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "strict-origin-when-cross-origin"
    assert "object-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors" not in headers["content-security-policy"], "even * would not be a blog post on a disk"
    assert "x-frame-options" not in headers


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/config", "/theme.css", "/favicon.ico", "/robots.txt"])
def test_head_is_get_without_the_body(asked: Asked, path: str) -> None:
    get, head = asked("GET", path), asked("HEAD", path)
    assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
    assert get.content
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize(("path", "allowed"), [("/", "GET, HEAD"), (CALL, "POST"), ("/healthz", "GET, HEAD")])
def test_other_methods_are_refused_with_those_that_are_allowed(
    asked: Asked, method: str, path: str, allowed: str
) -> None:
    answer = asked(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json() == {"detail": f"method must be {allowed.replace(', ', ' or ')}, got {method!r}"}


def test_browsers_of_other_sites_may_ask_before_they_post(asked: Asked) -> None:
    headers = {"Origin": "https://example.org", "Host": "dalle.example.org", "Access-Control-Request-Method": "POST"}
    answer = asked("OPTIONS", CALL, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("*", "https://example.org")


@pytest.mark.parametrize(
    ("host", "status"),
    [("dalle.example.org", 200), ("[::1]:7860", 200), ("a b", 400), ("[", 400), ("<script>", 400), ("x" * 300, 400)],
)
@pytest.mark.parametrize("header", ["Host", "X-Forwarded-Host"])
def test_a_host_that_can_be_none_is_refused(asked: Asked, header: str, host: str, status: int) -> None:
    assert asked("GET", "/config", headers={header: host}).status_code == status


# The API, as people call it


NAMES = "prompt, num_candidates, seed, condition_scale, temperature, top_k, top_p, previews, negative_prompt, seamless"
NAMES += ", show, seconds"
REFUSED = [
    (CALL, {}, f"data must be a list of {NAMES}, or the first of these, got NoneType"),
    (CALL, {"data": []}, "prompt must be given, got none"),
    (CALL, {"data": ["a"] * 13}, f"data must be a list of {NAMES}, or the first of these, got 13 of them"),
    (CALL, {"prompt": "a cat"}, f"data must be a list of {NAMES}, or the first of these, got NoneType"),
    ("/gradio_api/call/v2/generate", {}, "prompt must be given, got none"),
    ("/gradio_api/call/v2/generate", {"seed": 7}, "prompt must be given, got none"),
    (
        "/gradio_api/call/v2/generate",
        {"prompt": "a cat", "steps": 50},
        f"settings must be {NAMES}, got 'steps'",
    ),
    (
        "/gradio_api/call/v2/generate",
        {"prompt": "a cat", "temperature": 0},
        "temperature must be a number > 0 and <= 10, got 0",
    ),
    ("/gradio_api/call/v2/generate", {"prompt": " "}, "prompt must not be empty, got ' '"),
    (CALL, {"data": ["a cat", 99]}, "num_candidates must be a whole number from 1 to 16, got 99"),
    (CALL, {"data": ["a cat", 9, "seven"]}, "seed must be a whole number from 0 to 4294967295, got 'seven'"),
    ("/gradio_api/call/v2/vary", {"prompt": "a cat"}, "start must be given, got none"),
    ("/gradio_api/call/v2/complete", {"start": [1]}, "prompt must be given, got none"),
    ("/gradio_api/call/complete", {"data": ["a cat"]}, "start must be given, got none"),
    ("/gradio_api/call/v2/generate", {"prompt": "a cat", "start": [1]}, f"settings must be {NAMES}, got 'start'"),
    ("/gradio_api/call/v2/generate", ["a cat"], "the body must be a JSON object, got list"),
    ("/gradio_api/queue/join", {}, "session_hash must be 1 to 64 letters and digits, got 'None'"),
    (
        "/gradio_api/queue/join",
        {"session_hash": "a", "fn_index": 99},
        "fn_index must be one of the page's events, got 99",
    ),
    ("/reconstruct", {}, "the body must be a picture, a data URL or base64, alone, got {}"),
    (
        "/reconstruct",
        {"picture": 7, "model": "mini"},
        "the body must be a picture, a data URL or base64, alone, got {'picture': 'int', 'model': 'str'}",
    ),
    ("/reconstruct", {"picture": "cat.png"}, "picture must be a data URL or base64, got 'cat.png'"),
    ("/leave", {"tab": "../a"}, "tab must be 1 to 64 letters and digits, got '../a'"),
    ("/stop", {"tab": "a", "drawing": "b c"}, "drawing must be 1 to 64 letters and digits, got 'b c'"),
    ("/gradio_api/cancel", {"session_hash": "a"}, "event_id must be 1 to 64 letters and digits, got 'None'"),
]


@pytest.mark.parametrize(("path", "body", "sentence"), REFUSED)
def test_a_wrong_body_is_refused_in_a_sentence(asked: Asked, path: str, body: Any, sentence: str) -> None:
    answer = asked("POST", path, json=body)
    assert (answer.status_code, answer.json()) == (422, {"detail": sentence})


@pytest.mark.parametrize("body", [b"", b"a cat", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_a_body_that_is_no_json_is_refused_in_a_sentence(asked: Asked, body: bytes) -> None:
    answer = asked("POST", CALL, content=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("the body must be JSON")


@pytest.mark.parametrize(
    ("path", "name"),
    [(f"{CALL}/nothing", "event"), ("/gradio_api/queue/data?session_hash=nothing", "session_hash")],
)
def test_whoever_listens_to_what_is_not_there_is_told_so(asked: Asked, path: str, name: str) -> None:
    answer = asked("GET", path)
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(f"{name} must be one that")


def last(told: str) -> tuple[str, Any]:
    """The last event of a stream, and its data."""
    event, data = told.strip().split("\n\n")[-1].split("\n", 1)
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CALL, {"data": ["a cat"]}),
        (CALL, {"data": ["a cat", 2, 7]}),
        ("/gradio_api/call/v2/generate", {"prompt": "a cat"}),
        ("/gradio_api/call/v2/generate", {"prompt": "a cat", "num_candidates": 2, "seed": 7}),
    ],
)
def test_settings_left_out_are_the_models_own(
    address: str, emoji: dalle_mini.Pipeline, path: str, body: dict[str, Any]
) -> None:
    # As curl sends it: `-d` alone says that it is a form.
    form = {"content-type": "application/x-www-form-urlencoded"}
    event = httpx.post(address + path, content=json.dumps(body), headers=form).json()["event_id"]
    ending, (answer,) = last(httpx.get(f"{address}{path}/{event}", timeout=60).text)
    assert ending == "complete"
    given = len(body) + len(body.get("data", "")) > 2
    assert len(answer["candidates"]) == (2 if given else emoji.defaults.num_candidates)
    assert answer["seed"] == 7 or not given
    picture = httpx.get(answer["candidates"][0]["image"]["url"])
    assert picture.headers["content-type"] == "image/png"
