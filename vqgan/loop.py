"""The training loop that every network of this repository shares: progress, metrics, checkpoints, resuming.

Contract: a run is a pure function of its state and of the step number. `batches(step)` gives the same batch
for the same step, so resuming needs nothing but the newest checkpoint, and gives what an uninterrupted run gives.
A run folder holds `metrics.jsonl`, `checkpoints/` (orbax) and `sheets/` (pictures of the progress).
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from PIL import Image
from tqdm import tqdm

State = TypeVar("State")
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long a run is and how often it reports. Steps are optimiser steps; times are in seconds."""

    out: Path
    steps: int
    examples_per_step: int
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

    `step_fn(state, batch)` returns the new state and a dict of scalar metrics; it may donate its state. Every
    `sheet_every` steps, `sheet(state)` draws a picture of the progress and `validate(state)` adds metrics.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager(config.out.absolute() / "checkpoints", options=options) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = checkpoints.restore(start, args=ocp.args.StandardRestore(abstract))
            logger.info("resuming %s at step %d", config.out, start)

        def save(step: int) -> None:
            if step not in checkpoints.all_steps():
                checkpoints.save(step, args=ocp.args.StandardSave(state))

        saved = logged = time.monotonic()
        logged_step = start
        with (
            ThreadPoolExecutor(1) as pool,  # draws the next batch while this one trains
            (config.out / "metrics.jsonl").open("a", encoding="utf-8") as log,
            tqdm(total=config.steps, initial=start, unit="step", dynamic_ncols=True, mininterval=5) as bar,
        ):
            upcoming = pool.submit(batches, start)
            for step in range(start, config.steps):
                batch = upcoming.result()
                if step + 1 < config.steps:
                    upcoming = pool.submit(batches, step + 1)
                state, metrics = step_fn(state, batch)
                bar.update()
                done, now = step + 1, time.monotonic()
                look = done % config.sheet_every == 0 or done == config.steps
                if look and validate:
                    metrics = {**metrics, **validate(state)}
                if done % config.log_every == 0 or done == config.steps:
                    row = {name: float(value) for name, value in metrics.items()}
                    now = time.monotonic()  # reading the metrics waited for the device
                    rate = (done - logged_step) * config.examples_per_step / (now - logged)
                    log.write(json.dumps({"step": done, **row, "examples_per_second": round(rate, 2)}) + "\n")
                    log.flush()
                    bar.set_postfix_str(" ".join(f"{name} {value:.4g}" for name, value in row.items()))
                    logged, logged_step = now, done
                if now - saved > config.save_seconds:
                    save(done)
                    saved = time.monotonic()
                if look and sheet:
                    (config.out / "sheets").mkdir(exist_ok=True)
                    sheet(state).save(config.out / "sheets" / f"{done:06d}.png")
        save(config.steps)
    return state
