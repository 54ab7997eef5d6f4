"""What a process finds around it: proxies, an output that may not be UTF-8, `~`, limits of memory.

Contract: nothing here imports JAX or Gradio, and nothing that is found stops a process that could do without it.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def set_up(arguments: Sequence[str]) -> list[str]:
    """What a command does first. Gives its arguments with `~` spelled out where no shell has: --out=~/pictures."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # whatever it cannot print is printed as \\N{...} or \\u...
            stream.reconfigure(errors="backslashreplace")
    for name, value in os.environ.items():
        if name.lower().endswith("_proxy") and value.startswith("socks://"):  # as GNOME writes it, and nobody reads it
            os.environ[name] = "socks5://" + value.removeprefix("socks://")
    return [_spelled_out(argument) for argument in arguments]


def _spelled_out(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (os.path.expanduser(value) if value == "~" or value.startswith("~/") else value)


def shipped(name: str) -> Path:
    """app.py or assets: beside the package in a checkout, inside it where it was installed."""
    inside = Path(__file__).parent / name
    return inside if inside.exists() else Path(__file__).parents[1] / name


@contextmanager
def without_proxies() -> Iterator[None]:
    """For whoever talks to nobody, or to this machine alone. Other threads should not be downloading."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")}
    try:
        yield
    finally:
        os.environ |= hidden


def memory() -> int:
    """Bytes that this process may use: the machine's, or less where a container has a limit; 0 where nobody knows."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return min([machine, *_limits()])


def _limits() -> Iterator[int]:
    """Of the cgroup of this process and of those around it: version 2 and, where there are still some, version 1."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "" and path:
            top, name = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.strip("/")
        # Inside a container the path may be the host's, which is not there, and the top the container's own.
        for place in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no such file, or "max"
                yield int((place / name).read_text(encoding="ascii"))
            if place == top:
                break
