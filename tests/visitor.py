"""What a visitor does on the page, for the tests that drive a browser."""

from typing import TYPE_CHECKING

from patience import eventually

if TYPE_CHECKING:
    from playwright.sync_api import FloatRect, FrameLocator, Locator, Page

    Tab = Page | FrameLocator

PROMPT = "What shall I draw?"


def ask(tab: "Tab", prompt: str) -> None:
    tab.get_by_label(PROMPT).fill(prompt)
    tab.get_by_label(PROMPT).press("Enter")


def wait_for_gallery(tab: "Tab", candidates: int) -> list[str]:
    """The pictures, best first, once the ranked gallery is there; equal ones are one."""
    tab.get_by_text(f"{candidates} drawn in").wait_for()
    return pictures(tab)


def pictures(tab: "Tab") -> list[str]:
    return [image.get_attribute("src") or "" for image in tab.locator("#stage .ranked .tile img").all()]


def box_of(part: "Locator") -> "FloatRect":
    """Where it is, in pixels of the page: Gradio fills parts again, and for a moment they are nowhere."""
    box = eventually(part.bounding_box)
    assert box
    return box


def open_settings(tab: "Tab") -> None:
    if not tab.get_by_placeholder("random").is_visible():
        tab.get_by_role("button", name="Settings").click()
    wait_for_settings(tab)


def wait_for_settings(tab: "Tab") -> None:
    """Gradio fills the fields of a panel once more, a frame after it has shown them."""
    tab.get_by_placeholder("random").wait_for()
    tab.locator("body").evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def set_candidates(tab: "Tab", candidates: float) -> None:
    set_number(tab, "num_candidates", candidates)


def set_number(tab: "Tab", setting: str, value: float) -> None:
    open_settings(tab)
    field = tab.locator(f"#set-{setting} input[type=number]")
    field.fill(f"{value:g}")
    field.press("Tab")


def set_seed(tab: "Tab", seed: str) -> None:
    open_settings(tab)
    tab.get_by_placeholder("random").fill(seed)


def drop(tab: "Page", name: str, data: str, *, on: str = "window") -> None:
    """A file, whose bytes are `data` as base64, upon a part of the page."""
    tab.get_by_role("button", name="Draw", exact=True).wait_for()
    tab.evaluate(
        "([name, data]) => { const files = new DataTransfer();"
        " const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0));"
        " files.items.add(new File([bytes], name, { type: 'image/png' }));"
        f" {on}.dispatchEvent(new DragEvent('drop', {{ dataTransfer: files, bubbles: true, cancelable: true }})); }}",
        [name, data],
    )
