"""`doctor`: what this machine is, what of it works, and one picture: what belongs into a report of a fault."""

import os
import platform
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from dalle_mini import environment
from dalle_mini.commands.options import Model

PACKAGES = ("dalle-mini", "jax", "jaxlib", "flax", "torch", "open_clip_torch", "transformers", "gradio", "numpy")
VARIABLES = ("CUDA_", "GRADIO_", "HF_", "JAX_", "NPROC", "OMP_", "TMPDIR", "XDG_CACHE_HOME", "XLA_")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")


def doctor(
    model: Model = "emoji",
    port: Annotated[int, typer.Option(help="The port that the page would have.", min=0, max=65535)] = 7860,
) -> None:
    """Say what this machine is, what of it works, and draw one picture; exit code 1 where that fails."""
    healthy = True
    for name, look in _looks(model, port):
        try:
            said = look()
        except Exception as error:  # whatever it is, the rest is told as well
            said, healthy = f"FAILED: {' '.join(str(error).split()) or type(error).__name__}", False
        typer.echo(f"{name}: {said}")
    raise typer.Exit(not healthy)


def _looks(model: str, port: int) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "versions", _versions
    yield "system", lambda: f"{platform.platform()}, Python {platform.python_version()}"
    yield "device", _device
    yield "threads", lambda: f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
    yield "memory", lambda: f"{environment.memory() / 2**30:.1f} GiB, the limit of a container included"
    yield "variables", _variables
    yield "compiled programs", _compiled
    yield "downloads", _downloads
    yield "temporary files", lambda: _writable(Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()))
    yield f"port {port}", lambda: _port(port)
    yield "a picture", lambda: _picture(model)


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package} none")
    return ", ".join(found)


def _device() -> str:
    from dalle_mini import device

    device.set_up()
    device.check_platforms()
    return device.name()


def _variables() -> str:
    """Proxies and what the libraries read, without passwords."""
    told = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
    told |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    shown = (
        f"{name}={'...' if SECRET.search(name) else re.sub(r'//[^/@]*@', '//...@', value)}"
        for name, value in sorted(told.items())
    )
    return " ".join(shown) or "none"


def _compiled() -> str:
    from dalle_mini import device

    folder = device.cache()
    return "not kept" if folder is None else f"{folder}, {len(list(folder.iterdir()))} files"


def _downloads() -> str:
    from huggingface_hub import constants

    return _writable(Path(constants.HF_HUB_CACHE))


def _writable(folder: Path) -> str:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return f"{folder} ({'can' if os.access(there, os.W_OK) else 'CANNOT'} be written)"


def _port(port: int) -> str:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return "free"
    except OSError as error:
        return f"taken or not allowed ({error.strerror})"


def _picture(model: str) -> str:
    import dalle_mini

    begun = time.monotonic()
    with dalle_mini.load(model) as pipeline:
        loaded = time.monotonic() - begun
        gallery = pipeline.generate("a tiny dog", num_candidates=1, seed=7)
    return f"loaded {model} in {loaded:.1f} s, drew in {gallery.seconds:.1f} s, score {gallery[0].score:.3f}, seed 7"
