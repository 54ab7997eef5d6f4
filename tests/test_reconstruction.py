"""What the codes keep: the same figures from Python, the command line and the API."""

import asyncio
import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from source_files import photo

import app
import dalle_mini
from dalle_mini.__main__ import main
from dalle_mini.pictures import data_url, from_base64
from dalle_mini.reconstruction import GAP, TEXT, TILE, reconstruct
from dalle_mini.training.report.quality import psnr, ssim
from dalle_mini.web.answers import Answers
from dalle_mini.web.limits import Limits
from dalle_mini.web.page.texts import tokenizer_line
from dalle_mini.web.visits import Visits

GOLDEN_PICKLES = Path(__file__).parent / "golden" / "dvae_pkl"


def test_a_picture_is_encoded_and_decoded_again(emoji: dalle_mini.Pipeline):
    found = emoji.reconstruct(photo(3, (90, 64)))
    pixels = np.asarray(found.original)[None]
    np.testing.assert_array_equal(found.codes, emoji.vqgan.encode(pixels)[0])
    rebuilt = emoji.vqgan.decode(found.codes[None])
    np.testing.assert_array_equal(found.picture, rebuilt[0])
    assert (found.psnr, found.ssim) == (psnr(pixels, rebuilt)[0], ssim(pixels, rebuilt)[0])
    assert (found.bits, found.codebook_size, found.tokenizer) == (704, 2048, "VQGAN")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.psnr = 0  # type: ignore[misc]


def test_the_difference_is_of_the_two_and_equal_codes_have_one_colour(emoji: dalle_mini.Pipeline):
    found = emoji.reconstruct(photo(3))
    apart = np.abs(np.asarray(found.original, int) - np.asarray(found.picture, int))
    np.testing.assert_array_equal(found.difference(), np.minimum(4 * apart, 255))
    colours = np.asarray(found.grid()).reshape(-1, 3).tolist()
    pairs = set(zip(found.codes.tolist(), map(tuple, colours), strict=True))
    assert found.grid().size == (8, 8)
    assert len(pairs) == len(set(found.codes.tolist()))
    perfect = dataclasses.replace(found, psnr=float("inf"))
    assert json.loads(json.dumps(perfect.facts(), allow_nan=False))["psnr"] is None


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "1"])
def test_pictures_of_every_mode_are_taken(mode: str, emoji: dalle_mini.Pipeline):
    assert emoji.reconstruct(photo(1).convert(mode)).original.mode == "RGB"


@pytest.mark.parametrize("given", ["photo.jpg", None, np.zeros((8, 8, 3), np.uint8), Image.new("F", (64, 64))])
def test_what_is_no_picture_is_one_sentence(given: Any, emoji: dalle_mini.Pipeline):
    with pytest.raises(ValueError, match=r"^picture must "):
        reconstruct(emoji.vqgan, given)


# The command line


def test_pictures_and_tokenizers_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", str(GOLDEN_PICKLES), "--out", str(tmp_path / "dvae")]) == 0
    (tmp_path / "dvae" / "config.json").write_text(
        (tmp_path / "dvae" / "config.json").read_text().replace('"resolution": 256', '"resolution": 32')
    )
    for number in range(2):
        photo(number).save(tmp_path / f"{number}.png")
    names = [str(tmp_path / f"{number}.png") for number in range(2)]
    models = ["--model", "emoji", "--model", str(tmp_path / "dvae")]
    assert main(["reconstruct", *names, *models, "--out", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (7 * (TILE + GAP) - GAP, 2 * (TILE + TEXT) - GAP)
    told = json.loads((tmp_path / "sheet.json").read_text())["pictures"]
    assert [row["picture"] for row in told] == names
    assert [[each["tokenizer"] for each in row["kept"]] for row in told] == [["VQGAN", "dVAE"]] * 2
    assert told[0]["file_bits"] == 8 * (tmp_path / "0.png").stat().st_size
    assert [each["bits"] for each in told[0]["kept"]] == [704, 64]
    assert "0.png: emoji (VQGAN) keeps 64 codes, 704 bits of" in capsys.readouterr().out


# The API

Asked = Callable[..., httpx.Response]


def asker(pipeline: dalle_mini.Pipeline, folder: Path) -> Asked:
    door = app.everything_served(pipeline, Answers(folder), Visits())

    def ask(body: Any) -> httpx.Response:
        async def asking() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://localhost") as client:
                return await client.post("/reconstruct", json=body)

        with ThreadPoolExecutor(1) as pool:  # a browser of other tests may have a loop in this thread
            return pool.submit(asyncio.run, asking()).result()

    return ask


@pytest.fixture(scope="module")
def asked(emoji: dalle_mini.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return asker(emoji, tmp_path_factory.mktemp("answers"))


def test_the_api_gives_what_python_gives(asked: Asked, emoji: dalle_mini.Pipeline):
    answer = asked({"picture": data_url(photo(5), "PNG")})
    assert answer.status_code == 200
    told, found = answer.json(), emoji.reconstruct(photo(5))
    np.testing.assert_array_equal(from_base64(told.pop("picture"), found.picture.width), found.picture)
    np.testing.assert_array_equal(from_base64(told.pop("grid"), 8), found.grid())
    assert told == found.facts()


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        ("https://example.org/cat.png", "picture must be a data URL or base64, got 'https://example.org/cat.png'"),
        (data_url(Image.new("RGB", (1, 1)), "PNG"), "picture must be a JPEG, PNG, WEBP, GIF or BMP that can be read"),
    ],
)
def test_a_bad_picture_is_422_in_a_sentence(asked: Asked, picture: str, sentence: str):
    answer = asked({"picture": picture})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(sentence)


def test_a_visitors_limits_count(emoji: dalle_mini.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(emoji, "limits", Limits(per_minute=1))
    ask = asker(emoji, tmp_path)
    answers = [ask({"picture": data_url(photo(5))}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["detail"].startswith("a visitor may ask at most 1 times a minute")


def test_the_card_says_which_tokenizer_paints_and_what_it_is_unfit_for(emoji: dalle_mini.Pipeline):
    line = tokenizer_line(emoji)
    assert "a VQGAN**: 8 × 8 codes of 2,048 for 64 × 64 pixels" in line
    assert "unfit for high-fidelity image processing" in line
