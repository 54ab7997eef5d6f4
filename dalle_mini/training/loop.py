"""The training loop that every network of this repository shares: progress, metrics, checkpoints, resuming.

Contract: a run is a pure function of its state and of the step number. `batches(step)` gives the same batch
for the same step, so resuming needs nothing but the newest checkpoint, and gives what an uninterrupted run gives.
A checkpoint appears whole or not at all, and is written while training goes on; it may be restored to other devices:
arrays are put where those of the state that `fit` is given are. A run folder holds `metrics.jsonl`, `checkpoints/`
(orbax) and `sheets/` (pictures of the progress). Of several processes, all call `fit`, and the first one writes.

A state is a tree of JAX's arrays, which steps replace; or, of a network that is not JAX's, an object that steps change
in place, with `arrays()`, a tree of copies, and `restore(arrays)`.
"""

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar, runtime_checkable

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from PIL import Image
from tqdm import tqdm

State = TypeVar("State")


@runtime_checkable
class InPlace(Protocol):
    """The state of a network that is not JAX's."""

    def arrays(self) -> dict[str, Any]: ...
    def restore(self, arrays: dict[str, Any]) -> None: ...


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long a run is and how often it reports. Steps are optimiser steps; times are in seconds."""

    out: Path
    steps: int
    examples_per_step: int
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)  # name: what one step adds to it
    track: Callable[[int, dict[str, float]], None] | None = None  # is told every row of metrics, too
    log_every: int = 20
    save_seconds: float = 180.0
    sheet_every: int = 500


def fit(
    state: State,
    step_fn: Callable[[State, Any], tuple[State, dict[str, Any]]],
    batches: Callable[[int], Any],
    *,
    config: LoopConfig,
    sheet: Callable[[State], Image.Image] | None = None,
    validate: Callable[[State], dict[str, Any]] | None = None,
) -> State:
    """Run `step_fn` from the newest checkpoint in `config.out` (or from `state`) up to `config.steps`.

    `step_fn(state, batch)` returns the new state and a dict of scalar metrics, "loss" among them; it may donate its
    state. Every `sheet_every` steps, `sheet(state)` draws a picture of the progress and `validate(state)` adds metrics.
    Raises ValueError for a loss that is not a number.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(config.out.absolute() / "checkpoints", options=options) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            state = _restored(checkpoints, start, state)
            logger.info("resuming %s at step %d", config.out, start)

        def save(step: int) -> None:
            if step not in checkpoints.all_steps():
                checkpoints.save(step, args=ocp.args.StandardSave(_arrays(state)))

        saved = time.monotonic()
        with _reporting(config, start) as report:
            for done, batch in enumerate(_drawn_ahead(batches, start, config.steps), start + 1):
                state, metrics = step_fn(state, batch)
                look = done % config.sheet_every == 0 or done == config.steps
                if look and validate:
                    metrics = {**metrics, **validate(state)}
                report(done, metrics)
                if _agreed(done, time.monotonic() - saved > config.save_seconds, config):
                    save(done)
                    saved = time.monotonic()
                if look and sheet:
                    _keep_sheet(sheet(state), config.out / "sheets" / f"{done:06d}.png")
        checkpoints.wait_until_finished()  # the last step may just be on its way to the disk
        save(config.steps)
    return state


def begun(out: Path) -> bool:
    """Whether there is a checkpoint to go on from; one that is not whole has no number alone for a name."""
    return any(path.name.isdigit() for path in (out / "checkpoints").glob("*"))


def _drawn_ahead(batches: Callable[[int], Any], start: int, end: int) -> Iterator[Any]:
    """The batches of the steps from `start` to `end`; a thread draws the next one while this one trains."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(batches, start)
        for step in range(start, end):
            batch = upcoming.result()
            if step + 1 < end:
                upcoming = pool.submit(batches, step + 1)
            yield batch


def _restored(checkpoints: ocp.CheckpointManager, step: int, state: State) -> State:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _arrays(state))
    arrays = checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
    if not isinstance(state, InPlace):
        return arrays
    state.restore(arrays)
    return state


def _arrays(state: Any) -> Any:
    return state.arrays() if isinstance(state, InPlace) else state


def _keep_sheet(picture: Image.Image, path: Path) -> None:
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        picture.save(path)


def _agreed(step: int, due: bool, config: LoopConfig) -> bool:
    """Whether to save now. Clocks differ: the first process decides for all, at a step where all wait anyway."""
    if jax.process_count() == 1:
        return due
    return step % config.log_every == 0 and bool(multihost_utils.broadcast_one_to_all(due))


@contextmanager
def _reporting(config: LoopConfig, start: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A function (step, metrics) that moves the progress bar and, every `log_every` steps, writes a row of metrics."""
    first = jax.process_index() == 0
    logged, logged_step = time.monotonic(), start
    with (
        _metrics_file(config.out / "metrics.jsonl", start) if first else open(os.devnull, "w") as log,
        tqdm(
            total=config.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=5, disable=not first
        ) as bar,
    ):

        def report(step: int, metrics: dict[str, Any]) -> None:
            nonlocal logged, logged_step
            bar.update()
            if step % config.log_every and step != config.steps:
                return
            row = {name: float(value) for name, value in metrics.items()}
            if not math.isfinite(row["loss"]):  # no step leads back, and a sheet would put it into the model
                raise ValueError(
                    f"loss must stay a number, got {row['loss']} at step {step} of {config.out}: "
                    "use a new run folder and a lower learning_rate"
                )
            now = time.monotonic()  # reading the metrics waited for the device
            steps_per_second = (step - logged_step) / (now - logged)
            rates = {"examples_per_second": config.examples_per_step, **config.rates}
            row |= {name: float(f"{amount * steps_per_second:.4g}") for name, amount in rates.items()}
            logged, logged_step = now, step
            bar.set_postfix_str(" ".join(f"{name} {value:.4g}" for name, value in row.items()))
            log.write(json.dumps({"step": step, **row}) + "\n")
            log.flush()
            if config.track and first:
                config.track(step, row)

        yield report


def _metrics_file(path: Path, start: int) -> TextIO:
    """Opened for more rows, without those that the resumed run will write again and one that was cut off."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n") and json.loads(line)["step"] <= start:
            kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")
