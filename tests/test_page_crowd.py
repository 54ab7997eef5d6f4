"""Twenty tabs at once: who stops early stops, twice even; everybody else gets what they would get alone."""

from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import pytest
from patience import eventually
from PIL import Image
from visitor import pictures

import app
import dalle_mini

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TABS, CANDIDATES = 20, 4


@pytest.fixture
def tabs(chromium: "Browser") -> Iterator[list["Page"]]:
    context = chromium.new_context(reduced_motion="reduce")  # twenty that move are too much for one processor
    context.set_default_timeout(300_000)
    yield [context.new_page() for _ in range(TABS)]
    context.close()


def test_twenty_tabs_draw_and_stop_without_a_complaint(tabs: list["Page"], emoji: dalle_mini.Pipeline) -> None:
    said: list[str] = []
    with app.launch(emoji) as address:
        for seed, tab in enumerate(tabs):
            tab.on(
                "console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None
            )
            tab.on("pageerror", lambda error: said.append(str(error)))
            query = f"prompt=a+robot+under+a+rainbow&seed={seed}&num_candidates={CANDIDATES}"
            tab.goto(f"{address}?{query}", wait_until="commit")
        stopped = tabs[::4]
        for tab in stopped:
            tab.get_by_text("Drawing: a robot under a rainbow").or_(
                tab.get_by_text(f"{CANDIDATES} drawn in")
            ).wait_for()
            tab.keyboard.press("Escape")
            tab.keyboard.press("Escape")
            tab.get_by_text("Stopped.").or_(tab.get_by_text(f"{CANDIDATES} drawn in")).wait_for()
        for seed, tab in enumerate(tabs):
            if tab not in stopped:
                tab.get_by_text(f"{CANDIDATES} drawn in").wait_for()
                best = np.asarray(Image.open(BytesIO(b64decode(pictures(tab)[0].partition(",")[2]))))
                alone = emoji.generate("a robot under a rainbow", seed=seed, num_candidates=CANDIDATES)
                np.testing.assert_array_equal(best, alone[0].image)
        assert eventually(lambda: emoji.scheduler.slots_in_use == 0 and emoji.scheduler.waiting == 0)
    assert said == []
