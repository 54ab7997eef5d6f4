"""What every test starts from: no network, no caches of the person who runs it, strict numerics, a real browser.

Settings are environment variables set before anything is imported, so that the processes a test starts have
them too. Warnings are errors; the named exceptions are in pyproject.toml.
"""

import gc
import os
import pkgutil
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import jaxtyping
import pytest
from patience import eventually

import dalle_mini
from dalle_mini import device

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Request, ViewportSize
    from slow_pipeline import Slow

    from dalle_mini import Pipeline
    from dalle_mini.training.emoji.world import World

ROOT = Path(__file__).parents[1]
REQUIRE_BROWSER = os.environ.get("REQUIRE_BROWSER", "") not in ("", "0")
CHROMIUM_ARGUMENTS = [  # quiet, and alone: whatever the page asks for is then the page's own doing
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.example.org 127.0.0.1",  # behind a proxy, see test_proxy.py
]

_scratch = tempfile.TemporaryDirectory(prefix="dalle-mini-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=f"{_scratch.name}/huggingface",
    XDG_CACHE_HOME=f"{_scratch.name}/cache",
    GRADIO_TEMP_DIR=f"{_scratch.name}/gradio",
    GRADIO_ANALYTICS_ENABLED="False",
    JAX_PLATFORMS=os.environ.get("JAX_PLATFORMS", "cpu"),
    JAX_NUMPY_RANK_PROMOTION="raise",
    # Shared by all runs on this machine: compiling again is most of a test run's time.
    JAX_COMPILATION_CACHE_DIR=str(ROOT / ".cache" / "jax"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
)
device.set_up()
# Every shape that a signature of ours promises is checked. The page has none: Gradio could not tell its generators.
SHAPED = [f"dalle_mini.{part.name}" for part in pkgutil.iter_modules(dalle_mini.__path__) if part.name != "web"]
jaxtyping.install_import_hook([*SHAPED, "vqgan", "clip_rerank"], "shapes.check")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what was imported stays, and a collector that goes through it again slows JAX's tracing


def pytest_unconfigure() -> None:
    _scratch.cleanup()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if REQUIRE_BROWSER and not any(item.get_closest_marker("browser") for item in items):
        raise pytest.UsageError("REQUIRE_BROWSER is set, but no test is marked `browser`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A skipped browser test is a failure where a browser is required, whatever skipped it."""
    report = yield
    if REQUIRE_BROWSER and report.skipped and item.get_closest_marker("browser"):
        report.outcome, report.longrepr = "failed", f"skipped, but REQUIRE_BROWSER is set: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _skip_without_accelerator(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import jax

        if jax.default_backend() == "cpu":
            pytest.skip("no accelerator (set JAX_PLATFORMS= to let JAX look for one)")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Path]:
    """The folder of a golden case, by its name."""

    def folder(case: str) -> Path:
        path = ROOT / "tests" / "golden" / case
        assert path.is_dir(), f"no golden case {case!r} in {path.parent}"
        return path

    return folder


@pytest.fixture(scope="session")
def emoji() -> Iterator["Pipeline"]:
    """The embedded model, loaded once for all tests."""
    pipeline = dalle_mini.load("emoji")
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="session")
def world(emoji: "Pipeline") -> "World":
    """Forty objects of the embedded model's world (data/README.md), at its resolution."""
    from dalle_mini.training import recipe
    from dalle_mini.training.emoji.atlas import Atlas
    from dalle_mini.training.emoji.world import World

    styles = recipe.load("emoji").world().styles
    return World(Atlas.load(ROOT / "tests" / "data" / "objects.npz", styles=styles), emoji.resolution)


@pytest.fixture(scope="session")
def all_objects() -> "World":
    """The embedded model's world without its pictures: what it says."""
    import numpy as np

    from dalle_mini.training import recipe
    from dalle_mini.training.emoji import objects
    from dalle_mini.training.emoji.atlas import Atlas
    from dalle_mini.training.emoji.world import GRID, World

    config = recipe.load("emoji").world()
    known = objects.load(config.first)
    return World(Atlas(np.zeros((len(known), len(config.styles), 1, 1, 4), np.uint8), known, config.styles), GRID)


@pytest.fixture(scope="module")
def address(emoji: "Pipeline") -> Iterator[str]:
    """Of a page that the embedded model serves."""
    import app

    with app.launch(emoji) as found:
        yield found


@pytest.fixture(scope="module")
def slow(emoji: "Pipeline") -> "Slow":
    from slow_pipeline import Slow

    return Slow(emoji)


@pytest.fixture(scope="module")
def slow_address(slow: "Slow") -> Iterator[str]:
    """Of a page of its own."""
    import app

    with app.launch(slow) as address:
        yield address


@pytest.fixture
def crowded(emoji: "Pipeline", monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every slot is taken and two requests are in line; nothing moves until the test is over."""
    engine = emoji.scheduler.engines[0]
    decode, gate = engine.decode, threading.Event()
    monkeypatch.setattr(engine, "decode", lambda: decode() if gate.wait(0.05) else None)
    crowd = [emoji.stream("a crowd", seed=0, num_candidates=16, visitor="crowd") for _ in range(engine.slots // 16 + 2)]
    for visit in crowd:
        next(visit)
    assert eventually(lambda: emoji.scheduler.waiting == 2)
    yield
    for visit in crowd:
        visit.close()
    gate.set()
    assert eventually(lambda: emoji.scheduler.slots_in_use == emoji.scheduler.waiting == 0)


@pytest.fixture(scope="module")
def unoptimised() -> Iterator[None]:
    """XLA does not optimise, here and in processes: nearly all the time of runs this small is compiling."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()  # others compile the same programs, and compare bits with another process


@pytest.fixture
def no_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams tell only what has happened, however long a row takes on a busy machine."""
    for name in ("FIRST_HEARTBEAT", "HEARTBEAT", "LINE_HEARTBEAT"):
        monkeypatch.setattr(f"dalle_mini.serving.scheduler.{name}", 60.0)
    monkeypatch.setattr("dalle_mini.pipeline.HEARTBEAT", 60.0)


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def desk(chromium: "Browser") -> Iterator["BrowserContext"]:
    yield from _profile(chromium, width=1280, height=900)


@pytest.fixture(scope="session")
def hand(chromium: "Browser") -> Iterator["BrowserContext"]:
    yield from _profile(chromium, width=360, height=740, has_touch=True)


def _profile(browser: "Browser", *, width: int, height: int, has_touch: bool = False) -> Iterator["BrowserContext"]:
    """One for all tests. Its first page stays open and scripts stay in memory: the next is there in half the time."""
    size: ViewportSize = {"width": width, "height": height}
    context = browser.new_context(viewport=size, has_touch=has_touch, accept_downloads=True)
    context.set_default_timeout(120_000)  # a first drawing waits for a compiler, perhaps on a busy machine
    context.new_page()
    yield context
    context.close()


@pytest.fixture
def requested_hosts() -> set[str]:
    """The hosts that the pages of this test asked for anything, web sockets included."""
    return set()


@pytest.fixture
def page(desk: "BrowserContext", requested_hosts: set[str]) -> Iterator["Page"]:
    """A desktop-sized tab."""
    yield from _tab(desk, requested_hosts)


@pytest.fixture
def phone(hand: "BrowserContext", requested_hosts: set[str]) -> Iterator["Page"]:
    """A tab as narrow as a phone, which is touched."""
    yield from _tab(hand, requested_hosts)


def _tab(context: "BrowserContext", hosts: set[str]) -> Iterator["Page"]:
    """Nothing of it is left to the next test but the cache."""
    from playwright.sync_api import Error

    tab = context.new_page()

    def note(url: str) -> None:
        if host := urlsplit(url).hostname:  # none in data: and blob:
            hosts.add(host)

    def heard(request: "Request") -> None:
        note(request.url)

    context.on("request", heard)
    tab.on("websocket", lambda socket: note(socket.url))
    yield tab
    context.remove_listener("request", heard)
    kept, *others = context.pages
    for each in others:
        each.close()
    with suppress(Error):  # a test may have cut the server off
        kept.goto(urljoin(tab.url, "/healthz"))
        kept.evaluate("localStorage.clear()")
