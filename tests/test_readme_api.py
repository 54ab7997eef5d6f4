"""The lines of the README's chapter on the API, run as they are printed against a server."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

import app
import dalle_mini

if TYPE_CHECKING:
    from playwright.sync_api import Page

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
CHAPTER = re.search(r"^## The API\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
PRINTED = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def address(emoji: dalle_mini.Pipeline) -> Iterator[str]:
    with app.launch(emoji) as found:
        yield found.rstrip("/")


def lines(language: str, address: str) -> str:
    assert CHAPTER
    found = re.findall(rf"^```{language}\n(.*?)^```", CHAPTER[1], re.MULTILINE | re.DOTALL)
    assert PRINTED in found[0]
    return "".join(found).replace(PRINTED, address)


def test_the_lines_for_a_shell_draw_and_look_inside_a_picture(address: str, tmp_path: Path) -> None:
    Image.effect_noise((80, 64), 50).save(tmp_path / "photo.jpg")
    command = ["bash", "-c", lines("bash", address)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    drawn, _, kept = ended.stdout.strip().rpartition("data: ")[2].partition("\n")
    (answer,), found = json.loads(drawn), json.loads(kept)
    assert (len(found["codes"]), found["tokenizer"]) == (64, "VQGAN")
    assert len(answer["candidates"]) == 4
    assert httpx.get(answer["candidates"][0]["image"]["url"]).content.startswith(b"\x89PNG")


def test_the_lines_for_python_draw(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(lines("python", address), {})
    told = capsys.readouterr().out
    assert len(re.findall(r"\.png$", told, re.MULTILINE)) == 9
    assert re.search(r"^None \[\{'image'", told, re.MULTILINE), "the events of the second part"


@pytest.mark.browser
def test_the_lines_for_javascript_draw(address: str, page: "Page") -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"{address}/robots.txt")
    page.evaluate(f"async () => {{ {lines('javascript', address)} }}")
    assert [bool(re.fullmatch(rf"[\d.]+ {re.escape(address)}/\S+\.png", line)) for line in said] == [True] * 4
