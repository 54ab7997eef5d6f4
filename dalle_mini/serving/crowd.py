"""A crowd for the real server: many clients over HTTP, every answer checked, and a table of how it went.

    1. `python app.py` starts in a process of its own, on a free port of 127.0.0.1, with a folder for its files.
    2. Clients with addresses of their own ask, each one thing after another: random prompts, seeds, settings and
       counts. Some cancel at a random moment, some just hang up. Memory and files of the server are noted meanwhile.
    3. When all have gone, every slot must be free. Some of the same requests are then sent one after another, and,
       when the server has ended, drawn in this process: the pictures must be the same to the pixel.

The server is in crowd_server.py, what the clients do in crowd_clients.py.

Contract: bounded in clients, in time and in files. What is wrong is in `Report.faults`, which should be empty.
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dalle_mini
from dalle_mini.serving.crowd_clients import Outcome, Visitor, alone, digest, visit
from dalle_mini.serving.crowd_server import FREED, Note, noting, server, settled

MAX_CLIENTS, MAX_MINUTES = 256, 60
ALONE = 60.0  # seconds at most for the requests that are sent one after another
DRAWN_HERE = 8  # requests


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
        with server(model, folder / "server") as address:
            begun = time.monotonic()
            with noting(address, folder / "server", begun) as notes, ThreadPoolExecutor(clients) as pool:
                visitors = [Visitor(i, rng.random(), cancelled, dropped) for i in range(clients)]
                jobs = [pool.submit(visit, address, folder, visitor, begun + seconds) for visitor in visitors]
                outcomes = [outcome for job in jobs for outcome in job.result()]
            took = time.monotonic() - begun
            metrics = settled(address)
            answered = [outcome for outcome in outcomes if outcome.ending == "answered"]
            rng.shuffle(answered)
            again = alone(address, folder / "alone", answered, min(ALONE, seconds))
        here = _drawn_here(model, answered[:DRAWN_HERE])
    faults = [f"{outcome.ask}: {outcome.why}" for outcome in [*outcomes, *again] if outcome.ending == "wrong"]
    faults += [f"{name} is {metrics[name]:.0f} afterwards" for name in FREED if metrics[name]]
    faults += _different(answered, again, "one after another") + _different(answered, here, "by this process")
    if not answered:
        faults.append("nothing was answered")
    faults += _growth(notes)
    return Report(
        clients=clients, seconds=took, outcomes=outcomes, alone=again, notes=notes, metrics=metrics, faults=faults
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


def _drawn_here(model: str, answered: Sequence[Outcome]) -> list[Outcome]:
    with dalle_mini.load(model, rerank=False) as pipeline:
        galleries = [pipeline.generate(outcome.ask.prompt, **outcome.ask.params.to_dict()) for outcome in answered]
    return [
        Outcome(outcome.ask, "answered", pictures={c.index: digest(c.image) for c in gallery})
        for outcome, gallery in zip(answered, galleries, strict=True)
    ]


def _different(answered: Sequence[Outcome], again: Sequence[Outcome], how: str) -> list[str]:
    pictures = {outcome.ask: outcome.pictures for outcome in answered}
    return [
        f"{outcome.ask}: other pictures when drawn {how}"
        for outcome in again
        if outcome.ending == "answered" and outcome.pictures != pictures[outcome.ask]
    ]


def _pictures(outcomes: Sequence[Outcome]) -> int:
    return sum(len(outcome.pictures) for outcome in outcomes)


def _percentiles(values: Sequence[float]) -> str:
    return "{:.1f} and {:.1f}".format(*np.percentile(values, (50, 95))) if values else "-"
