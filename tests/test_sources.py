"""Any source gives the same samples; what is of no use is skipped under its reason, and ends nothing."""

import csv
import io
import itertools
import json
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dalle_mini.training.data.rows import Row, Sample, read_samples
from dalle_mini.training.data.skipped import Report
from dalle_mini.training.data.sources import open_source
from vqgan.files import write_json

CAPTIONS = ["a red square", "a green square", "ein blaues Viereck, 🟦"]
COLOURS = ["red", "green", "blue"]


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def noise(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    shape = (*size[::-1], len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8), mode)


PICTURES = [encoded(Image.new("RGB", (40, 30), colour)) for colour in COLOURS]


def read(source: Path | list[Row]) -> tuple[list[Sample], Report]:
    report = Report()
    return list(read_samples(source if isinstance(source, list) else open_source(source), report)), report


def write_pictures(folder: Path) -> list[str]:
    """The names, in order."""
    names = ["1.png", "deep/2.PNG", "deep/er/3.png"]
    for name, picture in zip(names, PICTURES, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture)
    return names


def pictures(folder: Path) -> Path:
    for name, caption in zip(write_pictures(folder), CAPTIONS, strict=True):
        beside = (folder / name).with_suffix
        if name == "1.png":
            beside(".json").write_text(json.dumps({"width": 3, "Caption": caption}))
        else:
            beside(".txt").write_text(f"\ufeff{caption} \n", encoding="utf-8")
    return folder


def table_of_paths(folder: Path, suffix: str = ".csv") -> Path:
    path = folder / f"list{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerow(["file_name", "width", "TEXT"])
        writer.writerows((name, 3, text) for name, text in zip(write_pictures(folder), CAPTIONS, strict=True))
    return path


def lines_of_json(folder: Path) -> Path:
    """Hugging Face's image folder."""
    rows = zip(write_pictures(folder), CAPTIONS, strict=True)
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in rows]
    (folder / "metadata.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


def hub_dataset(folder: Path) -> Path:
    """As it is downloaded, with a picture for its page."""
    parquet(folder / "data", pa.array(PICTURES))
    for number in range(2):
        (folder / "data" / f"{number}.parquet").rename(folder / "data" / f"train-0000{number}-of-00002.parquet")
    pq.write_table(pa.table({"caption": ["a test"], "image": [PICTURES[0]]}), folder / "data/test-0-of-1.parquet")
    (folder / "thumbnail.png").write_bytes(PICTURES[0])
    return folder


def parquet(folder: Path, images: pa.Array) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table({"caption": CAPTIONS, "image": images, "id": [7, 8, 9]})
    pq.write_table(table.slice(0, 2), folder / "0.parquet")
    pq.write_table(table.slice(2), folder / "1.parquet")
    return folder


def hugging_face_table(folder: Path) -> Path:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    (folder / "2.png").write_bytes(PICTURES[2])
    cells = [{"bytes": PICTURES[0], "path": "x.png"}, {"bytes": PICTURES[1]}, {"path": "../2.png"}]
    return parquet(folder / "table", pa.array(cells, kind))


def shards(folder: Path) -> Path:
    """Two shards, with the tables and the statistics that img2dataset leaves beside them."""
    for shard, members in enumerate([[0, 1], [2]]):
        with tarfile.open(folder / f"0000{shard}.tar", "w") as tar:
            for number in members:
                add(tar, f"00000000{number}.jpg", PICTURES[number])
                if number != 1:
                    add(tar, f"00000000{number}.txt", CAPTIONS[number].encode())
                add(tar, f"00000000{number}.json", json.dumps({"caption": CAPTIONS[number], "url": "x"}).encode())
        pq.write_table(pa.table({"caption": ["x"], "url": ["y"]}), folder / f"0000{shard}.parquet")
        (folder / f"0000{shard}_stats.json").write_text("{}")
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def pictures_of_img2dataset(folder: Path) -> Path:
    """Its output_format "files": the tables hold no pictures."""
    pq.write_table(pa.table({"caption": ["x"], "url": ["y"]}), folder / "00000.parquet")
    return pictures(folder)


@pytest.mark.parametrize(
    "make",
    [
        pictures,
        pictures_of_img2dataset,
        table_of_paths,
        lambda folder: table_of_paths(folder, ".tsv"),
        lambda folder: table_of_paths(folder).parent,
        lambda folder: parquet(folder / "table", pa.array(PICTURES)),
        hugging_face_table,
        lines_of_json,
        hub_dataset,
        shards,
    ],
    ids=[
        "pictures",
        "img2dataset's",
        "csv",
        "tsv",
        "folder of csv",
        "parquet",
        "hugging face's",
        "lines of json",
        "hub",
        "shards",
    ],
)
def test_every_kind_of_source_gives_the_same_samples(make: Callable[[Path], Path], tmp_path: Path):
    samples, report = read(make(tmp_path))
    assert [sample.caption for sample in samples] == CAPTIONS
    for sample, picture, colour in zip(samples, PICTURES, COLOURS, strict=True):
        assert sample.file == picture
        assert list(sample.image.get_flattened_data()) == list(Image.new("RGB", (40, 30), colour).get_flattened_data())
    assert (report.read, report.skipped, report.converted) == (3, {}, {})
    assert len({sample.key for sample in samples}) == 3


def test_one_shard_and_one_table_are_sources_too(tmp_path: Path):
    assert [sample.key for sample in read(shards(tmp_path) / "00001.tar")[0]] == ["000000002"]
    assert [sample.key for sample in read(parquet(tmp_path / "table", pa.array(PICTURES)) / "0.parquet")[0]] == [
        "7",
        "8",
    ]


def test_keys_of_pictures_are_their_places_in_the_folder(tmp_path: Path):
    assert [sample.key for sample in read(pictures(tmp_path))[0]] == ["1.png", "deep/2.PNG", "deep/er/3.png"]


def half(picture: bytes) -> bytes:
    return picture[: len(picture) // 2]


def claims(width: int, height: int) -> bytes:
    """A small PNG whose header claims another size."""
    picture = bytearray(PICTURES[0])
    picture[16:24] = width.to_bytes(4) + height.to_bytes(4)
    picture[29:33] = zlib.crc32(picture[12:29]).to_bytes(4)
    return bytes(picture)


FLAT = Image.new("RGB", (40, 30))
HUGE = "huge: more than 89 million pixels"
USELESS = {
    "half a jpeg": (half(encoded(noise(), "JPEG")), "truncated"),
    "half a png": (half(encoded(noise())), "truncated"),
    "png with wrong bytes": (encoded(noise()).replace(b"IDAT", b"IDAT" + bytes(9)), "broken"),
    "text": (b"<html>404</html>", "not a picture"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), "tiny"),
    "a line": (encoded(Image.new("RGB", (4000, 2))), "tiny"),
    "a bomb": (claims(30_000, 30_000), HUGE),
    "somewhat too large": (claims(10_000, 9_000), HUGE),
    "animation": (encoded(FLAT, "GIF", save_all=True, append_images=[noise()]), "animated"),
    "animated png": (encoded(FLAT, "PNG", save_all=True, append_images=[noise()]), "animated"),
    "floats": (encoded(FLAT.convert("F"), "TIFF"), "neither 8 nor 16 bit"),
    "nothing": (b"", "not a picture"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("picture", "reason"), USELESS.values(), ids=USELESS)
def test_useless_picture_is_skipped_under_its_reason_and_the_next_one_comes(picture: bytes, reason: str):
    samples, report = read([Row("bad", "a cat", picture), Row("good", "a cat", PICTURES[0])])
    assert [sample.key for sample in samples] == ["good"]
    assert report.skipped == {reason: ["bad"]}
    assert report.summary() == f"1 of 2 kept, 1 {reason}"


def test_missing_files_and_captions_are_skipped_under_their_reasons(tmp_path: Path):
    for name in ("bare", "empty", "nested"):
        (tmp_path / f"{name}.png").write_bytes(PICTURES[0])
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "nested.json").write_text("[" * 100_000)
    assert read(tmp_path)[1].skipped == {"no caption": ["bare.png", "empty.png"], "damaged .json": ["nested.png"]}
    (tmp_path / "list.csv").write_text(
        "key,caption,path\na,a cat,nowhere.png\nb,a cat,\nc\nd,a cat,.\ne,a cat,bare.png\n"
    )
    samples, report = read(tmp_path / "list.csv")
    assert [sample.key for sample in samples] == ["e"]
    assert report.skipped == {
        "missing file": ["list.csv:2 (a)", "list.csv:5 (d)"],
        "no picture": ["list.csv:3 (b)", "list.csv:4 (c)"],
    }


def sixteen_bit_png(colour_type: int, channels: int) -> bytes:
    """All values 0x8010. Pillow reads such a PNG, but writes none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = (40).to_bytes(4) + (30).to_bytes(4) + bytes([16, colour_type, 0, 0, 0])
    rows = (b"\0" + b"\x80\x10" * channels * 40) * 30
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_txt_that_says_nothing_hides_no_json(tmp_path: Path):
    for name, text in {"none": b"", "blank": b"\xef\xbb\xbf \n", "neither": b"\x81\x8d\x90\x00\xff"}.items():
        (tmp_path / f"{name}.png").write_bytes(PICTURES[0])
        (tmp_path / f"{name}.txt").write_bytes(text)
        (tmp_path / f"{name}.json").write_text('{"caption": "a cat"}')
    assert [sample.caption for sample in read(tmp_path)[0]] == ["a cat"] * 3


@pytest.mark.parametrize("line", ["[1]", '{"file_name": "1.pn', "[" * 100_000], ids=["list", "half", "nested"])
def test_a_damaged_line_of_json_is_skipped_and_a_line_may_lack_anything(line: str, tmp_path: Path):
    (tmp_path / "1.png").write_bytes(PICTURES[0])
    lines = ['{"file_name": "1.png", "text": "a cat"}', '{"text": "a dog"}', '{"file_name": "1.png"}', line, "{}"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    samples, report = read(tmp_path)
    assert [sample.caption for sample in samples] == ["a cat"]
    assert report.skipped == {
        "no picture": ["metadata.jsonl:2", "metadata.jsonl:5"],
        "no caption": ["metadata.jsonl:3 (1.png)"],
        "damaged line": ["metadata.jsonl:4"],
    }


def test_names_that_are_no_utf8_stay_different_and_can_be_written(tmp_path: Path):
    for name, caption in {
        b"\xff": '"a cat"',
        b"\xfe": '"a \\ud83d\\ude00 or \\ud800"',
        b"\xc3\xa4": '"\u00e4"',
    }.items():
        (tmp_path / os.fsdecode(name + b".png")).write_bytes(PICTURES[0])
        (tmp_path / os.fsdecode(name + b".json")).write_text(f'{{"caption": {caption}}}', encoding="utf-8")
    rows = {sample.key: sample.caption for sample in read(tmp_path)[0]}
    assert rows == {r"\udcff.png": "a cat", r"\udcfe.png": "a \U0001f600 or \ufffd", "\u00e4.png": "\u00e4"}
    with tarfile.open(tmp_path / "0.tar", "w", errors="surrogateescape") as tar:
        add(tar, os.fsdecode(b"\xff.png"), PICTURES[0])
    assert [row.key for row in open_source(tmp_path / "0.tar")] == [r"\udcff"]


def test_a_report_of_a_source_whose_name_is_no_utf8_is_written_and_read(tmp_path: Path):
    values = {"source": os.fsdecode(b"/data/\xff")}
    write_json(tmp_path / "report.json", values)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == values


def test_every_kind_of_pixels_becomes_rgb():
    grey = Image.fromarray(np.full((30, 40), 0x8010, np.uint16))
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    palette = clear.quantize(4)
    rows = [
        Row("cmyk", "x", encoded(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "JPEG", quality=95)),
        Row("16 bit", "x", encoded(grey)),
        Row("16 bit tiff", "x", encoded(grey, "TIFF")),
        Row("16 bit colour", "x", sixteen_bit_png(2, 3)),
        Row("16 bit and clear", "x", sixteen_bit_png(6, 4)),
        Row("clear", "x", encoded(clear)),
        Row("clear palette", "x", encoded(palette)),
        Row("grey", "x", encoded(Image.new("L", (40, 30), 9))),
        Row("one frame", "x", encoded(Image.new("P", (40, 30)), "GIF")),
    ]
    samples, report = read(rows)
    colours = {sample.key: sample.image.getpixel((5, 5)) for sample in samples}
    red, green, blue = colours.pop("cmyk")
    assert red > 245
    assert green < 10
    assert blue < 10
    assert colours == {
        "16 bit": (128, 128, 128),
        "16 bit tiff": (128, 128, 128),
        "16 bit colour": (128, 128, 128),
        "16 bit and clear": (191, 191, 191),
        "clear": (255, 255, 255),
        "clear palette": (255, 255, 255),
        "grey": (9, 9, 9),
        "one frame": (0, 0, 0),
    }
    assert report.converted == {
        "CMYK": ["cmyk"],
        "16 bit": ["16 bit", "16 bit tiff", "16 bit colour"],
        "transparent": ["16 bit and clear", "clear", "clear palette"],
    }


def test_phone_pictures_stand_upright_and_their_second_picture_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    rows = [
        Row("turned", "x", encoded(noise((40, 30)), "JPEG", exif=exif)),
        Row("two", "x", encoded(FLAT, "MPO", save_all=True, append_images=[noise()])),
    ]
    samples, report = read(rows)
    assert [sample.image.size for sample in samples] == [(30, 40), (40, 30)]
    assert report.skipped == {}


@pytest.mark.parametrize("kept", [0.0, 0.6])
def test_the_rest_of_a_damaged_shard_is_skipped_and_the_next_shard_comes(kept: float, tmp_path: Path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number in range(2):
            add(tar, f"{number}.txt", b"a cat")
            add(tar, f"{number}.png", encoded(noise((100, 100))))
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: int(kept * len(whole))] or b"<html>")
    with tarfile.open(tmp_path / "1.tar", "w") as tar:
        add(tar, "9.txt", b"a cat")
        add(tar, "9.png", PICTURES[0])
    samples, report = read(tmp_path)
    assert [sample.key for sample in samples] == (["0", "9"] if kept else ["9"])
    assert report.skipped == {"damaged file": ["0.tar:1.png (1)", "0.tar"] if kept else ["0.tar"]}


def test_a_damaged_table_is_skipped_and_the_next_one_comes(tmp_path: Path):
    folder = parquet(tmp_path / "table", pa.array(PICTURES))
    (folder / "0b.parquet").write_bytes(half((folder / "0.parquet").read_bytes()))
    samples, report = read(folder)
    assert [sample.key for sample in samples] == ["7", "8", "9"]
    assert report.skipped == {"damaged file": ["0b.parquet"]}


def test_many_rows_keep_their_order_and_no_more_are_read_than_needed():
    read_so_far = []

    def rows():
        for number in itertools.count():
            read_so_far.append(number)
            yield Row(str(number), "a cat", PICTURES[number % 3])

    some = list(itertools.islice(read_samples(rows(), Report()), 100))
    assert [sample.key for sample in some] == [str(number) for number in range(100)]
    assert len(read_so_far) < 150


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "source must hold pictures, tar shards or tables with a picture column, got "),
        ({"a.parquet": b"PAR1"}, "source must be a table that can be read, got "),
        ({"a.jsonl": b"[" * 100_000}, "source must be a table that can be read, got "),
        (
            {"a.csv": b"caption,url\nx,y"},
            "a.csv must hold pictures or their paths, got addresses (url): download them ",
        ),
        ({"a.doc": b"x"}, "source must hold pictures, tar shards or tables with a picture column, got "),
        ({"a.csv": b"image,url\nx,y"}, "a.csv must have a column of captions (caption, captions, text, "),
    ],
    ids=["empty", "damaged", "nested", "addresses", "no pictures", "no captions"],
)
def test_source_that_holds_nothing_is_refused(content: dict[str, bytes], message: str, tmp_path: Path):
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="must") as error:
        open_source(tmp_path)
    assert message in str(error.value)


def test_source_that_is_no_source_is_named(tmp_path: Path):
    (tmp_path / "a.doc").write_text("x")
    for source in (tmp_path / "a.doc", tmp_path / "nowhere", "x" * 5000, "a\0b", ""):
        with pytest.raises(ValueError, match=r"^source must be ") as error:
            open_source(source)
        assert str(error.value).endswith(f"got {str(source)!r}")


class FakeDataset(list):
    """What we use of a Hugging Face dataset."""

    column_names = None

    def cast_column(self, name: str, feature: object) -> "FakeDataset":
        assert (name, feature) == ("jpg", {"decode": False})
        return self


def test_hugging_face_dataset_is_streamed_from_its_train_split(monkeypatch: pytest.MonkeyPatch):
    rows = [{"jpg": {"bytes": picture}, "txt": text} for picture, text in zip(PICTURES, CAPTIONS, strict=True)]
    asked = []

    def load_dataset(name: str, **settings: Any) -> dict[str, FakeDataset]:
        asked.append((name, settings))
        return {"train": FakeDataset(rows), "test": FakeDataset()}

    fake = SimpleNamespace(load_dataset=load_dataset, Image=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    samples, report = read(Path("owner/squares@v1"))
    assert asked == [("owner/squares", {"revision": "v1", "streaming": True})]
    assert [sample.caption for sample in samples] == CAPTIONS
    assert [sample.file for sample in samples] == PICTURES
    assert (report.read, report.skipped, report.passed_over) == (3, {}, {"other split": ["test"]})


@pytest.mark.parametrize("streamed", [False, True])
def test_hugging_face_dataset_without_pictures_is_refused(streamed: bool, monkeypatch: pytest.MonkeyPatch):
    class Numbers(FakeDataset):
        def cast_column(self, name: str, feature: object) -> Any:
            def cast() -> Iterator[Any]:  # as datasets does it
                yield pa.array([1]).cast(pa.struct({"bytes": pa.binary()}))

            return cast() if streamed else list(cast())

    train = Numbers([{"jpg": 3, "txt": "a cat"}])
    fake = SimpleNamespace(load_dataset=lambda name, **settings: train, Image=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    message = (
        r"^source must be a dataset with a split 'train' and pictures in it, got 'owner/numbers': Unsupported cast"
    )
    with pytest.raises(ValueError, match=message):
        open_source("owner/numbers")


def test_hugging_face_datasets_need_a_library_which_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = "datasets must be installed to read 'owner/squares', which is no file or folder here"
    with pytest.raises(ValueError, match=message):
        open_source("owner/squares")
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="which is a Hugging Face dataset: pip install datasets"):
        open_source(tmp_path)
