"""How fast and how large: start to ready, first gallery, later galleries, a crowd and peak memory, on this machine.

Contract: `measure` runs the model twice, each time in a process of its own that is timed from its
start: once with nothing compiled, once with the programs that the first run left on disk. The result is a
Markdown table for the README, with the machine and the date.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dalle_mini import Pipeline

PROMPT = "a cat left of a pizza"
LATER_GALLERIES = 5
CROWD_SECONDS = 20


def measure(model: str) -> str:
    """The table; its codes a second are drawn, painted and ranked for a crowd that fills every slot.

    Raises CalledProcessError when the model could not be run (its own message is on stderr).
    """
    with tempfile.TemporaryDirectory(prefix="dalle-mini-bench-") as folder:
        runs = {name: _run(model, Path(folder)) for name in ("nothing compiled", "compiled programs on disk")}
    lines = [
        f"{model}, {_processor()}, {os.cpu_count()} cores, {date.today()}",
        "",
        "| start | ready | first gallery | later galleries | codes a second, a crowd | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        times = f"{run['ready']:.1f} s | {run['first']:.1f} s | {run['later']:.1f} s"
        lines.append(f"| {name} | {times} | {run['codes_per_second']:,.0f} | {run['peak_mib']:,.0f} MiB |")
    return "\n".join(lines)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; what `platform` says there is only the architecture
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _run(model: str, programs: Path) -> dict[str, float]:
    started = time.time()
    child = subprocess.run(
        [sys.executable, "-m", "dalle_mini.bench", model],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(programs)},
        stdout=subprocess.PIPE,
        check=True,
    )
    run = json.loads(child.stdout)
    return {**run, "ready": run["ready"] - started}


def _child(model: str) -> None:
    """One process: load, one gallery, some more; prints its measurements as JSON ("ready" is a time of day)."""
    import resource

    import dalle_mini

    pipeline = dalle_mini.load(model)
    ready = time.time()
    seconds = []
    for seed in range(1 + LATER_GALLERIES):
        begun = time.perf_counter()
        pipeline.generate(PROMPT, seed=seed)
        seconds.append(time.perf_counter() - begun)
    codes_per_second = _crowd(pipeline)
    pipeline.close()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    found = {"ready": ready, "first": seconds[0], "later": statistics.median(seconds[1:]), "peak_mib": peak}
    sys.stdout.write(json.dumps(found | {"codes_per_second": codes_per_second}))


def _crowd(pipeline: "Pipeline") -> float:
    """Codes a second while twice as many galleries are asked for as are drawn at once; the first ones warm it up."""
    from dalle_mini.serving.scheduler import Scheduler

    assert isinstance(pipeline.scheduler, Scheduler), "load was asked for no replicas"
    slots = sum(engine.slots for engine in pipeline.scheduler.engines)
    visitors = 2 * math.ceil(slots / pipeline.defaults.num_candidates)
    with ThreadPoolExecutor(visitors) as pool:
        list(pool.map(lambda seed: pipeline.generate(PROMPT, seed=seed), range(visitors)))
        begun, before = time.perf_counter(), pipeline.metrics.value("codes_drawn_total")
        while (seconds := time.perf_counter() - begun) < CROWD_SECONDS:
            list(pool.map(lambda seed: pipeline.generate(PROMPT, seed=seed), range(visitors)))
        return (pipeline.metrics.value("codes_drawn_total") - before) / seconds


if __name__ == "__main__":
    from vqgan.files import CheckpointError

    try:
        _child(sys.argv[1])
    except CheckpointError as error:
        sys.exit(f"error: {error}")
