"""Replicas on Ray Serve: the same codes as in this process, whatever happens to a replica.

One cluster of two replicas for the whole file, and one more behind the real page.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from gradio_client import Client
from patience import eventually
from PIL import Image
from test_crowd import Wish, draw, wishes

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed (requirements-ray.txt)", allow_module_level=True)

import dalle_mini
from dalle_mini.sampling_params import SamplingParams
from dalle_mini.serving.ray.cluster import place
from dalle_mini.serving.ray.replica import Replica
from dalle_mini.serving.ray.scheduler import BackPressureError, RayScheduler
from dalle_mini.serving.refusals import ClosedError, QueueFullError

if TYPE_CHECKING:
    from dalle_mini import Pipeline

APP = Path(__file__).parents[1] / "app.py"
SLOTS = 9  # of each replica
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator["Pipeline"]:
    with dalle_mini.load("emoji", rerank=False, slots=SLOTS, max_waiting=16, replicas=2) as pipeline:
        yield pipeline


def replicas(pipeline: "Pipeline") -> dict[str, Any]:
    scheduler = pipeline.scheduler
    assert isinstance(scheduler, RayScheduler)
    return dict(scheduler._statuses)


def together(pipeline: "Pipeline", asked: list[Wish]) -> list[np.ndarray | None]:
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda wish: draw(pipeline, wish), asked))


def test_replicas_draw_the_codes_that_are_drawn_here(cluster: "Pipeline", emoji: "Pipeline"):
    asked = wishes(8)
    assert {wish.settings["condition_scale"] == 1 for wish in asked} == {True, False}
    before = {name: status.codes_drawn for name, status in replicas(cluster).items()}
    for wish, codes in zip(asked, together(cluster, asked), strict=True):
        np.testing.assert_array_equal(codes, draw(emoji, wish), err_msg=str(wish))
    assert eventually(lambda: all(replicas(cluster)[name].codes_drawn > codes for name, codes in before.items()))
    assert cluster.device == "2 Ray replicas (CPU)"
    assert cluster.scheduler.capacity == 2 * (16 + 2 * SLOTS)


@pytest.mark.parametrize(
    "settings",
    [
        {"negative_prompt": "a white background", "seamless": "both"},
        {"start": np.arange(64), "keep": 3},
        {"start": np.arange(64), "strength": 0.3},
    ],
    ids=["negative", "completion", "variation"],
)
def test_replicas_draw_from_something_what_is_drawn_from_it_here(
    cluster: "Pipeline", emoji: "Pipeline", settings: dict[str, Any]
):
    there, here = (p.generate("two rockets", num_candidates=2, seed=1, **settings) for p in (cluster, emoji))
    assert there.params == here.params
    codes = [np.stack([c.codes for c in sorted(gallery, key=lambda c: c.index)]) for gallery in (there, here)]
    np.testing.assert_array_equal(*codes)


def test_closed_streams_free_the_slots_of_their_replicas(cluster: "Pipeline"):
    """Thirty requests of sixteen keep both replicas busy for seconds; /metrics looks at them every second."""
    metrics, whole = cluster.metrics, 30 * 16 * cluster.config.image_length
    before = metrics.value("codes_drawn_total")
    tokens, params = cluster.tokenizer.encode("a crowd"), SamplingParams(seed=1, num_candidates=16)
    streams = [cluster.scheduler.stream(tokens, params, visitor="ann") for _ in range(30)]
    for stream in streams:
        next(stream)
    assert eventually(lambda: metrics.value("slots_in_use") > SLOTS), "both are at work"
    for stream in streams:
        stream.close()
    assert eventually(lambda: metrics.value("slots_in_use") == 0)
    assert metrics.value("requests_waiting") == 0
    assert 0 < metrics.value("codes_drawn_total") - before < 0.8 * whole


def test_full_lines_refuse_in_our_words_and_the_others_stay(cluster: "Pipeline"):
    tokens, params = cluster.tokenizer.encode("a crowd"), SamplingParams(seed=1, num_candidates=16)
    streams = [cluster.scheduler.stream(tokens, params, visitor=str(i)) for i in range(60)]

    def first(stream: Any) -> Any:
        try:
            return next(stream)
        except QueueFullError as error:
            return str(error)

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(first, streams))
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert 0 < len(refused) <= 44  # each replica has 16 in line, and one or two that it draws
    assert all(re.fullmatch(r"16 requests are waiting already: please try again .+", each) for each in refused)
    for stream in streams:
        stream.close()
    assert eventually(lambda: cluster.scheduler.slots_in_use == 0)


def test_a_killed_replica_loses_no_request_and_changes_no_code(
    cluster: "Pipeline", emoji: "Pipeline", caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Killed when every request has been answered and the victim is drawing.

    Sooner, Serve itself would ask elsewhere; and where Serve still thinks of the requests of the test before, it
    may have sent all to the other.
    """
    asked = [wish._replace(settings={**wish.settings, "num_candidates": 16}) for wish in wishes(20)[8:]]
    scheduler = cluster.scheduler
    assert isinstance(scheduler, RayScheduler)
    monkeypatch.setattr("dalle_mini.serving.ray.scheduler.LINE_HEARTBEAT", 60.0)  # what is heard is a replica's answer
    with ThreadPoolExecutor(len(asked)) as pool:
        drawn = [pool.submit(draw, cluster, wish) for wish in asked]
        assert eventually(lambda: sum(visit.last is not None for visit in list(scheduler._visits)) == len(asked))
        assert eventually(lambda: any(status.slots_in_use for status in replicas(cluster).values()))
        victim = max(replicas(cluster).items(), key=lambda status: status[1].slots_in_use)[0]
        os.kill(int(victim.split(":")[1]), signal.SIGKILL)
    for wish, codes in zip(asked, drawn, strict=True):
        np.testing.assert_array_equal(codes.result(), draw(emoji, wish), err_msg=str(wish))
    assert "a request begins again at another replica" in caplog.text
    assert eventually(lambda: victim not in replicas(cluster) and len(replicas(cluster)) == 2)


def test_what_serve_refuses_is_told_in_our_words():
    """When no replica lives and too many wait for one."""
    crowd: Any = SimpleNamespace(waiting=3)
    refused = RayScheduler._reason(crowd, BackPressureError(num_queued_requests=4, max_queued_requests=3))
    assert isinstance(refused, QueueFullError)
    assert str(refused) == "3 requests are waiting already: please try again later"


def test_a_broken_replica_is_not_healthy():
    replica = Replica.__new__(Replica)
    replica._scheduler = SimpleNamespace(state="ready")  # type: ignore[assignment]
    replica.check_health()
    replica._scheduler = SimpleNamespace(state="broken")  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="the device has failed"):
        replica.check_health()


def test_more_replicas_than_accelerators_are_refused_rather_than_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    assert place(1) == {"num_gpus": 1}
    with pytest.raises(ValueError, match=r"^replicas must be <= 1, the GPUs of this machine, got 2$"):
        place(2)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    assert place(2) == {"num_cpus": 1}


@pytest.mark.parametrize("wrong", [0, (0, 2), (3, 2)])
def test_numbers_of_replicas_are_checked_before_anything_is_started(wrong: Any):
    with pytest.raises(ValueError, match=r"replicas must be >= 1, the fewest first, got "):
        dalle_mini.load("emoji", rerank=False, replicas=wrong)


def marked(mark: str) -> list[str]:
    """Processes that have a word in their environment, by their command lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def server() -> Iterator[Any]:
    """The real page in front of two replicas: process, address, its folder for files and its mark."""
    mark = uuid.uuid4().hex
    command = [sys.executable, str(APP), "--engine", "ray", "--replicas", "2", "--slots", str(SLOTS)]
    command += ["--no-rerank", "--port", "0", "--grace", "120"]
    with tempfile.TemporaryDirectory() as files:
        environment = os.environ | {"MARK": mark, "TMPDIR": files}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout
            try:
                address = next(line for line in process.stdout if "is at " in line).split("is at ")[1].split()[0]
                yield SimpleNamespace(process=process, address=address, files=Path(files), mark=mark)
            finally:
                process.kill()


def test_the_page_answers_from_replicas_and_ends_with_all_its_processes(server: Any, emoji: "Pipeline"):
    client = Client(server.address, verbose=False)
    answer = client.predict("a tiny dog", num_candidates=2, seed=7, api_name="/generate")
    for candidate in answer["candidates"]:
        expected = next(
            c for c in emoji.generate("a tiny dog", num_candidates=2, seed=7) if c.index == candidate["candidate"]
        )
        with Image.open(candidate["image"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected.image))
    assert httpx.get(f"{server.address}healthz").json() == {"state": "ready"}

    def number(name: str) -> float:
        found = re.search(rf"^dalle_mini_{name} (\S+)$", httpx.get(f"{server.address}metrics").text, re.MULTILINE)
        assert found, name
        return float(found[1])

    assert number("replicas") == 2
    jobs = [client.submit("a crowd", num_candidates=16, seed=seed, api_name="/generate") for seed in range(20)]
    assert eventually(lambda: number("codes_drawn_total") > 2 * 256)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    for job in jobs:
        (*_, last) = [{}, *job.outputs()]  # none where it was refused at once
        assert len(last.get("candidates", [])) == 16 or str(ClosedError()) in str(job.exception())
    assert eventually(lambda: not marked(server.mark)), marked(server.mark)
    assert not list(server.files.glob("dalle-ray-*"))
