"""The server that a crowd is sent to: `python app.py` in a process of its own, watched from outside."""

import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from prometheus_client.parser import text_string_to_metric_families

from dalle_mini.environment import shipped

PATIENCE = 300.0  # seconds after which a request that has not ended never will
DIRECT = build_opener(ProxyHandler({}))  # whatever proxies the machine has
NOTING = 3.0  # seconds between two looks at the server
FREED = (
    "dalle_mini_slots_in_use",
    "dalle_mini_requests_waiting",
    "dalle_mini_requests_open",
)  # what is 0 when all have gone


@dataclass(frozen=True)
class Note:
    seconds: float
    memory: float  # bytes
    files: int


@contextmanager
def server(model: str, folder: Path) -> Iterator[str]:
    """Gives its address. It trusts this machine to say who its visitors are."""
    folder.mkdir()
    command = [sys.executable, str(shipped("app.py")), "--model", model, "--host", "127.0.0.1", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio")}
    process = subprocess.Popen(
        [*command, "--trusted-proxy", "127.0.0.1"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        if address is None:
            raise RuntimeError(f"the server did not start, it said {said!r}")
        yield address[0]
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError("the server did not end within 60 s") from None
        finally:
            process.stdout.close()


def _metrics(address: str) -> dict[str, float]:
    """By name, and by name and label: dalle_mini_requests_total finished."""
    with DIRECT.open(f"{address}metrics", timeout=PATIENCE) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {" ".join([s.name, *s.labels.values()]): s.value for family in families for s in family.samples}


def settled(address: str) -> dict[str, float]:
    """The metrics, once everything that should be free is."""
    end = time.monotonic() + 10
    while any((metrics := _metrics(address))[name] for name in FREED) and time.monotonic() < end:
        time.sleep(0.2)
    return metrics


@contextmanager
def noting(address: str, folder: Path, begun: float) -> Iterator[list[Note]]:
    """Looks at the server's memory and files every few seconds while the context lasts, and at its end."""
    notes: list[Note] = []
    over = threading.Event()

    def note() -> None:
        memory = _metrics(address).get("process_resident_memory_bytes", math.nan)  # known on Linux only
        files = sum(len(files) for _, _, files in os.walk(folder))
        notes.append(Note(time.monotonic() - begun, memory, files))

    def watch() -> None:
        while not over.wait(NOTING):
            note()

    thread = threading.Thread(target=watch, name="noting")
    thread.start()
    try:
        yield notes
    finally:
        over.set()
        thread.join()
    note()
