"""A crowd for the real server: many clients over HTTP, every answer checked, and a table of how it went.

    1. `python app.py` starts in a process of its own, on a free port of 127.0.0.1, with a folder for its files.
    2. Clients with addresses of their own ask, each one thing after another: random prompts, seeds, settings and
       counts. Some cancel at a random moment, some just hang up. Memory and files of the server are noted meanwhile.
    3. When all have gone, every slot must be free. Some of the same requests are then sent one after another, and,
       when the server has ended, drawn in this process: the pictures must be the same to the pixel.

Contract: bounded in clients, in time and in files. What is wrong is in `Report.faults`, which should be empty.
"""

import hashlib
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from gradio_client import Client
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import dalle_mini
from dalle_mini.config import MAX_CANDIDATES, MAX_SEED, SamplingParams
from dalle_mini.gallery import read_metadata

APP = Path(__file__).parents[2] / "app.py"
MAX_CLIENTS, MAX_MINUTES = 256, 60
PATIENCE = 300.0  # seconds after which a request that has not ended never will
NOTING = 3.0  # seconds between two looks at the server
ALONE = 60.0  # seconds at most for the requests that are sent one after another
DRAWN_HERE = 8  # requests
COUNTS = ("a", "one", "two", "three", "a tiny", "a big")
THINGS = ("red apple", "rocket", "heart", "avocado", "strawberry", "cat left of a pizza", "tree", "dog", "fish")
PLACES = ("", " on a blue background", " on a green background", " on a yellow background")


@dataclass(frozen=True)
class Ask:
    prompt: str
    params: SamplingParams


@dataclass(frozen=True)
class Outcome:
    ask: Ask
    ending: str  # answered, refused, cancelled, dropped or wrong
    why: str = ""  # of what was refused or is wrong
    preview: float | None = None  # seconds until the first one
    seconds: float = 0.0
    pictures: dict[int, str] = field(default_factory=dict)  # SHA-256 of the pixels, by candidate


@dataclass(frozen=True)
class Note:
    seconds: float
    memory: float  # bytes
    files: int


@dataclass(frozen=True, kw_only=True)
class Report:
    clients: int
    seconds: float
    outcomes: Sequence[Outcome]
    alone: Sequence[Outcome]
    notes: Sequence[Note]
    metrics: dict[str, float]
    faults: Sequence[str]

    def table(self) -> str:
        """In Markdown."""
        counts = Counter(outcome.ending for outcome in self.outcomes)
        answered = [outcome for outcome in self.outcomes if outcome.ending == "answered"]
        previews = [outcome.preview for outcome in answered if outcome.preview is not None]
        alone_seconds = sum(outcome.seconds for outcome in self.alone)
        minutes = _by_minute(self.notes)
        rows = {
            "clients, seconds": f"{self.clients}, {self.seconds:.0f}",
            "requests": ", ".join(f"{number} {ending}" for ending, number in counts.most_common()),
            "pictures a second, all at once": f"{_pictures(answered) / self.seconds:.2f}",
            f"pictures a second, {len(self.alone)} of the same one after another": (
                f"{_pictures(self.alone) / alone_seconds:.2f}" if self.alone else "-"
            ),
            "seconds to the first preview, p50 and p95": _percentiles(previews),
            "seconds to the gallery, p50 and p95": _percentiles([outcome.seconds for outcome in answered]),
            "memory of the server after each minute, MiB": ", ".join(f"{note.memory / 2**20:.0f}" for note in minutes),
            "files of the server after each minute": ", ".join(str(note.files) for note in minutes),
            "slots in use and requests waiting, afterwards": (
                f"{self.metrics['dalle_mini_slots_in_use']:.0f} and {self.metrics['dalle_mini_requests_waiting']:.0f}"
            ),
            "faults": "; ".join(self.faults) or "none",
        }
        return "\n".join(
            ["| what | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows.items())]
        )


def crowd(
    *, clients: int, seconds: float, cancelled: float = 0.2, dropped: float = 0.05, model: str = "emoji", seed: int = 0
) -> Report:
    """Drive a server with `clients` for `seconds`; see the module. `cancelled` and `dropped` are shares of requests.

    Raises ValueError, naming the setting, and RuntimeError where the server does not start or end.
    """
    if not 1 <= clients <= MAX_CLIENTS:
        raise ValueError(f"clients must be from 1 to {MAX_CLIENTS}, got {clients}")
    if not 0 < seconds <= 60 * MAX_MINUTES:
        raise ValueError(f"minutes must be > 0 and <= {MAX_MINUTES}, got {seconds / 60:g}")
    if not (cancelled >= 0 and dropped >= 0 and cancelled + dropped <= 1):
        raise ValueError(f"cancelled and dropped must be shares of the requests, got {cancelled:g} and {dropped:g}")
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="dalle-mini-load-") as name:
        folder = Path(name)
        with _server(model, folder / "server") as address:
            begun = time.monotonic()
            with _noting(address, folder / "server", begun) as notes, ThreadPoolExecutor(clients) as pool:
                visitors = [Visitor(i, rng.random(), cancelled, dropped) for i in range(clients)]
                visits = [pool.submit(_visit, address, folder, visitor, begun + seconds) for visitor in visitors]
                outcomes = [outcome for visit in visits for outcome in visit.result()]
            took = time.monotonic() - begun
            metrics = _settled(address)
            answered = [outcome for outcome in outcomes if outcome.ending == "answered"]
            rng.shuffle(answered)
            alone = _alone(address, folder / "alone", answered, min(ALONE, seconds))
        here = _drawn_here(model, answered[:DRAWN_HERE])
    faults = [f"{outcome.ask}: {outcome.why}" for outcome in [*outcomes, *alone] if outcome.ending == "wrong"]
    faults += [f"{name} is {metrics[name]:.0f} afterwards" for name in FREED if metrics[name]]
    faults += _different(answered, alone, "one after another") + _different(answered, here, "by this process")
    if not answered:
        faults.append("nothing was answered")
    faults += _growth(notes)
    return Report(
        clients=clients, seconds=took, outcomes=outcomes, alone=alone, notes=notes, metrics=metrics, faults=faults
    )


def _by_minute(notes: Sequence[Note]) -> list[Note]:
    """The note nearest to every full minute, and the last one."""
    full = range(60, int(notes[-1].seconds), 60)
    return [*(min(notes, key=lambda note: abs(note.seconds - at)) for at in full), notes[-1]]


def _growth(notes: Sequence[Note]) -> list[str]:
    """What there is much more of in the last third of the time than in the second; in the first all are new."""
    third = notes[-1].seconds / 3
    if third < 60:
        return []
    middle, last = ([note for note in notes if part * third < note.seconds <= (part + 1) * third] for part in (1, 2))
    means = {
        name: [np.mean([getattr(note, name) for note in part]) for part in (middle, last)]
        for name in ("memory", "files")
    }
    return [
        f"{name} grew from {before:.0f} to {after:.0f}"
        for name, (before, after) in means.items()
        if after > 1.15 * before
    ]


# The server -------------------------------------------------------------------------------------------------

FREED = ("dalle_mini_slots_in_use", "dalle_mini_requests_waiting", "dalle_mini_requests_open")


@contextmanager
def _server(model: str, folder: Path) -> Iterator[str]:
    """Gives its address. It trusts this machine to say who its visitors are."""
    folder.mkdir()
    command = [sys.executable, str(APP), "--model", model, "--host", "127.0.0.1", "--port", "0"]
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
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RuntimeError("the server did not end within 20 s") from None
        finally:
            process.stdout.close()


def _metrics(address: str) -> dict[str, float]:
    """By name, and by name and label: dalle_mini_requests_total finished."""
    with urlopen(f"{address}metrics", timeout=PATIENCE) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {" ".join([s.name, *s.labels.values()]): s.value for family in families for s in family.samples}


def _settled(address: str) -> dict[str, float]:
    """The metrics, once everything that should be free is."""
    end = time.monotonic() + 10
    while any((metrics := _metrics(address))[name] for name in FREED) and time.monotonic() < end:
        time.sleep(0.2)
    return metrics


@contextmanager
def _noting(address: str, folder: Path, begun: float) -> Iterator[list[Note]]:
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


# The clients ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visitor:
    number: int
    seed: float
    cancelled: float  # shares of the requests
    dropped: float

    @property
    def address(self) -> str:
        return f"10.0.{self.number // 250}.{1 + self.number % 250}"


def _visit(address: str, folder: Path, visitor: Visitor, until: float) -> list[Outcome]:
    """Ask until it is time to go."""
    rng, outcomes = random.Random(visitor.seed), []
    client = _client(address, folder / visitor.address, visitor.address)
    while time.monotonic() < until:
        ask, fate, moment = _random_ask(rng), rng.random(), rng.uniform(0, 5)
        if fate < visitor.dropped:
            outcomes.append(_hang_up(address, visitor.address, ask, moment))
        else:
            outcomes.append(_ask(client, ask, moment if fate < visitor.dropped + visitor.cancelled else math.inf))
    return outcomes


def _client(address: str, folder: Path, visitor: str) -> Client:
    headers = {"x-forwarded-for": visitor}
    # Without certificates, of which there are none here: the client would read all of them for every file it fetches.
    quick: dict[str, Any] = {"verbose": False, "analytics_enabled": False, "ssl_verify": False}
    return Client(address, download_files=folder, headers=headers, **quick)


def _random_ask(rng: random.Random) -> Ask:
    params = SamplingParams(
        num_candidates=rng.randint(1, MAX_CANDIDATES),
        seed=rng.randint(0, MAX_SEED),
        condition_scale=rng.choice((1.0, 3.0, 10.0, 20.0)),
        temperature=round(rng.uniform(0.5, 1.5), 2),
        top_k=rng.choice((0, 10, 50, 256)),
        top_p=rng.choice((0.5, 0.9, 1.0)),
    )
    return Ask(f"{rng.choice(COUNTS)} {rng.choice(THINGS)}{rng.choice(PLACES)}", params)


def _ask(client: Client, ask: Ask, patience: float) -> Outcome:
    """Ask, and cancel after `patience` seconds."""
    begun, preview = time.monotonic(), None
    job = client.submit(ask.prompt, api_name="/generate", previews=True, **asdict(ask.params))
    cancelled = False
    while not job.done():
        seconds = time.monotonic() - begun
        if preview is None and any(map(_painted, job.outputs())):
            preview = seconds
        if seconds > PATIENCE:
            return Outcome(ask, "wrong", f"no end in {PATIENCE:.0f} s")
        if seconds > patience and not cancelled:
            cancelled = job.cancel()
        time.sleep(0.05)
    if cancelled:  # waited for, since the server cancels whatever its client is asking for
        return Outcome(ask, "cancelled")
    seconds = time.monotonic() - begun
    if error := job.exception():
        return Outcome(ask, "refused" if "please try again" in str(error) else "wrong", str(error) or repr(error))
    try:
        pictures = _checked(ask, job.result())
    except ValueError as error:
        return Outcome(ask, "wrong", str(error))
    return Outcome(ask, "answered", preview=preview, seconds=seconds, pictures=pictures)


def _painted(update: dict[str, Any]) -> bool:
    """Whether it has a preview that is not all grey."""
    for url in update.get("previews", ()):
        with Image.open(io.BytesIO(b64decode(url.partition(",")[2]))) as image:
            if np.ptp(np.asarray(image)):
                return True
    return False


def _checked(ask: Ask, answer: dict[str, Any]) -> dict[int, str]:
    """The pictures of an answer to this prompt and this seed, or ValueError. The files are gone afterwards."""
    pictures = {}
    scores = [candidate["score"] for candidate in answer["candidates"]]
    if scores != sorted(scores, reverse=True):
        raise ValueError(f"scores must fall, got {scores}")
    for candidate in answer["candidates"]:
        file = Path(candidate["image"])
        said = read_metadata(file)
        got = (said["prompt"], json.loads(said["settings"]), int(said["seed"]), int(said["candidate"]))
        if got != (ask.prompt, asdict(ask.params), ask.params.seed, candidate["candidate"]):
            raise ValueError(f"another one's picture: {got}")
        with Image.open(file) as image:
            pictures[candidate["candidate"]] = _digest(image)
        file.unlink()
        file.parent.rmdir()
    if sorted(pictures) != list(range(ask.params.num_candidates)):
        raise ValueError(f"candidates must be 0 to {ask.params.num_candidates - 1}, got {sorted(pictures)}")
    return pictures


def _hang_up(address: str, visitor: str, ask: Ask, patience: float) -> Outcome:
    """Ask without a Gradio client, listen for `patience` seconds at most, and close the connection."""
    url, settings = f"{address}gradio_api/call/generate", list(asdict(ask.params).values())
    headers = {"content-type": "application/json", "x-forwarded-for": visitor}
    body = json.dumps({"data": [ask.prompt, *settings, True]}).encode()
    with urlopen(Request(url, body, headers), timeout=PATIENCE) as answer:
        event = json.load(answer)["event_id"]
    end = time.monotonic() + patience
    with closing(urlopen(f"{url}/{event}", timeout=PATIENCE)) as stream:
        while line := stream.readline():
            if time.monotonic() >= end:
                break
    return Outcome(ask, "dropped" if line else "ended before it was dropped")


# The same again ---------------------------------------------------------------------------------------------


def _alone(address: str, folder: Path, answered: Sequence[Outcome], seconds: float) -> list[Outcome]:
    """Some of the same requests, one after another."""
    client, end, outcomes = _client(address, folder, "10.1.1.1"), time.monotonic() + seconds, []
    for outcome in answered:
        if time.monotonic() >= end:
            break
        outcomes.append(_ask(client, outcome.ask, math.inf))
    return outcomes


def _drawn_here(model: str, answered: Sequence[Outcome]) -> list[Outcome]:
    with dalle_mini.load(model, rerank=False) as pipeline:
        galleries = [pipeline.generate(outcome.ask.prompt, **asdict(outcome.ask.params)) for outcome in answered]
    return [
        Outcome(outcome.ask, "answered", pictures={c.index: _digest(c.image) for c in gallery})
        for outcome, gallery in zip(answered, galleries, strict=True)
    ]


def _different(answered: Sequence[Outcome], again: Sequence[Outcome], how: str) -> list[str]:
    pictures = {outcome.ask: outcome.pictures for outcome in answered}
    return [
        f"{outcome.ask}: other pictures when drawn {how}"
        for outcome in again
        if outcome.ending == "answered" and outcome.pictures != pictures[outcome.ask]
    ]


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _pictures(outcomes: Sequence[Outcome]) -> int:
    return sum(len(outcome.pictures) for outcome in outcomes)


def _percentiles(values: Sequence[float]) -> str:
    return "{:.1f} and {:.1f}".format(*np.percentile(values, (50, 95))) if values else "-"
