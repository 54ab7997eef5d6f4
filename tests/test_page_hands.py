"""Every part of the page by touch on a phone, and by keyboard alone."""

import re
from typing import TYPE_CHECKING

import pytest
from visitor import PROMPT, box_of, pictures, wait_for_gallery, wait_for_settings

import app

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser
PHOTO = app.ASSETS / "images" / "preview.jpg"


def swipe(page: "Page", over: "Locator", way: int) -> None:
    """A finger's, to the left (-1) or right (1)."""
    box = box_of(over)
    y, middle = box["y"] + box["height"] / 2, box["x"] + box["width"] / 2
    finger = page.context.new_cdp_session(page)
    for kind, x in (("touchStart", middle - 40 * way), ("touchMove", middle), ("touchMove", middle + 40 * way)):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(600)  # a browser makes no click of a touch that follows sooner


def test_every_part_is_reached_by_touch(phone: "Page", address: str) -> None:
    phone.goto(f"{address}?prompt=a+cat+left+of+a+pizza&temperature=3")
    found = wait_for_gallery(phone, 9)
    phone.locator("#stage .tile").first.tap()
    dialog = phone.get_by_role("dialog")
    swipe(phone, dialog.locator(".frame"), -1)
    phone.wait_for_function("src => document.querySelector('dialog .frame img').src === src", arg=found[1])
    swipe(phone, dialog.locator(".frame"), 1)
    phone.wait_for_function("src => document.querySelector('dialog .frame img').src === src", arg=found[0])
    dialog.get_by_role("button", name="Close").tap()
    phone.locator("#tray summary").tap()
    phone.get_by_label(PROMPT).fill("")
    for word in ("three", "heart"):
        phone.locator("#tray").get_by_title(word, exact=True).tap()
    assert phone.get_by_label(PROMPT).input_value() == "three hearts"
    phone.get_by_role("button", name="Settings").tap()
    wait_for_settings(phone)
    phone.locator("#set-num_candidates input[type=number]").fill("2")
    phone.locator("#set-num_candidates input[type=number]").press("Tab")
    phone.get_by_role("button", name="Draw", exact=True).tap()
    hearts = wait_for_gallery(phone, 2)
    phone.locator("#history .thumb").nth(1).tap()
    assert pictures(phone) == found
    phone.locator("#history .thumb").nth(1).tap()  # what is looked at comes first
    assert pictures(phone) == hearts
    phone.locator("#inside summary").tap()
    phone.locator("#inside input[type=file]").set_input_files(PHOTO)
    phone.locator("#inside").get_by_text(re.compile(r"what 704 bits keep")).wait_for()
    line = phone.get_by_label("How much of the original is shown")
    line.scroll_into_view_if_needed()
    box = box_of(line)
    phone.touchscreen.tap(box["x"] + 22 + 0.25 * (box["width"] - 44), box["y"] + box["height"] / 2)
    assert 15 < int(line.input_value()) < 35
    phone.locator("#examples").get_by_role("button", name="a tiny dog").tap()
    phone.wait_for_function("() => document.querySelector('#stage .beside h2')?.textContent === 'a tiny dog'")
    phone.locator("#card summary").tap()
    phone.get_by_text("Nor do we recommend it").wait_for()


def test_every_part_is_reached_by_the_keyboard_in_the_order_of_the_screen(page: "Page", address: str) -> None:
    page.goto(address)
    page.get_by_label(PROMPT).focus()
    page.keyboard.type("a robot under a rainbow")
    page.keyboard.press("Enter")
    wait_for_gallery(page, 9)
    parts = "#bar, #examples, #stage, #history, #tray, #settings, #start, #inside, #card, footer"
    part = f"() => document.activeElement.closest('{parts}')?.id ?? ''"
    seen: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        where = page.evaluate(part)
        if where and where not in seen:
            seen.append(where)
    assert seen == ["bar", "examples", "stage", "history", "tray", "settings", "start", "inside", "card"]
    for name in ("tray", "start", "inside", "card"):
        page.locator(f"#{name} summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator(f"#{name} details").evaluate("each => each.open")
    page.locator("#settings button").first.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Tiling").focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("Tiling").input_value() == "x"
    page.locator("#history .thumb").first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_label("Tiling").input_value() == "", "as it was drawn"
