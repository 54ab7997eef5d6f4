"""The clients of a crowd: each asks one thing after another and checks every answer, or cancels, or hangs up."""

import hashlib
import io
import json
import math
import random
import time
from base64 import b64decode
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request

import numpy as np
from gradio_client import Client
from PIL import Image

from dalle_mini.gallery import read_metadata
from dalle_mini.sampling_params import FIRST, MAX_CANDIDATES, MAX_SEED, SamplingParams
from dalle_mini.serving.crowd_server import DIRECT, PATIENCE

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
class Visitor:
    number: int
    seed: float
    cancelled: float  # shares of the requests
    dropped: float

    @property
    def address(self) -> str:
        return f"10.0.{self.number // 250}.{1 + self.number % 250}"


def visit(address: str, folder: Path, visitor: Visitor, until: float) -> list[Outcome]:
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
    quick["httpx_kwargs"] = {"trust_env": False}  # nor with proxies
    return Client(address, download_files=folder, headers=headers, **quick)


def _random_ask(rng: random.Random) -> Ask:
    params = SamplingParams(
        num_candidates=rng.randint(1, MAX_CANDIDATES),
        seed=rng.randint(0, MAX_SEED),
        condition_scale=rng.choice((1.0, 3.0, 10.0, 20.0)),
        temperature=round(rng.uniform(0.5, 1.5), 2),
        top_k=rng.choice((0, 10, 50, 256)),
        top_p=rng.choice((0.5, 0.9, 1.0)),
        negative_prompt=rng.choice(("", "", "a white background")),
        seamless=rng.choice(("", "", "both")),
    )
    return Ask(f"{rng.choice(COUNTS)} {rng.choice(THINGS)}{rng.choice(PLACES)}", params)


def _ask(client: Client, ask: Ask, patience: float) -> Outcome:
    """Ask, and cancel after `patience` seconds."""
    begun, preview = time.monotonic(), None
    job = client.submit(ask.prompt, api_name="/generate", previews=True, **ask.params.to_dict())
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
        got = (
            said["prompt"],
            SamplingParams(**json.loads(said["settings"])),
            int(said["seed"]),
            int(said["candidate"]),
        )
        if got != (ask.prompt, ask.params, ask.params.seed, candidate["candidate"]):
            raise ValueError(f"another one's picture: {got}")
        with Image.open(file) as image:
            pictures[candidate["candidate"]] = digest(image)
        file.unlink()
        file.parent.rmdir()
    if sorted(pictures) != list(range(ask.params.num_candidates)):
        raise ValueError(f"candidates must be 0 to {ask.params.num_candidates - 1}, got {sorted(pictures)}")
    return pictures


def _hang_up(address: str, visitor: str, ask: Ask, patience: float) -> Outcome:
    """Ask without a Gradio client, listen for `patience` seconds at most, and close the connection."""
    url, settings = f"{address}gradio_api/call/generate", [getattr(ask.params, name) for name in FIRST]
    headers = {"content-type": "application/json", "x-forwarded-for": visitor}
    body = json.dumps({"data": [ask.prompt, *settings, True]}).encode()
    with DIRECT.open(Request(url, body, headers), timeout=PATIENCE) as answer:
        event = json.load(answer)["event_id"]
    end = time.monotonic() + patience
    with closing(DIRECT.open(f"{url}/{event}", timeout=PATIENCE)) as stream:
        while line := stream.readline():
            if time.monotonic() >= end:
                break
    return Outcome(ask, "dropped" if line else "ended before it was dropped")


def alone(address: str, folder: Path, answered: Sequence[Outcome], seconds: float) -> list[Outcome]:
    """Some of the same requests, one after another."""
    client, end, outcomes = _client(address, folder, "10.1.1.1"), time.monotonic() + seconds, []
    for outcome in answered:
        if time.monotonic() >= end:
            break
        outcomes.append(_ask(client, outcome.ask, math.inf))
    return outcomes


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
