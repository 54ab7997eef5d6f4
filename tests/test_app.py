"""The page and its API, served as `python app.py` serves them, with the embedded model behind.

`slow` is the same pipeline with a pause after every event, so that what happens while it draws can be watched;
`crowded` holds the engine still with a crowd in front of it, so that what happens in line can be.
"""

import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from gradio_client import Client
from gradio_client.exceptions import AppError
from patience import eventually
from PIL import Image
from slow_pipeline import Slow

import app
import dalle_mini
from dalle_mini.gallery import read_metadata
from dalle_mini.sampling_params import STRENGTH
from dalle_mini.serving.refusals import ClosedError
from dalle_mini.training.emoji.judge import judge
from dalle_mini.training.emoji.scene import GRID, Scene, Sprite
from dalle_mini.training.emoji.world import BETWEEN, CENTRES, NORMAL, ROWS, SMALL, WORN, World, _place
from dalle_mini.web import server as web
from dalle_mini.web.limits import Limits
from dalle_mini.web.page.texts import harmless

BAD_SETTINGS = [
    ("num_candidates", 0),
    ("num_candidates", 17),
    ("num_candidates", 2.5),
    ("num_candidates", math.nan),
    ("seed", -1),
    ("seed", 2**32),
    ("temperature", 0),
    ("top_p", 0),
    ("top_p", 1.5),
]
ODD_PROMPTS = ["a cat\x00\x07\x1b[31m", "🐱 🍕", "قطة بجانب بيتزا", "<script>alert(1)</script>"]


@pytest.fixture(scope="module")
def client(address: str) -> Client:
    return Client(address, verbose=False)


# What the page offers


def alone(name: str, size: int) -> tuple[Sprite, ...]:
    return (Sprite(name=name, size=size, row=(GRID - size) // 2, column=(GRID - size) // 2),)


MEANT: dict[str, dict[str, Any]] = {  # in the words of the world
    "a cat left of a pizza": {"sprites": _place(["cat", "pizza"], CENTRES["left"])},
    "a panda wearing a crown": {
        "sprites": (
            Sprite(name="panda", size=NORMAL, row=2, column=1),
            Sprite(name="crown", size=WORN, row=0, column=3),
        )
    },
    "three hearts on a black background": {
        "sprites": _place(["heart"] * 3, ROWS[3][0]),
        "others": (_place(["heart"] * 3, ROWS[3][1]),),
        "background": "black",
    },
    "a glossy dragon": {"sprites": alone("dragon", NORMAL), "style": "fluent-emoji", "look": "glossy"},
    "a robot under a rainbow": {"sprites": _place(["robot", "rainbow"], CENTRES["below"])},
    "an avocado on a yellow background": {"sprites": alone("avocado", NORMAL), "background": "yellow"},
    "a bee between a rose and a sunflower": {
        "sprites": _place(["bee", "rose", "sunflower"], BETWEEN[0]),
        "others": (_place(["bee", "rose", "sunflower"], BETWEEN[1]),),
    },
    "a tiny dog": {"sprites": alone("dog", SMALL)},
}


@pytest.mark.parametrize("prompt", app.EXAMPLES)
def test_what_the_page_offers_is_drawn_as_it_says(emoji: dalle_mini.Pipeline, world: World, prompt: str) -> None:
    """The best of nine, by templates and not by CLIP."""
    meant = {"background": "white", "style": world.styles[0]} | MEANT[prompt]
    scene = Scene(kind="any", caption=prompt, names_background="background" in MEANT[prompt], **meant)
    verdict = judge(world, scene, np.asarray(emoji.generate(prompt, seed=0)[0].image))
    assert verdict.objects
    assert verdict.background


# The API


def test_api_gives_the_ranked_candidates_as_files(client: Client) -> None:
    result = client.predict("a tiny dog", num_candidates=3, seed=7, api_name="/generate")
    scores = [candidate["score"] for candidate in result["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(candidate["candidate"] for candidate in result["candidates"]) == [0, 1, 2]
    for rank, candidate in enumerate(result["candidates"], 1):
        text = read_metadata(candidate["image"])
        assert (text["prompt"], text["seed"], text["candidate"]) == ("a tiny dog", "7", str(candidate["candidate"]))
        assert json.loads(text["settings"])["num_candidates"] == 3
        assert text["model"] == result["model"] == "emoji"
        assert candidate["caption"].startswith(f"#{rank} · score {candidate['score']:.3f} · seed 7 · candidate ")


def test_same_request_gives_the_same_bytes(client: Client) -> None:
    first, second = (client.predict("two rockets", num_candidates=2, seed=3, api_name="/generate") for _ in range(2))
    bytes_of = [[Path(c["image"]).read_bytes() for c in result["candidates"]] for result in (first, second)]
    assert bytes_of[0] == bytes_of[1]


def test_api_documents_the_pipelines_defaults_and_nothing_else_is_public(
    client: Client, emoji: dalle_mini.Pipeline
) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    own = {"/generate": ["prompt"], "/complete": ["prompt", "start", "keep"], "/vary": ["prompt", "start", "strength"]}
    assert list(endpoints) == list(own)
    defaults = {"previews": False, "keep": None, "strength": STRENGTH}
    for endpoint, names in own.items():
        parameters = endpoints[endpoint]["parameters"]
        assert [each["parameter_name"] for each in parameters[: len(names)]] == names
        for each in parameters:
            name = each["parameter_name"]
            assert each["parameter_has_default"] == (name not in ("prompt", "start"))
            if each["parameter_has_default"]:
                assert each["parameter_default"] == defaults.get(name, getattr(emoji.defaults, name, None))


def test_api_counts_the_rows_while_drawing(client: Client, no_heartbeats: None) -> None:
    job = client.submit("a red apple", num_candidates=1, api_name="/generate")
    job.result()
    *previews, _ = job.outputs()
    rows = [preview["row"] for preview in previews if "row" in preview]
    assert sorted(set(rows)) == list(range(1, previews[-1]["rows"]))
    assert rows == sorted(rows)


def test_api_gives_previews_to_those_who_ask(slow_address: str) -> None:
    job = Client(slow_address, verbose=False).submit(
        "a red apple", num_candidates=2, previews=True, api_name="/generate"
    )
    job.result()
    *updates, _ = job.outputs()
    *_, last = [update["previews"] for update in updates if "previews" in update]
    for url in last:
        kind, _, data = url.partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(b64decode(data))) as picture:
            assert picture.getpixel((0, 0)) != picture.getpixel((0, picture.height - 1)), "half drawn, half grey"


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_bad_setting_is_named_to_the_apis_client(client: Client, address: str, name: str, value: float) -> None:
    if math.isnan(value):  # a Python client refuses to send it; others can
        message = sent_as_text(address, ["a cat", value, None, 1, 1, 0, 1, False])
    else:
        with pytest.raises(AppError) as refused:
            client.predict("a cat", api_name="/generate", **{name: value})
        message = str(refused.value)
    assert re.search(rf"{name} must be .*, got {value}", message)
    assert client.predict("a cat", num_candidates=1, api_name="/generate")["candidates"]


def sent_as_text(address: str, data: list[Any]) -> str:
    url, body = f"{address}gradio_api/call/generate", json.dumps({"data": data})
    return httpx.post(url, content=body, headers={"content-type": "application/json"}).text


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_empty_prompt_is_refused_through_the_api(client: Client, prompt: str) -> None:
    with pytest.raises(AppError, match="prompt must not be empty, got"):
        client.predict(prompt, api_name="/generate")


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
def test_odd_prompt_is_drawn_and_kept_as_typed(client: Client, prompt: str) -> None:
    (candidate,) = client.predict(prompt, num_candidates=1, api_name="/generate")["candidates"]
    assert read_metadata(candidate["image"])["prompt"] == prompt


def test_long_prompt_is_cut_and_said_so(client: Client) -> None:
    result = client.predict("a cat and " * 1000, num_candidates=1, api_name="/generate")
    assert any("cut" in note for note in result["notes"])


def as_url(picture: Image.Image, kind: str = "PNG") -> str:
    data = io.BytesIO()
    picture.save(data, kind)
    return f"data:image/{kind.lower()};base64,{b64encode(data.getvalue()).decode()}"


def test_api_completes_a_picture_as_python_does(client: Client, emoji: dalle_mini.Pipeline) -> None:
    photo = Image.linear_gradient("L").convert("RGB")
    keep = [[column < 4 for column in range(8)]] * 8
    asked: dict[str, Any] = {"keep": keep, "num_candidates": 2, "seed": 7, "negative_prompt": "blue"}
    result = client.predict("a cat", as_url(photo), **asked, api_name="/complete")
    expected = emoji.generate("a cat", start=photo, **asked)
    assert [each["codes"] for each in result["candidates"]] == [each.codes.tolist() for each in expected]


def test_api_varies_what_it_has_drawn(client: Client, emoji: dalle_mini.Pipeline) -> None:
    asked: dict[str, Any] = {"num_candidates": 1, "seed": 7}
    (drawn,) = client.predict("three stars", **asked, api_name="/generate")["candidates"]
    asked |= {"strength": 0.25, "seamless": "both"}
    (varied,) = client.predict("three stars", drawn["codes"], **asked, api_name="/vary")["candidates"]
    (expected,) = emoji.generate("three stars", start=drawn["codes"], **asked)
    assert varied["codes"] == expected.codes.tolist()
    settings = json.loads(read_metadata(varied["image"])["settings"])
    assert dalle_mini.SamplingParams(**settings) == expected.params


@pytest.mark.parametrize(
    "start",
    [
        "/etc/passwd",
        "assets/images/page.png",
        "https://example.org/a.png",
        "data:image/png;base64,AAAA",
        "data:image/svg+xml;base64,PHN2Zz4=",
        as_url(Image.new("1", (5000, 5000))),
        as_url(Image.new("RGB", (3, 3))),
    ],
    ids=["path", "our own file", "address", "no picture", "svg", "huge", "tiny"],
)
def test_what_strangers_start_from_is_a_picture_inside_the_message(client: Client, start: str) -> None:
    with pytest.raises(AppError, match=r"start must be a (data URL or base64|JPEG, PNG, WEBP, GIF or BMP)"):
        client.predict("a cat", start, api_name="/complete")


@pytest.mark.parametrize(
    ("endpoint", "start", "settings", "sentence"),
    [
        ("/complete", [0] * 64, {"keep": 9}, "keep must be a number of rows from 0 to 8 or 8 x 8 booleans, got 9"),
        ("/complete", [0] * 63, {}, "start must be a picture or 64 codes"),
        ("/complete", {"codes": "", "sha256": ""}, {}, "start must be a picture as a data URL, or codes, got {"),
        ("/complete", None, {}, "start must be a picture as a data URL, or codes, got None"),
        ("/vary", [0] * 64, {"strength": 1.5}, "strength must be a number from 0 to 1, got 1.5"),
        ("/vary", [9999] * 64, {}, "start must have codes from 0 to 2047, got 9999 to 9999"),
    ],
)
def test_a_start_that_cannot_be_is_named_to_the_apis_client(
    client: Client, endpoint: str, start: Any, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AppError, match=re.escape(sentence)):
        client.predict("a cat", start, **settings, api_name=endpoint)


def test_cancelling_a_job_closes_the_pipelines_stream(slow_address: str, slow: Slow) -> None:
    before = slow.closed_early
    job = Client(slow_address, verbose=False).submit("a tiny dog", num_candidates=1, api_name="/generate")
    assert eventually(lambda: len(job.outputs()) > 0)
    job.cancel()
    assert eventually(lambda: slow.closed_early == before + 1)


def test_a_dropped_connection_closes_the_pipelines_stream(slow_address: str, slow: Slow) -> None:
    before, url = slow.closed_early, f"{slow_address}gradio_api/call/generate"
    event = httpx.post(url, json={"data": ["a tiny dog", 1, None, 1, 1, 0, 1, False]}).json()["event_id"]
    with httpx.stream("GET", f"{url}/{event}") as stream:
        next(line for line in stream.iter_lines() if "row" in line)
    assert eventually(lambda: slow.closed_early == before + 1)


# The crowd


def test_requests_of_several_clients_are_drawn_at_the_same_time(
    slow_address: str, slow: Slow, monkeypatch: pytest.MonkeyPatch, no_heartbeats: None
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(slow, "pause", gate.wait)
    clients = [Client(slow_address, verbose=False) for _ in range(3)]
    jobs = [client.submit("a tiny dog", num_candidates=1, api_name="/generate") for client in clients]
    begun = eventually(lambda: all("row" in str(job.outputs()) for job in jobs))
    gate.set()
    assert begun
    assert all(job.result()["candidates"] for job in jobs)


def test_api_tells_the_place_in_line_and_cancelling_leaves_it(
    client: Client, emoji: dalle_mini.Pipeline, crowded: None
) -> None:
    job = client.submit("a tiny dog", num_candidates=1, api_name="/generate")
    assert eventually(lambda: "place" in str(job.outputs()))
    assert job.outputs()[0]["place"] == 2, "visitors take turns: before the second of the crowd's"
    job.cancel()
    assert eventually(lambda: emoji.scheduler.waiting == 2)


def test_a_full_line_is_told_to_the_apis_client(
    client: Client, emoji: dalle_mini.Pipeline, crowded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji.scheduler, "max_waiting", 2)
    with pytest.raises(AppError, match="2 requests are waiting already: please try again"):
        client.predict("a tiny dog", api_name="/generate")


def test_a_visitors_limit_is_told_to_the_apis_client(
    client: Client, emoji: dalle_mini.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji, "limits", Limits(per_minute=1))
    assert client.predict("a tiny dog", num_candidates=1, api_name="/generate")["candidates"]
    with pytest.raises(AppError, match="a visitor may ask at most 1 times a minute"):
        client.predict("a tiny dog", num_candidates=1, api_name="/generate")


@pytest.mark.parametrize(
    ("trusted", "forwarded", "visitor"),
    [
        (None, "10.9.8.7", "127.0.0.1"),
        ("10.0.0.1", "10.9.8.7", "127.0.0.1"),
        ("127.0.0.1", "10.9.8.7", "10.9.8.7"),
        ("127.0.0.0/8", "10.9.8.7", "10.9.8.7"),
        ("127.0.0.1", "2001:db8::7", "2001:db8::/64"),
    ],
)
def test_forwarded_address_counts_only_from_a_trusted_proxy_and_a_forged_one_never(
    emoji: dalle_mini.Pipeline, trusted: str | None, forwarded: str, visitor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors: list[str] = []
    stream = emoji.stream
    monkeypatch.setattr(
        emoji, "stream", lambda *args, **rest: visitors.append(rest["visitor"]) or stream(*args, **rest)
    )
    with app.launch(emoji, trusted_proxy=trusted) as address:
        client = Client(address, verbose=False, headers={"X-Forwarded-For": f"6.6.6.6, {forwarded}"})
        client.predict("a tiny dog", num_candidates=1, api_name="/generate")
    assert visitors == [visitor]


def test_healthz_says_what_state_the_server_is_in(
    emoji: dalle_mini.Pipeline, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> tuple[int, Any]:
        answer = httpx.get(f"{address}healthz")
        return answer.status_code, answer.json()

    assert found() == (200, {"state": "ready"})
    monkeypatch.setattr(emoji.scheduler, "_broken", dict.fromkeys(emoji.scheduler.engines, math.inf))
    assert found() == (503, {"state": "broken"})
    monkeypatch.setattr(emoji.scheduler, "_closing", True)
    assert found() == (503, {"state": "draining"})


def test_metrics_are_served_as_prometheus_reads_them(client: Client, address: str) -> None:
    client.predict("a tiny dog", num_candidates=1, api_name="/generate")
    answer = httpx.get(f"{address}metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert re.search(r'^dalle_mini_requests_total\{outcome="finished"\} [1-9]', answer.text, re.MULTILINE)
    assert re.search(r"^dalle_mini_slots_in_use 0.0$", answer.text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_server_finishes_what_it_draws_refuses_the_rest_and_ends(number: signal.Signals) -> None:
    """Eight requests fill the slots, and take seconds together."""
    command = [sys.executable, str(app.ASSETS.parent / "app.py"), "--port", "0", "--grace", "120", "--slots", "128"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as server:
        assert server.stdout
        try:
            address = server.stdout.readline().split("is at ")[1].split()[0]
            client, late = (Client(address, verbose=False) for _ in range(2))
            jobs = [client.submit("a tiny dog", num_candidates=16, api_name="/generate") for _ in range(8)]
            assert eventually(lambda: all("row" in str(job.outputs()) for job in jobs))
            server.send_signal(number)
            assert eventually(lambda: httpx.get(f"{address}healthz").json() == {"state": "draining"})
            with pytest.raises(AppError, match=str(ClosedError())):
                late.predict("a tiny dog", num_candidates=1, api_name="/generate")
            assert all(len(job.result(120)["candidates"]) == 16 for job in jobs)
            assert server.wait(120) == 0
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("grace", "killed_after", "closed_after"), [(0.0, 3.0, 0.0), (2.0, 3.0, 0.0), (10.0, 10.0, 7.0)]
)
def test_whatever_hangs_the_process_ends_within_the_grace(
    grace: float, killed_after: float, closed_after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(threading, "Timer", lambda *rest: asked.append(rest) or SimpleNamespace(start=lambda: None))
    pipeline: Any = SimpleNamespace(close=asked.append, metrics=SimpleNamespace(open=0))
    with web.serve(FastAPI(), pipeline, listener=web.listen("127.0.0.1", 0), grace=grace):
        pass
    assert asked == [(killed_after, os._exit, [1]), closed_after]


def test_the_second_signal_ends_the_process_whatever_it_is_doing() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        asked = web.stop_signal()
        assert not asked.is_set()
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        assert [signal.getsignal(number) for number in before] == [signal.SIG_DFL] * 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# The model card, and starting


def test_card_loses_front_matter_images_and_html_but_keeps_links() -> None:
    text = "---\nlicense: mit\n---\n# A\n![b](https://x.org/b.png)[c](https://x.org) <img src=//x.org/d>![e][f] <https://g.org>"
    assert harmless(text).split() == ["#", "A", "[c](https://x.org)", "<https://g.org>"]


@pytest.mark.parametrize("front", ["---\n- a\n---\n", "---\na: b: [c\n---\n", "\n---\n---\n", ""])
def test_front_matter_of_any_kind_is_no_reason_to_refuse_a_card(front: str) -> None:
    assert harmless(front + "# A\n\n---\n\nB\n\n---\n").split() == ["#", "A", "---", "B", "---"]


def test_main_prints_the_address_the_device_and_the_model(
    emoji: dalle_mini.Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(dalle_mini, "load", lambda model, **settings: emoji)
    monkeypatch.setattr(web, "stop_signal", lambda: stop)
    monkeypatch.setattr(web, "_drain", lambda server, pipeline, grace: None)
    app.main(port=0)
    printed = capsys.readouterr().out
    assert re.search(r"http://127\.0\.0\.1:\d+/", printed)
    assert emoji.device in printed
    assert "model emoji" in printed


def test_model_that_cannot_be_loaded_ends_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        app.main(model=str(tmp_path), port=7998)
    assert str(tmp_path) in str(ended.value)


def test_engine_ray_without_ray_ends_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("dalle_mini.serving.ray.scheduler", "dalle_mini.serving.ray.cluster"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit, match=r"^replicas need Ray: pip install -r requirements-ray\.txt \(.*ray.*\)$"):
        app.main(engine="ray", rerank=False, port=0)


def test_without_it_nothing_imports_ray() -> None:
    script = "import app, sys, dalle_mini.loading; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=app.ASSETS.parent)


def test_replicas_are_a_number_or_a_range() -> None:
    assert [app.replica_counts("ray", text) for text in ("2", "1-8", "3-3")] == [2, (1, 8), 3]
    for wrong in ("", "-1", "two", "1-", "1 - 2"):
        with pytest.raises(ValueError, match=r"^replicas must be a number or two, such as 2 or 1-8, got "):
            app.replica_counts("ray", wrong)
    assert app.replica_counts("ray", None) == 2
    assert app.replica_counts("local", None) is None
    with pytest.raises(ValueError, match=r"^replicas must be left out without engine ray, got '3'$"):
        app.replica_counts("local", "3")


def test_port_that_is_taken_ends_with_one_sentence_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dalle_mini, "load", lambda *_, **__: pytest.fail("loaded before the port was tried"))
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, pytest.raises(SystemExit) as ended:
        app.main(port=taken.getsockname()[1])
    assert str(ended.value).startswith("host and port must be free to listen on, got 127.0.0.1:")
