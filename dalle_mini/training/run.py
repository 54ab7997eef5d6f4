"""A run's folder: begun once, gone on with by the same recipe or not at all.

Contract: RUN/NETWORK, where NETWORK is vqgan, dvae, encoder, decoder, dalle or clip, holds how a network is trained:
config.json, of what it was begun with, and what the loop writes (loop.py). RUN/model is what `dalle_mini.load` reads;
its spelling/ is what the networks of the emoji world share (emoji/spelling.py). Of several hosts, which share the
folder, the first one writes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from dalle_mini.training.loop import begun
from dalle_mini.training.optional_packages import optional
from vqgan.files import write_json

CONFIG = "config.json"
# What may change when a run goes on: the same sums in another order, the same pictures in another place.
FREE = ("accumulation", "remat", "model_devices", "atlas")


def begin(folder: Path, values: dict[str, dict[str, Any]]) -> None:
    """Write into RUN/NETWORK what a new run is made of; a run that goes on must be made of the same.

    values: settings by part. Raises ValueError, by name, for another one than that of the run's checkpoints.
    """
    check_same(folder, values)

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, values)

    once(write, "config")


def check_same(folder: Path, values: dict[str, dict[str, Any]]) -> None:
    """As `begin`, without writing anything. Without a checkpoint, nothing is lost by another recipe.

    Of a setting that is younger than the run nothing is known.
    """
    if not (folder / CONFIG).exists() or not begun(folder):
        return
    before = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for part, settings in json.loads(json.dumps(values)).items():
        for name, value in settings.items():
            if name not in FREE and (was := before.get(part, {}).get(name, value)) != value:
                rule = f"{name} must be {was}, as {folder / CONFIG} says"
                raise ValueError(f"{rule}, got {value}: use a new run folder")


def check_own_codec(run: Path, name: str) -> None:
    """Raise ValueError if what paints in RUN/model, vqgan/, is not of RUN/`name`.

    Another one in its place would paint what the text-to-code model writes, and all of it wrongly.
    """
    taken = run / "model" / "vqgan"
    if taken.exists() and not (run / name / CONFIG).exists():
        raise ValueError(f"run must not have a VQGAN or dVAE from elsewhere, got {taken}: use a new run folder")


def once(work: Callable[[], object], name: str) -> None:
    """Work on the disk that the first process does and all wait for."""
    if jax.process_index() == 0:
        work()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def tracker(service: str, run: Path, config: dict[str, Any]) -> Callable[[int, dict[str, float]], None] | None:
    """Sends rows of metrics to trackio or wandb, or nowhere for "".

    Raises ValueError if it is another service or not installed.
    """
    if not service:
        return None
    if service not in ("trackio", "wandb"):
        raise ValueError(f"track must be trackio or wandb, got {service!r}")
    module = optional(service, f"for --track {service}")
    if jax.process_index() == 0:  # the only one that tells it anything
        module.init(project="dalle-mini", name=run.name, config=config)
    return lambda step, row: module.log(row, step=step)
