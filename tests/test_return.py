"""Coming back to the page in a real browser: after a reload, and through a proxy that breaks off while it draws."""

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from patience import eventually
from slow_pipeline import Slow
from visitor import PROMPT, ask, open_settings, pictures, set_candidates, set_seed, wait_for_gallery

from dalle_mini.web.answers import Answers

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
IDLE = "Drawn before by this model"
ROW = re.compile(r"row \d of 8")


class Proxy:
    """Passes on every byte to a port of this machine, until it is cut; then connections break, and none is taken."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.mend()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def mend(self) -> None:
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener, self._open), daemon=True).start()

    def cut(self) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):  # it has ended by itself
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket, opened: list[socket.socket]) -> None:
        while True:
            try:
                visitor, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            opened += [visitor, server]
            for pair in ((visitor, server), (server, visitor)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(slow_address: str) -> Iterator[Proxy]:
    found = Proxy(int(slow_address.rstrip("/").rpartition(":")[2]))
    yield found
    found.cut()


def begin(page: "Page", address: str, candidates: int = 2, seed: str = "77") -> None:
    page.goto(address)
    set_candidates(page, candidates)
    set_seed(page, seed)
    ask(page, "a robot under a rainbow")
    page.get_by_text(ROW).wait_for()


def fields(page: "Page") -> list[str]:
    """Prompt, candidates and seed."""
    open_settings(page)
    number = page.locator("#set-num_candidates input[type=number]")
    return [part.input_value() for part in (page.get_by_label(PROMPT), number, page.get_by_placeholder("random"))]


def test_a_connection_that_breaks_off_loses_nothing_and_draws_once(page: "Page", proxy: Proxy, slow: Slow) -> None:
    """Nobody has to reload: Gradio does, when the server is there again."""
    before = slow.begun
    begin(page, proxy.address)
    proxy.cut()
    page.wait_for_timeout(3000)
    proxy.mend()
    wait_for_gallery(page, 2)
    page.get_by_text("Seed 77").wait_for()
    assert fields(page) == ["a robot under a rainbow", "2", "77"]
    assert (slow.begun, slow.pipeline.scheduler.slots_in_use) == (before + 1, 0)


def test_a_reload_goes_on_with_the_previews_and_a_second_one_has_the_answer(
    page: "Page", slow_address: str, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, gate = slow.begun, threading.Event()
    monkeypatch.setattr(slow, "pause", lambda: gate.wait(1))
    begin(page, slow_address)
    page.reload()
    page.get_by_text("Drawing: a robot under a rainbow").wait_for()
    page.locator("#stage .waiting img").first.wait_for()
    page.get_by_role("button", name="Stop").wait_for()
    gate.set()
    found = wait_for_gallery(page, 2)
    page.reload()
    assert wait_for_gallery(page, 2) == found
    assert fields(page) == ["a robot under a rainbow", "2", "77"]
    other = page.context.new_page()
    other.goto(slow_address)
    other.get_by_text(IDLE).wait_for()
    other.wait_for_timeout(500)
    assert other.get_by_text(IDLE).is_visible(), "another tab's"
    assert fields(other) == ["", "9", ""]
    assert slow.begun == before + 1
    ask(page, "three hearts")  # and the page works as ever
    page.get_by_text("Drawing: three hearts").wait_for()
    assert wait_for_gallery(page, 2) != found


def test_stop_after_a_reload_ends_the_drawing(
    page: "Page", slow_address: str, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = slow.closed_early
    monkeypatch.setattr(slow, "pause", lambda: time.sleep(1))
    begin(page, slow_address)
    page.reload()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert eventually(lambda: slow.closed_early == before + 1)
    assert eventually(lambda: slow.pipeline.scheduler.slots_in_use == 0)


def test_an_error_is_told_on_return(page: "Page", slow_address: str) -> None:
    page.goto(slow_address)
    set_candidates(page, 1)
    set_seed(page, "seven")
    ask(page, "a tiny dog")
    told = page.get_by_text("Seed must be a whole number from 0 to 4294967295, got 'seven'")
    told.wait_for()
    page.reload()
    told.wait_for()
    assert fields(page) == ["a tiny dog", "1", "seven"]
    set_seed(page, "")
    ask(page, "a tiny dog")
    assert len(wait_for_gallery(page, 1)) == 1


def test_fields_are_kept_without_drawing_and_a_gallery_outlives_its_files(
    page: "Page", slow_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    save = Answers.save

    def noting(self: Answers, *rest: Any) -> list[Path]:
        paths = save(self, *rest)
        folders.append(paths[0].parent)
        return paths

    monkeypatch.setattr(Answers, "save", noting)
    page.goto(slow_address)
    set_candidates(page, 1)
    ask(page, "a tiny dog")
    found = wait_for_gallery(page, 1)
    shutil.rmtree(folders[0])
    page.get_by_label(PROMPT).fill("a cat")
    page.wait_for_function("() => sessionStorage.fields.includes('a cat')")
    page.reload()
    page.wait_for_function("() => document.querySelector('textarea')?.value === 'a cat'")
    page.locator("#stage .ranked").wait_for()
    assert pictures(page) == found, "the browser has it"


LATE = """
    window.joined = 0;
    window.held = false;
    const ask = window.fetch;
    window.fetch = async (...given) => {
        const address = given[0].url ?? String(given[0]);
        const answer = await ask(...given);
        window.joined += address.includes("/queue/join");
        if (!address.includes("/queue/data")) return answer;
        const before = window.joined;
        const transform = async (text, out) => {
            const end = text.indexOf('data: {"msg":"close_stream"');
            out.enqueue(end < 0 ? text : text.slice(0, end));
            if (end < 0) return;
            window.held = true;
            while (window.joined === before) await new Promise((done) => setTimeout(done, 20));
            await new Promise((done) => setTimeout(done, 200));
            window.held = false;
            out.enqueue(text.slice(end));
        };
        const body = answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(new TransformStream({ transform }));
        return new Response(body.pipeThrough(new TextEncoderStream()), answer);
    };
"""


def test_a_stream_that_gradio_closes_when_something_new_is_asked_for_is_opened_again(
    page: "Page", address: str
) -> None:
    page.add_init_script(LATE)
    page.goto(address)
    for prompt in ("a cat", "a dog"):
        page.wait_for_function("() => window.held")
        ask(page, prompt)
        page.get_by_role("heading", name=prompt).wait_for()
        wait_for_gallery(page, 9)
