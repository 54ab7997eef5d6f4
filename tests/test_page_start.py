"""On the page: more like this, complete from here, start from a picture, look inside, tiling, the best of more."""

import json
import re
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from visitor import PROMPT, ask, box_of, drop, pictures, set_candidates, set_number, set_seed, wait_for_gallery

import dalle_mini
from dalle_mini.gallery import read_metadata
from dalle_mini.start import FREE, Start

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def settings_in(picture: str) -> dict[str, Any]:
    """Of a data URL: what its PNG says."""
    found: dict[str, Any] = json.loads(read_metadata(BytesIO(b64decode(picture.partition(",")[2])))["settings"])
    return found


def given(picture: str) -> np.ndarray:
    return np.array(Start.from_dict(settings_in(picture)["start"]).codes)


def next_gallery(page: "Page", candidates: int) -> list[str]:
    page.get_by_text("Drawing:").wait_for()
    return wait_for_gallery(page, candidates)


def test_more_like_this_draws_half_of_its_codes_again_and_the_next_prompt_starts_from_nothing(
    page: "Page", address: str
) -> None:
    page.goto(address)
    ask(page, "a cat left of a pizza")
    wait_for_gallery(page, 9)
    page.locator("#stage .tile").last.click()
    page.get_by_role("dialog").get_by_role("button", name="More like this").click()
    varied = next_gallery(page, 9)
    assert Start.from_dict(settings_in(varied[0])["start"]).strength == 0.5
    assert not page.locator("#from").is_visible()
    ask(page, "a tiny dog")
    assert "start" not in settings_in(next_gallery(page, 9)[0])
    page.locator("#history .thumb").nth(1).click()  # the newest is first
    page.locator("#from").wait_for()
    assert pictures(page) == varied
    page.get_by_role("button", name="Draw", exact=True).click()
    assert next_gallery(page, 9) == varied, "as the field, the seed and the settings say"


def test_complete_from_here_keeps_the_rows_above_the_line_that_the_keyboard_moves(page: "Page", address: str) -> None:
    page.goto(address)
    set_candidates(page, 1)
    ask(page, "a cat left of a pizza")
    wait_for_gallery(page, 1)
    page.locator("#stage .beside").get_by_role("button", name="Complete from here").focus()
    page.keyboard.press("Enter")
    page.get_by_text("The first 4 of 8 rows are kept").wait_for()
    assert page.evaluate("() => document.activeElement.type") == "range", "the line has the focus"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.get_by_text("The first 3 of 8 rows are kept").wait_for()
    page.get_by_role("button", name="Draw", exact=True).click()
    codes = given(next_gallery(page, 1)[0])
    assert (codes != FREE).nonzero()[0].tolist() == list(range(8 * 3))
    page.reload()
    page.locator("#from").wait_for()
    page.get_by_text("The first 3 of 8 rows are kept").wait_for(state="attached")
    page.locator("#from").click()
    assert not page.locator("#from").is_visible()
    ask(page, "a tiny dog")
    assert "start" not in settings_in(next_gallery(page, 1)[0])


def test_a_picture_of_ones_own_is_chosen_by_touch_its_line_moved_and_completed(
    phone: "Page", address: str, emoji: dalle_mini.Pipeline, tmp_path: Path
) -> None:
    own = emoji.generate("three hearts", num_candidates=1, seed=1)[0].image
    own.save(tmp_path / "own.png")
    phone.goto(address)
    set_candidates(phone, 1)
    phone.locator("#start summary").tap()
    phone.locator("#start input[type=file]").set_input_files(tmp_path / "own.png")
    phone.get_by_text("The first 4 of 8 rows are kept").wait_for()
    line = box_of(phone.locator("#start input[type=range]"))
    x, top, height = line["x"] + line["width"] / 2, line["y"] + 22, line["height"] - 44
    phone.touchscreen.tap(x, top + height * 6 / 8)
    phone.get_by_text("The first 6 of 8 rows are kept").wait_for()
    ask(phone, "three hearts")
    codes = given(next_gallery(phone, 1)[0])
    assert (codes != FREE).sum() == 48
    np.testing.assert_array_equal(codes[:48], emoji.reconstruct(own).codes[:48])


def test_what_is_no_picture_is_told_and_what_was_there_stays(page: "Page", address: str) -> None:
    page.goto(address)
    page.get_by_text("Drawn before by this model").wait_for()
    page.get_by_label(PROMPT).fill("a tiny dog")
    for where in ("document.body", "document.getElementById('inside')"):
        drop(page, "notes.png", b64encode(b"no picture").decode(), on=where)
        page.get_by_role("alert").filter(has_text="notes.png is no picture that this browser can read").wait_for()
        assert not page.locator("#from").is_visible()
    assert page.get_by_label(PROMPT).input_value() == "a tiny dog"


def test_look_inside_shows_what_the_codes_keep_beside_the_picture(
    page: "Page", address: str, emoji: dalle_mini.Pipeline, tmp_path: Path
) -> None:
    image = emoji.generate("a robot under a rainbow", num_candidates=1, seed=1)[0].image
    image.save(tmp_path / "robot.png")
    page.goto(address)
    page.get_by_text("Drawn before by this model").wait_for()
    drop(
        page,
        "robot.png",
        b64encode((tmp_path / "robot.png").read_bytes()).decode(),
        on="document.getElementById('inside')",
    )
    shown = page.locator("#inside")
    found = emoji.reconstruct(image)
    shown.get_by_text(f"what 704 bits keep of 98,304: PSNR {found.psnr:.1f} dB, SSIM").wait_for()
    for name, picture in (("before", found.original), ("after", found.picture), ("codes", found.grid())):
        data = (shown.locator(f".{name}").get_attribute("src") or "").partition(",")[2]
        np.testing.assert_array_equal(
            np.asarray(Image.open(BytesIO(b64decode(data))).convert("RGB")), np.asarray(picture)
        )
    shown.get_by_label("How much of the original is shown").press("Home")
    assert shown.locator(".before").evaluate("each => each.style.clipPath").startswith("inset(0px 100%")


def test_tiling_is_asked_for_in_the_settings_and_looked_at_three_by_three(page: "Page", address: str) -> None:
    page.goto(address)
    set_candidates(page, 1)
    page.get_by_label("Tiling").select_option("all around")
    page.locator("#set-negative_prompt textarea").fill("a white background")
    ask(page, "three hearts")
    (found,) = wait_for_gallery(page, 1)
    settings = settings_in(found)
    assert (settings["seamless"], settings["negative_prompt"]) == ("both", "a white background")
    page.locator("#stage .tile").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Tile it").click()
    style = "each => [getComputedStyle(each).backgroundSize, getComputedStyle(each.querySelector('img')).visibility]"
    assert dialog.locator(".frame").evaluate(style) == ["33.34% 33.34%", "hidden"]
    dialog.get_by_role("button", name="Crisp").click()
    assert dialog.locator(".frame").evaluate("each => getComputedStyle(each).imageRendering") == "pixelated"


def test_the_best_of_more_are_shown_and_all_that_is_shown_is_downloaded(page: "Page", address: str) -> None:
    page.goto(address)
    set_number(page, "show", 8)
    set_seed(page, "3")
    ask(page, "a cat left of a pizza")
    found = wait_for_gallery(page, 9)
    assert page.get_by_text("The best 8 are shown.").is_visible()
    assert 1 < len(found) <= 8
    downloads: list[str] = []
    page.on("download", lambda download: downloads.append(download.suggested_filename))
    page.get_by_role("button", name="Download all").click()
    page.wait_for_timeout(1000)
    assert len(set(downloads)) == len(found)


def test_a_start_that_cannot_be_is_refused_at_its_panel(page: "Page", address: str, requested_hosts: set[str]) -> None:
    for start, told in (
        ("none", r"must be what the page makes of a picture"),
        ('{"from": [1], "picture": "http://example.org/x.png"}', r"must be a picture or 64 codes"),
        ('{"from": [1, 2]}', r"must be a picture or 64 codes"),
        ('{"codes": "x", "sha256": "y"}', r"must be codes as a PNG has them"),
        ("[1]", r"must be what the page makes of a picture"),
        ('{"from": "/etc/passwd"}', r"must be a data URL or base64"),
    ):
        page.goto(f"{address}?prompt=a%20dog&start={start}")
        page.locator("#start .refused").filter(has_text=re.compile(told)).wait_for()
    assert requested_hosts == {"127.0.0.1"}


def test_a_choice_that_there_is_not_is_refused_at_its_field(page: "Page", address: str) -> None:
    page.goto(f"{address}?prompt=a%20dog&seamless=z")
    page.locator("#set-seamless .refused").filter(has_text="Tiling must be x, y or both").wait_for()
