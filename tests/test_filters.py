"""Each rule drops what it is for and nothing else, and the report says which rule dropped what."""

import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dalle_mini.__main__ import main
from dalle_mini.model_names import EMBEDDED
from dalle_mini.training.data import filters as captions
from dalle_mini.training.data.duplicates import Duplicates
from dalle_mini.training.data.filters import RULES, FilterConfig, filter_samples
from dalle_mini.training.data.rows import Sample, read_samples
from dalle_mini.training.data.skipped import Report
from dalle_mini.training.data.sources import open_source
from dalle_mini.training.emoji.world import World

GREY = Image.new("RGB", (100, 100), "grey")


def sample(caption: str = "a cat on a mat", image: Image.Image = GREY) -> Sample:
    return Sample(key="x", caption=caption, image=image, file=b"")


def broken_rules(given: Sample, **thresholds: Any) -> list[str]:
    config = FilterConfig(**thresholds)
    return [rule.__name__ for rule in RULES if rule(given, config)]


GOOD = [
    "a cat",
    "hot dog above a taco",
    "a cat and a dog and a bird and a fish",
    "The Eiffel Tower in Paris, France, on a sunny day in 2019",
    "photo of a wedding on the beach, stock photo",
    "a man taken by surprise while he is reading a book by the window",
    "two NASA engineers in front of a rocket",
    "UFO over LA",
    "a woman in a red dress #fashion",
    "portrait of a young man with a hat.",
    "🐈 left of a pizza",
    "Café table with espresso",
    "a picture on the wall",
    "a photo by the sea",
    "photo by the sea",
    "a picture by Monet",
    "a cake created by Anna",
    "picture taken by the lake",
    "christmas decor 2019",
    "a penguin",
    "a llama",
    "a samurai",
    "a zebra",
    "a pagoda in Kyoto",
    "a tuk-tuk in Bangkok",
    "spaghetti carbonara",
]


@pytest.mark.parametrize("caption", GOOD)
def test_a_good_caption_breaks_no_rule(caption: str):
    assert broken_rules(sample(caption)) == []


@pytest.mark.parametrize(
    ("rule", "caption"),
    [
        ("too_few_words", "pizza"),
        ("too_few_words", "!!! 🐈"),
        ("too_many_words", "a cat sat on the mat and then " * 20),
        ("mostly_boilerplate", "Photographed on 12 March 2015"),
        ("mostly_boilerplate", "image uploaded by john"),
        ("mostly_boilerplate", "Photo by John"),
        ("mostly_boilerplate", '"Picture courtesy of NASA"'),
        ("mostly_boilerplate", "Posted by admin on May 3, 2014"),
        ("mostly_boilerplate", "photo on 7 Sept. 2012"),
        ("mostly_boilerplate", "Stock Photo, Royalty-Free Image"),
        ("mostly_boilerplate", "Image 3 of 12"),
        ("mostly_boilerplate", "2014-05-03 18:22"),
        ("mostly_boilerplate", "No image available"),
        ("mostly_boilerplate", "Copyright 2011, all rights reserved. Getty Images"),
        ("mostly_noise", "#cat #dog #love so cute"),
        ("mostly_noise", "see www.example.com now"),
        ("mostly_noise", "IMG_20190304_1234.jpg holiday"),
        ("repetitive", "cat cat Cat cat dog"),
        ("mostly_capitals", "BUY CHEAP SHOES NOW"),
        ("other_language", "une femme avec un chapeau rouge"),
        ("other_language", "ein Hund liegt auf dem Sofa"),
        ("other_language", "un gato negro en la mesa"),
        ("other_language", "красная машина у дома"),
        ("other_language", "кошка на столе"),
        ("other_language", "czarny kot"),
        ("other_language", "en svart katt på bordet"),
        ("other_language", "一只 猫在桌子上"),
    ],
)
def test_a_bad_caption_counts_under_the_rule_it_should(rule: str, caption: str):
    assert broken_rules(sample(caption.strip()))[:1] == [rule]


@pytest.mark.parametrize(
    ("rule", "size"),
    [
        (None, (64, 64)),
        (None, (200, 100)),
        (None, (100, 200)),
        ("too_elongated", (201, 100)),
        ("too_elongated", (100, 201)),
        ("too_small", (63, 100)),
    ],
)
def test_a_picture_is_judged_by_its_sides(rule: str | None, size: tuple[int, int]):
    assert broken_rules(sample(image=Image.new("RGB", size))) == ([rule] if rule else [])


@pytest.mark.parametrize(
    ("given", "thresholds"),
    [
        (sample("pizza"), {"min_words": 1}),
        (sample("cat cat cat cat dog"), {"max_repetition": 0.6}),
        (sample("ein Hund liegt auf dem Sofa"), {"language": "de"}),
        (sample("czarny kot"), {"short_language_odds": 3000}),
        (sample("czarny kot"), {"language_odds": 3000}),
        (sample("BUY CHEAP SHOES NOW"), {"max_capitals": 1}),
        (sample(image=Image.new("RGB", (300, 100))), {"max_aspect_ratio": 3}),
        (sample(image=Image.new("RGB", (20, 20))), {"min_side": 20}),
    ],
)
def test_a_threshold_decides(given: Sample, thresholds: dict[str, Any]):
    assert broken_rules(given) != []
    assert broken_rules(given, **thresholds) == []


def test_every_rule_gives_its_reason():
    assert all((rule.__doc__ or "").endswith(".") for rule in RULES)


def token(kind: str) -> SimpleNamespace:
    return SimpleNamespace(pos_=kind)


@pytest.mark.parametrize(
    ("kinds", "dropped"),
    [
        (["DET", "NOUN", "ADP", "PROPN"], False),
        (["DET", "PROPN", "ADP"], False),
        (["NOUN", "ADP", "NOUN"], True),
        (["DET", "NOUN", "VERB"], True),
        (["DET", "ADJ", "ADP"], True),
    ],
)
def test_parts_of_speech_are_asked_for_only_with_a_model(
    kinds: list[str], dropped: bool, monkeypatch: pytest.MonkeyPatch
):
    def load(name: str) -> Callable[[str], list[SimpleNamespace]]:
        if name != "en_core_web_sm":
            raise OSError("no such model")
        return lambda text: [token(kind) for kind in kinds]

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    captions._parser.cache_clear()
    assert broken_rules(sample()) == []
    assert broken_rules(sample(), spacy_model="en_core_web_sm") == (["no_sentence"] if dropped else [])
    with pytest.raises(ValueError, match="spacy_model must be an installed model, got 'nope'"):
        broken_rules(sample(), spacy_model="nope")
    captions._parser.cache_clear()


@pytest.mark.parametrize(
    ("module", "loader", "arguments"),
    [("spacy", captions._parser, ["en"]), ("py3langid.langid", captions._identifier, [])],
)
def test_a_library_that_is_missing_is_named(
    module: str, loader: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    loader.cache_clear()
    package = module.partition(".")[0]
    with pytest.raises(ValueError, match=f"{package} must be installed .*: pip install {package}"):
        loader(*arguments)


def test_clip_drops_a_picture_of_something_else(world: World):
    rng = np.random.default_rng(0)
    scene = next(scene for scene in iter(lambda: world.draw(rng), None) if scene.kind == "single")
    picture = Image.fromarray(world.paint(scene))
    score = captions._reranker(str(EMBEDDED / "clip")).score(scene.caption, np.asarray(picture)[None])[0]
    thresholds = {"clip": str(EMBEDDED / "clip"), "min_clip_score": round(float(score) - 0.05, 3), "min_words": 1}
    assert broken_rules(sample(scene.caption, picture), **thresholds) == []
    assert broken_rules(sample(scene.caption, Image.new("RGB", (64, 64))), **thresholds) == ["unlike_its_caption"]
    with pytest.raises(ValueError, match="clip must be a CLIP model: "):
        broken_rules(sample(), clip="nowhere")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("min_words=0", "min_words must be a whole number from 1 to 1000, got 0"),
        ("min_words=2.5", "min_words must be a whole number from 1 to 1000, got '2.5'"),
        ("max_noise=1.5", "max_noise must be a number from 0 to 1, got 1.5"),
        ("max_noise=nan", "max_noise must be a number from 0 to 1, got nan"),
        ("max_noise=", "max_noise must be a number from 0 to 1, got ''"),
        ("min_side", "min_side must be a whole number from 1 to 10000, got ''"),
        ("bogus=1", "set must be NAME=VALUE with a name of min_words, max_words, "),
    ],
)
def test_a_bad_threshold_is_named_before_anything_is_read(
    setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["filter", "nowhere", "--out", str(tmp_path / "out"), "--set", setting]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_an_unknown_language_is_named():
    with pytest.raises(ValueError, match=r"language must be one of .*, en, .*, got 'english'"):
        broken_rules(sample(), language="english")


def photo(seed: int = 0, side: int = 256) -> Image.Image:
    """Something with large and small shapes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(256, size=(6, 6, 3), dtype=np.uint8)).resize((side, side))
    fine = Image.fromarray(rng.integers(256, size=(60, 60, 3), dtype=np.uint8)).resize((side, side))
    return Image.blend(coarse, fine, 0.3)


def reencoded(image: Image.Image, **settings: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", **settings)
    return Image.open(file).convert("RGB")


def test_copies_of_a_picture_are_near_duplicates_whatever_their_caption():
    for seed in range(10):
        image, duplicates = photo(seed), Duplicates(FilterConfig().max_thumbnail_difference)
        assert duplicates.reason(sample("a cat", image)) == ""
        copies = [reencoded(image, quality=50), image.resize((128, 128)), reencoded(image.resize((180, 180)))]
        assert [duplicates.reason(sample("my cat", copy)) for copy in copies] == ["near_duplicate"] * 3


def test_other_pictures_are_no_duplicates(world: World):
    duplicates = Duplicates(FilterConfig().max_thumbnail_difference)
    rng = np.random.default_rng(0)
    scenes = list({(scene.caption, scene.sprites): scene for scene in (world.draw(rng) for _ in range(500))}.values())
    pictures = [photo(seed) for seed in range(50)] + [Image.fromarray(world.paint(scene)) for scene in scenes]
    pictures += [Image.new("RGB", (64, 64), colour) for colour in ("red", "white", "black", "lightgrey")]
    assert [duplicates.reason(sample(str(n), image)) for n, image in enumerate(pictures)] == [""] * len(pictures)


def test_the_same_picture_may_come_back_with_another_caption_only():
    duplicates = Duplicates(16)
    seen = [("a cat", 0), ("a sleeping cat", 0), ("A cat", 0), ("a cat", 1), ("a sleeping cat", 0)]
    reasons = [duplicates.reason(sample(caption, photo(seed))) for caption, seed in seen]
    assert reasons == ["", "", "duplicate", "", "duplicate"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight pictures, of which three are good."""
    folder = tmp_path / "source"
    folder.mkdir()
    content = {
        "a.png": ("a cat on a mat", photo(1)),
        "b.png": ("a dog in a house", photo(2)),
        "c.jpg": ("my dog at home", photo(2)),
        "d.png": ("Photographed on 1/2/2003", photo(3)),
        "e.png": ("une femme avec un chapeau rouge", photo(4)),
        "f.png": ("a bird in a tree", photo(5).resize((256, 100))),
        "g.png": ("the same bird — in another tree", photo(6).convert("RGBA")),
    }
    for name, (caption, image) in content.items():
        (image.convert("RGB") if name == "c.jpg" else image).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    (folder / "h.png").write_bytes(b"no picture")
    (folder / "h.txt").write_text("a fish in a bowl")
    return folder


def test_what_breaks_no_rule_is_a_source_again_with_the_same_pictures(source: Path, tmp_path: Path):
    filter_samples(source, tmp_path / "out", FilterConfig())
    report = Report()
    samples = list(read_samples(open_source(tmp_path / "out"), report))
    assert [(s.key, s.caption) for s in samples] == [
        ("a.png", "a cat on a mat"),
        ("b.png", "a dog in a house"),
        ("g.png", "the same bird — in another tree"),
    ]
    assert [s.file for s in samples] == [(source / s.key).read_bytes() for s in samples]
    assert (report.read, report.skipped) == (3, {})
    assert report.converted == {"transparent": ["filtered.parquet:2 (g.png)"]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"filtered.parquet", "report.json"}


def test_the_report_counts_and_lists_every_sample_by_reason(source: Path, tmp_path: Path):
    config = FilterConfig(min_side=50)
    filter_samples(source, tmp_path / "out", config)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["skipped"] == {
        "mostly_boilerplate": {"count": 1, "keys": ["d.png"]},
        "near_duplicate": {"count": 1, "keys": ["c.jpg"]},
        "not a picture": {"count": 1, "keys": ["h.png"]},
        "other_language": {"count": 1, "keys": ["e.png"]},
        "too_elongated": {"count": 1, "keys": ["f.png"]},
    }
    assert report["converted"] == {"transparent": {"count": 1, "keys": ["g.png"]}}
    assert (report["read"], report["kept"], report["source"]) == (8, 3, str(source))
    assert report["config"]["min_side"] == 50
    assert report["rules"]["too_small"].startswith("The shorter side has fewer than min_side pixels")
    assert set(report["rules"]) == {rule.__name__ for rule in RULES} | {"duplicate", "near_duplicate"}


def test_a_filter_that_was_stopped_leaves_no_table(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filter_samples(source, tmp_path / "out", FilterConfig())
    before = (tmp_path / "out" / "filtered.parquet").read_bytes()

    def stop(self: Duplicates, given: Sample) -> str:
        if given.key == "b.png":
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(Duplicates, "reason", stop)
    for out in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            filter_samples(source, tmp_path / out, FilterConfig(min_words=1))
    assert (tmp_path / "out" / "filtered.parquet").read_bytes() == before
    assert not (tmp_path / "new" / "filtered.parquet").exists()


def test_the_command_filters_and_tells_how_many(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    arguments = ["filter", str(source), "--out", str(out), "--set", "max_aspect_ratio=3", "--set", "language_odds=1e9"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{source}: 5 of 8 kept, 1 ")
    assert told.endswith(f"; see {out}\n")
    assert pq.read_table(out / "filtered.parquet")["key"].to_pylist() == ["a.png", "b.png", "e.png", "f.png", "g.png"]


def test_a_huge_picture_is_counted_and_not_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "source").mkdir()
    Image.new("1", (10_000, 9_000)).save(tmp_path / "source" / "a.png")
    (tmp_path / "source" / "a.txt").write_text("a night in the desert")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main(["filter", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 2
    error = "error: source must hold something to keep, got 0 of 1 kept, 1 huge: more than 89 million pixels"
    assert capsys.readouterr().err.splitlines()[-1].startswith(error)
    assert told == []


def test_a_source_that_is_nowhere_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["filter", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"error: source must be an existing file or folder or a hub id like owner/name, got '{tmp_path / 'nowhere'}'\n"
    )


@pytest.mark.parametrize(
    ("caption", "language"), [("一只猫在桌子上", "zh"), ("屋根の上の猫", "ja"), ("แมวอยู่บนหลังคา", "th")]
)
def test_scripts_without_spaces_have_words(caption: str, language: str):
    assert broken_rules(sample(caption), language=language, short_language_odds=1e9) == []
    assert broken_rules(sample(caption * 60), language=language)[:1] == ["too_many_words"]


def test_where_little_is_kept_the_command_says_what_it_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, out = tmp_path / "source", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        photo(number).save(folder / f"{number}.png")
    (folder / "notes.doc").write_text("x")
    assert main(["filter", str(folder), "--out", str(out)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        "error: source must hold something to keep, got 0 of 3 kept, 3 no caption; not looked at: 1 other"
    )
    assert "no caption: captions were looked for in cat.txt, cat.caption or cat.json beside cat.jpg" in told
    report = json.loads((out / "report.json").read_text())
    assert list(report)[:4] == ["summary", "advice", "read", "kept"]
    (folder / "0.txt").write_text("a cat on a mat")
    assert main(["filter", str(folder), "--out", str(out)]) == 0
    assert "no caption: captions were looked for in " in capsys.readouterr().out
