"""Calls that nobody has thought of: the server over HTTP, and every option of the command line.

None may end in a traceback, a hang, a 500, or a refusal that does not say what is wrong. FUZZ_CALLS is how many there
are of each kind; a run of 10,000 takes half an hour on two cores.
"""

import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app
import dalle_mini
from dalle_mini import __main__ as command_line
from dalle_mini.commands import compare, convert, data, generate, reconstruct, report, train
from dalle_mini.web import server as web

CALLS = int(os.environ.get("FUZZ_CALLS", "300"))
FUZZED = settings(
    max_examples=CALLS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=CALLS == 300,
    report_multiple_bugs=False,  # the first is the cause, and pytest's last lines say what it is
)
SETTINGS = ("num_candidates", "seed", "condition_scale", "temperature", "top_k", "top_p", "previews", "prompt")
SETTINGS += ("negative_prompt", "seamless", "show", "seconds", "start", "keep", "strength")
PATHS = (
    "/",
    "/leave",
    "/reconstruct",
    "/config",
    "/healthz",
    "/metrics",
    "/theme.css",
    "/favicon.ico",
    "/robots.txt",
    "/manifest.json",
)
PATHS += tuple(
    f"/gradio_api/{name}"
    for name in ("info", "app_id", "startup-events", "queue/join", "queue/data", "run/predict", "cancel", "upload")
)
PATHS += ("/gradio_api/call/generate", "/gradio_api/call/v2/generate", "/gradio_api/file=", "/assets/", "/static/")
PATHS += ("/gradio_api/call/v2/complete", "/gradio_api/call/v2/vary")

numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**31, 2**32, 2**64, 1e308]))
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
asks = st.fixed_dictionaries({}, optional=dict.fromkeys((*SETTINGS, "steps"), values))
in_order = st.lists(values, max_size=10).map(lambda data: {"data": data})
names = st.sampled_from(["session_hash", "event_id", "fn_index", "data", "event_data", "trigger_id", "api_name"])
events = st.dictionaries(names, values, max_size=7) | st.builds(
    lambda number, data: {"session_hash": "fuzz", "fn_index": number, "data": data},
    st.integers(-1, 12),
    st.lists(values, max_size=12),  # Draw's are twelve
)
bodies = st.one_of(asks, in_order, events, values).map(lambda value: json.dumps(value).encode()) | st.binary(
    max_size=50
)
methods = st.sampled_from(["GET", "POST", "POST", "POST", "HEAD", "PUT", "OPTIONS", "DELETE"])
paths = st.sampled_from(PATHS) | st.builds(
    lambda path, more: path + httpx.URL("", params={"q": more}).raw_path.decode()[3:], st.sampled_from(PATHS), st.text()
)


@pytest.fixture(scope="module")
def client(emoji: dalle_mini.Pipeline) -> Iterator[httpx.Client]:
    alone = httpx.Limits(max_keepalive_connections=0)  # a server may let go of one that waits, just when it is used
    with app.launch(emoji) as address, httpx.Client(base_url=address, timeout=60, limits=alone) as found:
        yield found


def check_refusal(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert answer.json()["detail"], answer.text


def check_silence(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """The server has had no error of its own."""
    logged = [caplog.handler.format(record) for record in caplog.records if record.levelno >= logging.ERROR]
    assert not logged, logged[0]
    printed = capfd.readouterr().err
    assert "Traceback" not in printed, printed


@pytest.mark.slow
def test_no_call_ends_in_a_traceback_a_hang_or_a_500(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("uvicorn.error").addHandler(caplog.handler)  # which passes nothing on

    @FUZZED
    @given(methods, paths, bodies)
    def call(method: str, path: str, body: bytes) -> None:
        with client.stream(method, path, content=body) as answer:
            if "event-stream" in answer.headers.get("content-type", ""):
                return  # a session's, without an end of its own
            answer.read()
        check_refusal(answer)
        check_silence(caplog, capfd)

    call()


@pytest.mark.slow
def test_every_answer_of_the_api_is_a_gallery_or_a_sentence_with_the_name_of_a_setting(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("uvicorn.error").addHandler(caplog.handler)
    few = st.sampled_from([0, 1, 1.0, 2, 17, "1", None])

    @FUZZED
    @given(st.sampled_from(["call", "call/v2"]), st.text(max_size=30) | values, few, st.lists(values, max_size=6))
    def call(kind: str, prompt: Any, candidates: Any, others: list[Any]) -> None:
        names = ["prompt", "num_candidates", "seed", "condition_scale", "temperature", "top_k", "top_p", "previews"]
        data = [prompt, candidates, *others]
        body = dict(zip(names, data, strict=False)) if kind == "call/v2" else {"data": data}
        url = f"gradio_api/{kind}/generate"
        answer = client.post(url, content=json.dumps(body))
        check_refusal(answer)
        if answer.status_code == 422:
            assert re.search("|".join(SETTINGS), answer.text), (body, answer.text)
            return
        told = client.get(f"{url}/{answer.json()['event_id']}").text
        event, _, said = told.strip().split("\n\n")[-1].partition("\ndata: ")
        if event == "event: error":
            assert re.search("|".join(SETTINGS), json.loads(said)["error"] or ""), (body, told)
        else:
            assert (event, len(json.loads(said))) == ("event: complete", 1), (body, told)
        check_silence(caplog, capfd)

    call()


# The command line


class AcceptedError(BaseException):
    """The options were not refused: what would be begun is none of a test's business."""


def accept(*_: object, **__: object) -> None:
    raise AcceptedError


NASTY = ("", " ", "-1", "0", "1", "nan", "inf", "-inf", "1e400", "99999999999999999999", "2.5", "seven", "\0", "é", "'")
NASTY += ("/proc/nothing", "~", "--", "a=b", "10.0.0.0/33", "\udcff", "x" * 5000, "🐱", "a\nb")
NEEDED = {"generate": ["a cat"], "reconstruct": ["/nothing.png"], "filter": ["/nothing"], "encode": ["/nothing"]}
NEEDED |= {"publish": ["emoji", "--out=published"], "convert": ["published"], "compare": ["emoji"]}


def options() -> Iterator[tuple[list[str], str]]:
    """Every command, and every option of it."""
    found: Any = typer.main.get_command(command_line.app)
    for name, command in found.commands.items():
        inner = {f"{name} {part}": each for part, each in getattr(command, "commands", {}).items()} or {name: command}
        for words, each in inner.items():
            for parameter in each.params:
                if words != "serve" and parameter.opts[0].startswith("--"):  # which has the options of the page
                    yield [*words.split(), *NEEDED.get(words, [])], parameter.opts[0]


@pytest.mark.parametrize(
    ("words", "option"), list(options()), ids=lambda part: part if isinstance(part, str) else part[0]
)
def test_no_option_of_a_command_is_refused_without_its_name(
    words: list[str],
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (compare, convert, data, generate, reconstruct, report, train):
        monkeypatch.setattr(module, "make_folder", accept)
    begun = ("training.report.publish._write_parts", "bench.measure", "serving.crowd.server", "commands.doctor._looks")
    for name in begun:
        monkeypatch.setattr(f"dalle_mini.{name}", accept)
    for value in NASTY:
        command = [*words, f"{option}={value}"]
        try:
            code = command_line.main(command)
        except AcceptedError:
            continue
        told = capsys.readouterr().err
        assert (code, told.count("\n")) == (2, 1), command
        name = option.strip("-").split("-")[0]
        assert re.search(rf"{name}|{words[-1]}|such option|takes no value|does not take a value", told), (command, told)


def test_no_option_of_the_page_is_refused_without_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(web, "listen", accept)
    page = typer.Typer(pretty_exceptions_enable=False)
    page.command()(app.main)
    command: Any = typer.main.get_command(page)
    for option in (parameter.opts[0] for parameter in command.params):
        for value in NASTY:
            try:
                command.main([f"{option}={value}"], standalone_mode=False)
                code: Any = 0
            except AcceptedError:
                continue
            except SystemExit as refused:
                code = str(refused.code)
            except typer.TyperException as refused:
                code = refused.format_message()
            words = option.strip("-").replace("-", "[-_]")
            assert re.search(f"{words}|value", str(code)), shlex.join([option, value])
