"""The page in a real browser: by mouse, by touch and by keyboard, wide and on a phone.

`slow` is the embedded model with a pause after every event, so that what happens while it draws can be watched;
`crowded` holds the engine still with a crowd in front of it, so that what happens in line can be.
"""

import io
import json
import re
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from patience import eventually
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from slow_pipeline import Slow
from visitor import (
    PROMPT,
    ask,
    box_of,
    drop,
    open_settings,
    pictures,
    set_candidates,
    set_number,
    set_seed,
    wait_for_gallery,
)

import app
import dalle_mini
from dalle_mini.gallery import read_metadata
from dalle_mini.notes import Note
from dalle_mini.web import visits
from dalle_mini.web.page.bar import LANGUAGES
from dalle_mini.web.page.words import WORDS

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.browser

CARD_LINKS = (  # of the card that the project started from
    "https://wandb.ai/dalle-mini/dalle-mini/reports/DALL-E-Mini-Explained-with-Demo--Vmlldzo4NjIxODA",
    "https://github.com/openai/DALL-E/edit/master/model_card.md",
    "https://arxiv.org/abs/2102.12092",
    "dall_e/encoder.py",
    "dall_e/decoder.py",
    "https://ai.google.com/research/ConceptualCaptions",
    "https://www.aclweb.org/anthology/P18-1238/",
    "http://projects.dfki.uni-kl.de/yfcc100m/",
)


@pytest.fixture
def quiet(page: "Page") -> Iterator[list[str]]:
    """What the console of the page complains of: nothing."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield said
    assert said == []


@pytest.fixture
def held(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Drawings of `slow` wait at every event until this is set."""
    gate = threading.Event()
    monkeypatch.setattr(slow, "pause", lambda: gate.wait(1))
    yield gate
    gate.set()


# Draw


def test_prompt_becomes_painted_rows_then_a_ranked_gallery(
    page: "Page", slow_address: str, held: threading.Event, requested_hosts: set[str], quiet: list[str]
) -> None:
    page.goto(slow_address)
    set_seed(page, "1")
    ask(page, "a cat left of a pizza")
    page.get_by_text(re.compile(r"row \d of 8")).wait_for()
    page.locator("#stage .waiting img").first.wait_for()
    assert page.locator("#stage .waiting").count() == 9
    held.set()
    found = wait_for_gallery(page, 9)
    assert len(set(found)) == len(found), "equal pictures are one tile"
    shown = page.locator("#stage .ranked .tile")
    same = [re.findall(r"×(\d)", text) for text in shown.all_inner_texts()]
    assert sum(int(number[0]) if number else 1 for number in same) == 9
    alts = [image.get_attribute("alt") or "" for image in shown.locator("img").all()]
    said = [re.fullmatch(r"a cat left of a pizza, picture (\d) of (\d) match (\d+) %", alt) for alt in alts]
    ranks, numbers, matches = zip(*(match.groups() for match in said if match), strict=True)
    assert ranks == tuple(str(rank) for rank in range(1, len(found) + 1))
    assert set(numbers) == {str(len(found))}
    assert list(matches) == sorted(matches, key=int, reverse=True)
    assert page.get_by_text(re.compile(r"^match \d+ % · Seed \d+$")).count() == 1
    best, other = (box_of(shown.nth(i)) for i in (0, 1))
    assert best["width"] > 3 * other["width"]
    assert re.search(r"seconds per image \d+\.\d\d", page.locator("#about").inner_text())
    assert requested_hosts == {"127.0.0.1"}


@pytest.mark.parametrize("milliseconds", [80, 150, 250, 400])
def test_a_double_click_draws_once_and_stops_nothing(
    page: "Page", slow_address: str, slow: Slow, quiet: list[str], milliseconds: int
) -> None:
    page.goto(slow_address)
    before, early = slow.begun, slow.closed_early
    page.get_by_label(PROMPT).fill("a tiny dog")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.wait_for_timeout(milliseconds)
    page.get_by_role("button", name="Draw", exact=True).click()
    wait_for_gallery(page, 9)
    assert (slow.begun, slow.closed_early) == (before + 1, early)


def test_a_tap_on_a_phone_shows_something_at_once_and_the_best_picture_is_in_sight(
    phone: "Page", slow_address: str, held: threading.Event
) -> None:
    phone.goto(slow_address)
    phone.get_by_label(PROMPT).fill("a robot under a rainbow")
    phone.route("**/queue/join*", lambda route: None)  # the server hears of nothing
    phone.get_by_role("button", name="Draw", exact=True).tap()
    phone.get_by_text("Drawing: a robot under a rainbow").wait_for(timeout=1000)
    for part in (phone.locator("#stage .waiting").first, phone.get_by_role("button", name="Stop")):
        box = box_of(part)
        assert box["y"] + box["height"] < 740
    phone.unroute("**/queue/join*")
    phone.reload()
    held.set()
    ask(phone, "a robot under a rainbow")
    wait_for_gallery(phone, 9)
    box = box_of(phone.locator("#stage .tile").first)
    assert box["y"] + box["height"] < 740


def test_stop_ends_the_drawing_brings_the_gallery_before_back_and_the_next_request_works(
    page: "Page", slow_address: str, slow: Slow, held: threading.Event, quiet: list[str]
) -> None:
    page.goto(slow_address)
    set_candidates(page, 1)
    held.set()
    ask(page, "a tiny dog")
    before = wait_for_gallery(page, 1)
    early = slow.closed_early
    held.clear()
    ask(page, "a big strawberry")
    page.get_by_text(re.compile(r"row \d of 8")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert pictures(page) == before
    assert eventually(lambda: slow.closed_early == early + 1)
    held.set()
    ask(page, "a big strawberry")
    assert wait_for_gallery(page, 1) != before


def test_stop_before_the_server_has_heard_of_it_draws_nothing(
    page: "Page", slow_address: str, slow: Slow, quiet: list[str]
) -> None:
    page.goto(slow_address)
    page.get_by_text("Drawn before by this model").wait_for()
    page.wait_for_timeout(500)
    on_the_way: list[Route] = []
    page.route("**/queue/join*", lambda route: on_the_way.append(route))
    before = slow.begun
    with page.expect_request("**/queue/join*"):
        ask(page, "a tiny dog")
    with page.expect_response("**/stop"):
        page.keyboard.press("Escape")
    page.get_by_text("Stopped.").wait_for()
    on_the_way[0].continue_()
    page.wait_for_timeout(1500)
    assert slow.begun == before
    assert page.get_by_text("Stopped.").is_visible()


def test_another_prompt_replaces_what_is_being_drawn(
    page: "Page", slow_address: str, slow: Slow, held: threading.Event, quiet: list[str]
) -> None:
    page.goto(slow_address)
    set_candidates(page, 1)
    early = slow.closed_early
    ask(page, "a tiny dog")
    page.get_by_text(re.compile(r"row \d of 8")).wait_for()
    ask(page, "a big strawberry")
    assert eventually(lambda: slow.closed_early == early + 1)
    held.set()
    wait_for_gallery(page, 1)
    assert page.locator("#stage .beside h2").inner_text() == "a big strawberry"
    page.wait_for_timeout(500)
    assert page.locator("#stage .beside h2").inner_text() == "a big strawberry", "nothing of the other comes late"


def test_enter_control_enter_and_an_example_draw(page: "Page", address: str, quiet: list[str]) -> None:
    page.goto(address)
    set_candidates(page, 1)
    page.get_by_label(PROMPT).fill("a tiny dog")
    page.get_by_label(PROMPT).press("Control+Enter")
    dog = wait_for_gallery(page, 1)
    page.locator("#examples").get_by_role("button", name="a glossy dragon").click()
    page.wait_for_function("() => document.querySelector('#stage .beside h2')?.textContent === 'a glossy dragon'")
    assert pictures(page) != dog
    assert page.get_by_label(PROMPT).input_value() == "a glossy dragon"


def test_opened_picture_is_a_dialog_that_the_keyboard_walks_and_that_gives_the_focus_back(
    page: "Page", address: str, quiet: list[str]
) -> None:
    page.goto(f"{address}?prompt=a+robot+under+a+rainbow&temperature=3")  # at which no picture is like another
    found = wait_for_gallery(page, 9)
    page.locator("#stage .tile").first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="a robot under a rainbow")
    dialog.wait_for()
    assert dialog.get_by_text(re.compile(rf"^1 of {len(found)} · match \d+ % · Seed \d+")).is_visible()
    page.keyboard.press("ArrowRight")
    assert dialog.locator("img").get_attribute("src") == found[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert dialog.locator("img").get_attribute("src") == found[-1]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("() => document.activeElement.classList.contains('tile')")


def test_downloaded_picture_says_how_it_was_made(page: "Page", address: str, tmp_path: Path) -> None:
    page.goto(address)
    set_seed(page, "7")
    ask(page, app.EXAMPLES[0])
    wait_for_gallery(page, 9)
    page.locator("#stage .tile").first.click()
    with page.expect_download() as download:
        page.get_by_role("dialog").get_by_role("button", name="Download").click()
    assert re.fullmatch(r"[\w-]+-seed7-01\.png", download.value.suggested_filename)
    download.value.save_as(tmp_path / "best.png")
    text = read_metadata(tmp_path / "best.png")
    assert (text["prompt"], text["seed"], text["model"]) == (app.EXAMPLES[0], "7", "emoji")
    assert dalle_mini.SamplingParams(**json.loads(text["settings"])).seed == 7


def test_kept_seed_draws_the_same_pictures_again_and_draw_again_others(page: "Page", slow_address: str) -> None:
    page.goto(slow_address)
    set_candidates(page, 4)
    ask(page, "a robot under a rainbow")
    found, first = wait_for_gallery(page, 4), page.url
    page.get_by_role("button", name="Keep the seed").click()
    page.wait_for_function("() => document.querySelector('[placeholder=random]').value !== ''")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text("Drawing:").wait_for()
    assert wait_for_gallery(page, 4) == found
    assert page.url == first
    page.get_by_role("button", name="Draw again").click()
    page.get_by_text("Drawing:").wait_for()
    wait_for_gallery(page, 4)
    assert page.url != first


# In line


def test_place_in_line_is_shown_and_stop_leaves_the_line(
    page: "Page", address: str, emoji: dalle_mini.Pipeline, crowded: None, quiet: list[str]
) -> None:
    page.goto(address)
    ask(page, "a tiny dog")
    page.get_by_text("Place 2 in line").wait_for()
    page.get_by_label(PROMPT).press("Enter")  # asks for the same, which is here
    page.wait_for_timeout(500)
    assert page.get_by_text("Place 2 in line").is_visible()
    assert emoji.scheduler.waiting == 3
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert eventually(lambda: emoji.scheduler.waiting == 2)


def test_closed_tab_leaves_the_line(
    page: "Page", address: str, emoji: dalle_mini.Pipeline, crowded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "LEFT", 0.5)
    page.goto(address)
    ask(page, "a tiny dog")
    page.get_by_text("Place 2 in line").wait_for()
    page.close()
    assert eventually(lambda: emoji.scheduler.waiting == 2)


def test_closed_tab_frees_its_slots(
    page: "Page", slow_address: str, slow: Slow, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "LEFT", 0.5)
    before = slow.closed_early
    page.goto(slow_address)
    ask(page, "a tiny dog")
    page.get_by_text(re.compile(r"row \d of 8")).wait_for()
    page.close()
    assert eventually(lambda: slow.closed_early == before + 1)
    assert eventually(lambda: slow.pipeline.scheduler.slots_in_use == 0)


# Settings


def test_a_refused_value_is_told_at_its_field_in_the_words_of_its_label(
    page: "Page", address: str, quiet: list[str]
) -> None:
    page.goto(address)
    ask(page, "  ")
    page.get_by_role("alert").filter(has_text="Tell me first what I shall draw.").wait_for()
    set_candidates(page, 1)
    for seed in ("-1", "seven", "<img src=x>"):
        set_seed(page, seed)
        ask(page, "a tiny dog")
        told = page.get_by_role("alert").filter(has_text=re.compile(rf"^Seed must be a .*, got '?{re.escape(seed)}"))
        told.wait_for()
        assert page.evaluate("() => document.activeElement.placeholder") == "random"
        below, field = box_of(told), box_of(page.get_by_placeholder("random"))
        assert 0 <= below["y"] - field["y"] - field["height"] < 40
    set_seed(page, "")
    ask(page, "a tiny dog")
    assert len(wait_for_gallery(page, 1)) == 1
    assert page.get_by_role("alert").count() == 0


def test_sliders_show_their_ends_and_what_cannot_be_is_not_sent(page: "Page", address: str) -> None:
    page.goto(address)
    for setting, value, sent in (("num_candidates", 99, 16), ("top_p", 7, 1), ("temperature", 0, 0.05)):
        set_number(page, setting, value)
        assert float(page.locator(f"#set-{setting} input[type=number]").input_value()) == sent
    page.locator("#set-top_p").get_by_label("Reset").click()
    open_settings(page)
    assert page.locator("#set-num_candidates").get_by_text("16", exact=True).is_visible()


def test_odd_prompts_are_drawn_and_shown_as_text_and_a_long_one_is_cut_and_said_so(
    page: "Page", address: str, quiet: list[str]
) -> None:
    page.goto(address)
    set_candidates(page, 1)
    for odd in ("a cat\x00\x07\x1b[31m", "<img src=x onerror=alert(1)> {{value}} ${alert(1)} `", "قطة بجانب بيتزا"):
        ask(page, odd)
        page.get_by_text("1 drawn in").wait_for()
        page.wait_for_function("text => document.querySelector('#stage .beside h2')?.textContent === text", arg=odd)
    ask(page, "a cat and " * 1000)
    page.get_by_text("is longer than the model reads and was cut to").wait_for()


# What is known, the card, languages, embedding


def test_unknown_words_are_told_while_somebody_types_and_the_tray_makes_sentences(page: "Page", address: str) -> None:
    page.goto(address)
    page.get_by_text("Drawn before by this model").wait_for()
    page.get_by_label(PROMPT).press_sequentially("a lawnmower")
    page.get_by_text("I have never seen: lawnmower").wait_for()
    page.locator("#tray summary").click()
    tray = page.locator("#tray")
    page.get_by_label(PROMPT).fill("")
    for word in ("cat", "left of", "two", "mouse", "on a pink background"):
        tray.get_by_title(word, exact=True).click()
    assert page.get_by_label(PROMPT).input_value() == "a cat left of two mice on a pink background"
    page.get_by_text("Drawn before by this model").wait_for()
    tray.get_by_title("avocado", exact=True).click()
    assert page.get_by_label(PROMPT).input_value() == "an avocado", "a new sentence"


def test_what_is_told_of_a_prompt_too_late_does_not_take_the_place_of_its_drawing(page: "Page", address: str) -> None:
    held: list[Route] = []

    def hold(route: "Route") -> None:
        """What asks for the words of the prompt, and for nothing else."""
        typed = (route.request.post_data_json or {}).get("data") == ["a lawnmower"]
        held.append(route) if typed else route.continue_()

    page.goto(address)
    set_candidates(page, 1)
    page.route(re.compile(r"/gradio_api/"), hold)
    page.get_by_label(PROMPT).fill("a lawnmower")
    while not held:
        page.wait_for_timeout(50)
    page.get_by_label(PROMPT).press("Enter")
    wait_for_gallery(page, 1)
    with page.expect_response(lambda response: response.request == held[0].request):
        held[0].continue_()
    page.wait_for_timeout(300)
    assert page.get_by_text("1 drawn in").is_visible()
    page.get_by_label(PROMPT).press_sequentially("s")
    page.get_by_text("I have never seen: lawnmowers").wait_for()


def test_surprise_draws_something_known(page: "Page", address: str, emoji: dalle_mini.Pipeline) -> None:
    page.goto(address)
    page.get_by_text("Drawn before by this model").wait_for()
    page.get_by_role("button", name="Surprise me").click()
    wait_for_gallery(page, 9)
    assert emoji.vocabulary
    assert emoji.vocabulary.unknown(page.get_by_label(PROMPT).input_value()) == []


def test_every_language_says_everything() -> None:
    english = WORDS["en"]
    assert set(WORDS) == set(LANGUAGES)
    for language, words in WORDS.items():
        assert words.keys() == english.keys(), language
        for name, text in words.items():
            assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", english[name])), (language, name)


@pytest.mark.parametrize(
    ("asked", "lang", "draw"), [("fr", "fr", "Dessiner"), ("ja", "ja", "描く"), ("it", "en", "Draw")]
)
def test_page_speaks_the_language_that_it_says_it_does(
    page: "Page", address: str, asked: str, lang: str, draw: str
) -> None:
    page.goto(f"{address}?lang={asked}")
    page.get_by_role("button", name=draw, exact=True).wait_for()
    page.get_by_text(WORDS[lang]["idle"]).wait_for()
    assert page.locator("#settings").inner_text().startswith(WORDS[lang]["settings"])
    assert page.evaluate("() => document.documentElement.lang") == lang


def test_notes_are_said_in_the_language_of_the_page(page: "Page", address: str) -> None:
    unknown = Note("unknown", unknown=[("taxi", "car"), ("zebra", None)], more=2995, known="66", such="cat, dog")
    notes = [unknown, Note("negative", note=unknown), Note("cut", length=32), Note("no-guidance")]
    page.goto(address)
    assert page.evaluate("notes => notes.map(sentence)", [note.to_dict() for note in notes]) == notes
    page.goto(f"{address}?lang=fr")
    page.get_by_label(WORDS["fr"]["prompt"]).press_sequentially("une tondeuse")
    page.get_by_text("Je n’ai jamais vu : une, tondeuse. Je connais 300 choses en anglais").wait_for()
    page.get_by_label(WORDS["fr"]["prompt"]).press("Enter")
    page.get_by_text(re.compile("dessinées en .*Je n’ai jamais vu : une, tondeuse")).wait_for()


def test_the_language_is_the_first_of_ours_that_the_browser_asks_for(address: str) -> None:
    for asked, lang in (("it, pt-BR;q=0.8, de;q=0.5", "pt"), ("", "en"), ("*;q=., \xff", "en")):
        answer = httpx.get(address, headers={"Accept-Language": asked.encode("latin1")})
        assert f'"lang": "{lang}"' in answer.text
        assert "Accept-Language" in answer.headers["Vary"]


def test_light_or_dark_is_the_browsers_until_somebody_chooses(page: "Page", address: str) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(address)
    is_dark = "() => document.body.classList.contains('dark')"
    page.get_by_role("button", name="Light or dark").wait_for()
    page.wait_for_function(is_dark)
    page.get_by_role("button", name="Light or dark").click()
    assert not page.evaluate(is_dark)
    page.reload()
    page.get_by_role("button", name="Light or dark").wait_for()
    page.wait_for_timeout(500)
    assert not page.evaluate(is_dark)


def test_a_link_elsewhere_shows_our_title_and_a_picture_of_ours(address: str) -> None:
    html = httpx.get(address).text
    assert "Gradio" not in " ".join(re.findall(r"<meta[^>]*>", html))
    found = re.search(r'<meta property="og:image" content="([^"]+)">', html)
    assert found
    assert found[1].startswith(address)
    with Image.open(io.BytesIO(httpx.get(found[1]).content)) as picture:
        assert picture.size == (1200, 630)


def test_unknown_words_are_told_with_the_gallery(page: "Page", address: str) -> None:
    page.goto(address)
    set_candidates(page, 1)
    ask(page, "a lawnmower")
    page.get_by_text("I have never seen: lawnmower").wait_for()


def test_model_cards_are_one_click_away_ours_first(page: "Page", address: str) -> None:
    page.goto(address)
    page.get_by_text("not for facts, faces or decisions").wait_for()
    page.get_by_role("link", name="Model card").click()
    shown = page.locator("#card")
    shown.get_by_text("Nor do we recommend it").wait_for()
    links = [link.get_attribute("href") or "" for link in shown.get_by_role("link").all()]
    for wanted in CARD_LINKS:
        assert any(wanted in link for link in links), wanted
    text = shown.inner_text()
    assert 0 < text.index("Fluent Emoji") < text.index("Nor do we recommend it")
    assert shown.locator("img").count() == 0


@pytest.mark.parametrize("width", [320, 360, 768, 1440, 1920])
def test_page_is_as_wide_as_its_window_and_centred(
    page: "Page", address: str, width: int, requested_hosts: set[str]
) -> None:
    page.set_viewport_size({"width": width, "height": 780})
    page.set_content(f'<body style="margin: 0"><iframe src="{address}" width="{width}" height="760" style="border: 0">')
    frame = page.frame_locator("iframe")
    ask(frame, "a red apple on a blue background")
    wait_for_gallery(frame, 9)
    inner = page.frames[1]
    assert inner.evaluate("document.documentElement.scrollWidth") == width
    left, right = inner.evaluate(
        "() => { const box = document.getElementById('bar').getBoundingClientRect();"
        " return [box.left, document.documentElement.clientWidth - box.right]; }"
    )
    assert abs(left - right) < 2
    small = inner.evaluate(
        "() => [...document.querySelectorAll('button, summary, #bar textarea')]"
        ".filter(each => each.offsetParent && !each.closest('footer') && each.getBoundingClientRect().height < 43.5)"
        ".map(each => each.outerHTML)"
    )
    assert small == [], "targets of 44 px"
    assert requested_hosts == {"127.0.0.1"}


def test_blog_post_with_the_app_embedded_works(phone: "Page", address: str) -> None:
    post = (app.ASSETS / "embed.html").read_text(encoding="utf-8")
    phone.set_content(post.replace("http://127.0.0.1:7860/", address))
    frame, element = phone.frame_locator("#frame"), phone.frame_locator("dalle-mini iframe")
    frame.get_by_role("button", name="Draw", exact=True).wait_for()
    assert phone.evaluate("document.documentElement.scrollWidth") == 360
    assert not frame.get_by_role("heading", name="DALL·E mini").is_visible(), "the compact page"
    phone.locator("dalle-mini").scroll_into_view_if_needed()
    assert len(wait_for_gallery(element, 9)) > 1, "it draws its own prompt"
    phone.wait_for_timeout(1000)
    height = phone.evaluate("() => parseInt(document.querySelector('dalle-mini iframe').style.height)")
    assert 500 < height < 2000, "it does not grow with its own frame"
    inside = next(each for each in phone.frames if "prompt=a+robot" in each.url)
    assert inside.evaluate("document.getElementById('about').getBoundingClientRect().bottom") <= height


# Links, and pictures of ours


def test_a_link_draws_what_it_names_and_is_in_the_address_after_each_drawing(page: "Page", address: str) -> None:
    page.goto(f"{address}?prompt=a%20robot%20under%20a%20rainbow&seed=5&num_candidates=3")
    found = wait_for_gallery(page, 3)
    assert page.get_by_label(PROMPT).input_value() == "a robot under a rainbow"
    other = page.context.new_page()
    other.goto(page.url)
    assert wait_for_gallery(other, 3) == found
    assert re.search(r"prompt=a\+robot\+under\+a\+rainbow&num_candidates=3&seed=5$", page.url)


def test_a_picture_of_ours_that_is_dropped_is_drawn_again_to_the_byte_or_not_at_all(
    page: "Page", address: str, emoji: dalle_mini.Pipeline, tmp_path: Path
) -> None:
    page.goto(address)
    set_number(page, "temperature", 1.5)
    ask(page, "a big strawberry über 🍓")
    found, link = wait_for_gallery(page, 9), page.url
    data = found[-1].partition(",")[2]
    assert b64decode(data).startswith(b"\x89PNG")
    other = page.context.new_page()
    other.goto(address)
    drop(other, "picture.png", data)
    assert wait_for_gallery(other, 9) == found
    assert other.get_by_label(PROMPT).input_value() == "a big strawberry über 🍓"
    assert other.url == link
    start = emoji.generate("three hearts", num_candidates=1, seed=1)[0]
    odd = emoji.generate(
        "a heart", seed=2, num_candidates=2, seamless="both", negative_prompt="red", start=start, keep=3
    )
    odd[0].save_png(tmp_path / "odd.png")
    drop(other, "odd.png", b64encode((tmp_path / "odd.png").read_bytes()).decode())
    assert b64decode(wait_for_gallery(other, 2)[0].partition(",")[2]) == (tmp_path / "odd.png").read_bytes()
    text = PngInfo()
    for name, value in {**read_metadata(tmp_path / "odd.png"), "settings": json.dumps({"steps": 50})}.items():
        text.add_itxt(name, value)
    odd[0].image.save(tmp_path / "later.png", pnginfo=text)
    drop(other, "later.png", b64encode((tmp_path / "later.png").read_bytes()).decode())
    other.get_by_text("settings that the page does not have: steps").wait_for()


def test_drawings_of_a_tab_are_a_strip_that_brings_them_back(page: "Page", address: str) -> None:
    page.goto(address)
    set_candidates(page, 1)
    ask(page, "a tiny dog")
    dog = wait_for_gallery(page, 1)
    ask(page, "three hearts")
    page.wait_for_function("() => document.querySelectorAll('#history .thumb').length === 2")
    page.get_by_role("button", name="a tiny dog").last.click()
    assert pictures(page) == dog
    page.reload()
    page.locator("#history .thumb").nth(1).wait_for()
    other = page.context.new_page()
    other.goto(address)
    other.get_by_text("Drawn before by this model").wait_for()
    assert not other.locator("#history .thumb").first.is_visible(), "another tab's"
    page.get_by_label("Keep on this device").check()
    other.reload()
    other.locator("#history .thumb").nth(1).wait_for()
    other.get_by_role("button", name="Clear").click()
    assert not other.locator("#history .thumb").first.is_visible()
    assert other.evaluate("() => 'galleries' in localStorage") is False


def test_a_gallery_that_an_earlier_version_kept_is_left_out(page: "Page", address: str, quiet: list[str]) -> None:
    page.goto(address)
    set_candidates(page, 1)
    ask(page, "a lawnmower")
    wait_for_gallery(page, 1)
    page.evaluate(
        "() => { const [one] = JSON.parse(sessionStorage.galleries);"
        " one.notes = ['I have never seen: lawnmower.']; sessionStorage.galleries = JSON.stringify([one]);"
        " sessionStorage.tab = 'another, of which the server knows nothing'; }"
    )
    page.goto(address)
    page.get_by_text("Drawn before by this model").wait_for()
    page.wait_for_timeout(500)
    assert page.get_by_text("Drawn before by this model").is_visible()
    assert not page.locator("#history .thumb").first.is_visible()
