"""What axe-core finds on the page in each of its states: nothing. And what the page costs whoever opens it."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from slow_pipeline import Slow
from visitor import ask, open_settings, wait_for_gallery

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
BYTES, REQUESTS, SHIFT = 300_000, 50, 0.1


@pytest.fixture(params=["light", "dark"])
def tab(chromium: "Browser", request: pytest.FixtureRequest) -> Iterator["Page"]:
    context = chromium.new_context(color_scheme=request.param, reduced_motion="reduce")
    yield context.new_page()
    context.close()


def complaints(tab: "Page") -> list[Any]:
    found = Axe().run(tab).response["violations"]
    return [(each["id"], [(node["target"], node["failureSummary"]) for node in each["nodes"]]) for each in found]


def test_axe_finds_nothing_before_while_and_after_drawing_opened_and_with_all_panels_open(
    tab: "Page", slow_address: str, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(slow, "pause", lambda: gate.wait(1))
    tab.goto(slow_address)
    tab.get_by_role("button", name="Draw", exact=True).wait_for()
    tab.get_by_text("Drawn before by this model").wait_for()
    assert complaints(tab) == [], "before"
    ask(tab, "a robot under a rainbow")
    tab.locator("#stage .waiting img").first.wait_for()
    assert complaints(tab) == [], "while drawing"
    gate.set()
    wait_for_gallery(tab, 9)
    open_settings(tab)
    tab.locator("#tray summary").click()
    tab.locator("#card summary").click()
    assert complaints(tab) == [], "after"
    tab.locator("#stage .tile").first.click()
    assert complaints(tab) == [], "opened"


@pytest.fixture
def fresh(chromium: "Browser") -> Iterator["Page"]:
    """A page of somebody who has never been here."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    yield page
    page.close()


def test_opening_the_page_costs_little_and_moves_nothing(fresh: "Page", slow_address: str) -> None:
    """At load; and while it draws nothing moves at all."""
    page = fresh
    page.add_init_script(
        "window.moved = 0; new PerformanceObserver((list) => { for (const each of list.getEntries())"
        " if (!each.hadRecentInput) moved += each.value; }).observe({ type: 'layout-shift', buffered: true });"
    )
    loaded: list[float] = []  # bytes of each request
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.on(
        "Network.loadingFinished",
        lambda event: loaded.append(event["encodedDataLength"]) if event["encodedDataLength"] else None,
    )
    page.goto(slow_address)
    page.get_by_text("Drawn before by this model").wait_for()
    page.wait_for_timeout(500)
    assert sum(loaded) < BYTES
    assert len(loaded) <= REQUESTS
    at_load = page.evaluate("moved")
    assert at_load < SHIFT
    ask(page, "a tiny dog")
    wait_for_gallery(page, 9)
    page.wait_for_timeout(500)
    assert page.evaluate("moved") - at_load < 0.005
