"""A disk that fails while the page is served, and a server that is killed."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from patience import eventually

import app
import dalle_mini
from dalle_mini.web.answers import PREFIX

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The system's folder for temporary files."""
    return tmp_path_factory.mktemp("temporary") / "tmp"


@pytest.fixture(scope="module")
def draw(emoji: dalle_mini.Pipeline, place: Path) -> Iterator[Callable[[], Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(place))
        with app.launch(emoji) as address:
            client = Client(address, verbose=False)
            draw = lambda: client.predict("a tiny dog", num_candidates=1, api_name="/generate")  # noqa: E731
            draw.address = address  # type: ignore[attr-defined]
            yield draw


def healthz(draw: Any) -> tuple[int, str]:
    answer = httpx.get(f"{draw.address}healthz")
    return answer.status_code, answer.json()["state"]


def metric(draw: Any, name: str) -> float:
    told = httpx.get(f"{draw.address}metrics").text
    return float(next(line for line in told.splitlines() if line.startswith(f"dalle_mini_{name} ")).split()[-1])


def test_the_page_draws_on_when_the_temporary_folder_was_emptied(draw: Any, place: Path) -> None:
    assert draw()["candidates"]
    shutil.rmtree(place)
    assert draw()["candidates"]
    shutil.rmtree(place)
    assert healthz(draw) == (200, "ready")


def test_a_disk_that_fails_is_told_to_everybody_and_works_again_as_soon_as_it_does(draw: Any, place: Path) -> None:
    failed = metric(draw, 'requests_total{outcome="failed"}')
    shutil.rmtree(place)
    place.write_text("in the way")
    with pytest.raises(AppError, match=r"the server's folder for pictures \(TMPDIR\) must have room and be writable"):
        draw()
    assert healthz(draw) == (503, "storage")
    assert metric(draw, "storage_works") == 0
    assert metric(draw, 'requests_total{outcome="failed"}') == failed + 1
    place.unlink()
    assert healthz(draw) == (200, "ready")
    assert metric(draw, "storage_works") == 1
    assert draw()["candidates"]


@pytest.mark.slow
def test_killed_at_random_moments_of_a_crowd_nothing_is_left_after_the_next_start(tmp_path: Path) -> None:
    """KILLS of them; 20 take a quarter of an hour on two busy cores."""
    rng, kills = random.Random(0), int(os.environ.get("KILLS", "2"))
    command = [sys.executable, str(ROOT / "app.py"), "--port", "0", "--no-rerank"]
    variables = {**os.environ, "TMPDIR": str(tmp_path), "GRADIO_TEMP_DIR": ""}
    for turn in range(kills + 1):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as server:
            try:
                assert server.stdout
                address = server.stdout.readline().split("is at ")[1].split()[0]
                (left,) = tmp_path.iterdir()
                assert left.name.startswith(PREFIX)
                if turn == kills:
                    server.terminate()
                    assert server.wait(60) == 0
                    break
                with ThreadPoolExecutor(4) as pool:
                    for number in range(4):
                        pool.submit(ask, address, number)
                    drawn = eventually(lambda: any(tmp_path.glob("*/*/*.png")))
                    time.sleep(rng.uniform(0, 3))
                    server.kill()
                assert drawn
            finally:
                server.kill()
    assert list(tmp_path.iterdir()) == []


def ask(address: str, number: int) -> None:
    url = f"{address}gradio_api/call/v2/generate"
    try:
        for seed in range(100):
            event = httpx.post(url, json={"prompt": "a tiny dog", "seed": 100 * number + seed}).json()["event_id"]
            httpx.get(f"{url}/{event}", timeout=60)
    except httpx.TransportError:  # it was killed
        return
