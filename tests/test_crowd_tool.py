"""A crowd at a real server, for seconds; `make crowd` does it for minutes. And the end of a busy server."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from dalle_mini.serving.crowd import _growth, crowd
from dalle_mini.serving.crowd_server import Note
from dalle_mini.serving.refusals import ClosedError

APP = Path(__file__).parents[1] / "app.py"
GRACE, PATIENCE = 10, 30


@pytest.mark.slow
def test_a_small_crowd_gets_its_own_pictures_and_leaves_nothing_behind():
    report = crowd(clients=8, seconds=15)
    assert list(report.faults) == []
    assert sum(outcome.ending == "answered" for outcome in report.outcomes) >= 1
    assert report.alone
    assert "| faults | none |" in report.table()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clients": 0}, "clients must be from 1 to 256, got 0"),
        ({"seconds": 0}, "minutes must be > 0 and <= 60, got 0"),
        ({"cancelled": 0.9, "dropped": 0.2}, r"cancelled and dropped must be shares .*, got 0\.9 and 0\.2"),
    ],
)
def test_bounds_are_named(setting: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        crowd(**{"clients": 8, "seconds": 60, **setting})  # type: ignore[arg-type]


def test_what_grows_after_the_first_third_is_a_fault_and_what_comes_and_goes_is_not():
    def notes(minutes: int, grown: float) -> list[Note]:
        """Both double while all are new; then the memory grows by a share in all, and files come and go."""
        late = [max(0, minute - minutes / 3) / (minutes * 2 / 3) for minute in range(1, minutes + 1)]
        first = [min(1, minute / (minutes / 3)) for minute in range(1, minutes + 1)]
        return [
            Note(60.0 * minute, 1e9 * (1 + new) * (1 + grown * share), 100 + 20 * (minute % 2))
            for minute, new, share in zip(range(1, minutes + 1), first, late, strict=True)
        ]

    assert _growth(notes(9, 0)) == []
    assert _growth(notes(9, 0.1)) == []
    (fault,) = _growth(notes(9, 0.5))
    assert fault.startswith("memory grew from 2")
    files = [Note(60.0 * minute, 1e9, 100 * minute) for minute in range(1, 7)]
    assert _growth(files) == ["files grew from 350 to 550"]
    assert _growth(files[:2]) == []  # too short to tell


@pytest.mark.slow
def test_sigterm_under_load_ends_every_request_and_the_process_within_the_grace():
    command, over = [sys.executable, str(APP), "--port", "0", "--grace", str(GRACE)], threading.Event()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as server,
        ThreadPoolExecutor(24) as pool,
    ):
        assert server.stdout
        try:
            address = server.stdout.readline().split("is at ")[1].split()[0]
            url, endings = f"{address}gradio_api/call/generate", []

            def visit() -> None:
                while not over.is_set():
                    try:
                        asked = httpx.post(
                            url, json={"data": ["a tiny dog", 16, None, 1.5, 1, 50, 1, False]}, timeout=PATIENCE
                        )
                        told = httpx.get(f"{url}/{asked.json()['event_id']}", timeout=PATIENCE).text
                    except httpx.TransportError as error:  # the server has ended
                        told = repr(error)
                        over.wait(1)
                    endings.append(told)

            visits = [pool.submit(visit) for _ in range(24)]
            while not any("event: complete" in told for told in endings):
                time.sleep(0.1)
            server.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            assert server.wait(PATIENCE) in (0, 1), "1: at the end of its grace, on a busy machine"
            assert time.monotonic() - begun <= GRACE + 5, "a busy machine takes seconds to clear a process away"
            over.set()
            for running in visits:
                running.result(PATIENCE)
            assert any(str(ClosedError()) in told for told in endings)
            known = ("event: complete", "event: error", "Error(")
            assert [told for told in endings if not any(word in told for word in known)] == []
        finally:
            over.set()
            server.kill()
