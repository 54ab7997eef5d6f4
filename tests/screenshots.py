"""Pictures of the page in all its states, wide and on a phone, light and dark: `make screenshots`, then look at each.

assets/images/page.png, of the README, is light-wide-gallery.png of these.
"""

import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright
from slow_pipeline import Slow
from visitor import PROMPT, ask, open_settings, wait_for_gallery

import app
import dalle_mini
from dalle_mini import device

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIZES = {"wide": (1440, 900), "phone": (360, 740)}


def states(page: "Page", slow: Slow, shot: "Shot") -> None:
    page.get_by_text("Drawn before by this model").wait_for()
    shot(page, "first")
    page.get_by_label(PROMPT).press_sequentially("a lawnmower on a horse")
    page.get_by_text("I have never seen").wait_for()
    shot(page, "unknown")
    gate = threading.Event()
    slow.pause = lambda: gate.wait(1)
    ask(page, "a robot under a rainbow")
    shot(page, "asked")
    page.locator("#stage .waiting img").first.wait_for()
    page.wait_for_timeout(2500)
    shot(page, "drawing")
    gate.set()
    wait_for_gallery(page, 9)
    shot(page, "gallery")
    page.locator("#stage .tile").first.click()
    shot(page, "opened")
    page.keyboard.press("Escape")
    page.locator("#stage .ranked").get_by_role("button", name="Complete from here").click()
    page.get_by_text("rows are kept").wait_for()
    shot(page, "start")
    page.locator("#inside summary").click()
    page.locator("#inside input[type=file]").set_input_files(app.ASSETS / "images" / "preview.jpg")
    page.locator("#inside .seen").wait_for()
    page.locator("#inside summary").scroll_into_view_if_needed()
    shot(page, "inside")
    page.locator("#from").click()
    open_settings(page)
    page.locator("#tray summary").click()
    page.locator("#card summary").click()
    page.get_by_placeholder("random").fill("seven")
    ask(page, "a robot under a rainbow")
    page.get_by_text("Seed must be").wait_for()
    shot(page, "all", full_page=True)


class Shot:
    """Takes a picture of a state, under the name of its kind of tab."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind

    def __call__(self, page: "Page", state: str, *, full_page: bool = False) -> None:
        page.screenshot(path=self._folder / f"{self._kind}-{state}.png", full_page=full_page)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    device.set_up()
    slow = Slow(dalle_mini.load("emoji"))
    with app.launch(slow) as address, sync_playwright() as playwright:  # type: ignore[arg-type]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for name, (width, height) in SIZES.items():
                context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
                page = context.new_page()
                page.goto(address)
                states(page, slow, Shot(folder, f"{scheme}-{name}"))
                context.close()
        page = browser.new_page(viewport={"width": 700, "height": 900})
        page.set_content((app.ASSETS / "embed.html").read_text().replace("http://127.0.0.1:7860/", address))
        page.frame_locator("#frame").get_by_role("button", name="Draw", exact=True).wait_for()
        page.locator("dalle-mini").scroll_into_view_if_needed()
        wait_for_gallery(page.frame_locator("dalle-mini iframe"), 9)
        page.locator("#frame").scroll_into_view_if_needed()  # a browser paints no frame that is out of sight
        page.wait_for_timeout(500)
        Shot(folder, "light-frame")(page, "first", full_page=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
