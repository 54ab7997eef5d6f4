"""Every layout that people have their pictures and captions in gives the same pairs; what is lost has its reason."""

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import CAPTIONS, EXPECTED, encoded, pairs, pictures, read, tar, write

from dalle_mini.training.data.sources import open_source

ROWS = list(enumerate(CAPTIONS))


def lines(separator: str = ",", header: str = "file_name{}caption\n", row: str = "{}.jpg{}{}\n") -> str:
    return header.format(separator) + "".join(row.format(n, separator, caption) for n, caption in ROWS)


def of_parquet(folder: Path, **columns: Any) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "x.parquet")
    return folder / "x.parquet"


PICTURES = [picture for picture, _ in EXPECTED]
TEXTS = {f"{n}.txt": caption for n, caption in ROWS}
COCO = {
    "images": [{"id": 10 * n, "file_name": f"{n}.jpg", "width": 3} for n in range(6)],
    "annotations": [{"image_id": 10 * n, "id": n, "caption": caption} for n, caption in reversed(ROWS)],
}
KARPATHY = {
    "images": [{"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": text}]} for n, text in ROWS],
    "dataset": "flickr8k",
}

FOLDERS: dict[str, dict[str, str | bytes]] = {
    "txt beside": pictures() | TEXTS,
    "caption beside": pictures() | {f"{n}.caption": caption for n, caption in ROWS},
    "upper case": pictures("{}.JPG") | {f"{n}.TXT": caption for n, caption in ROWS},
    "mixed case": pictures("IMG_{}.JPG") | {f"img_{n}.txt": caption for n, caption in ROWS},
    "name.jpg.txt": pictures() | {f"{n}.jpg.txt": caption for n, caption in ROWS},
    "json beside": pictures() | {f"{n}.json": json.dumps({"caption": caption, "x": 1}) for n, caption in ROWS},
    "dots in names": pictures("cat.{}.jpg") | {f"cat.{n}.txt": caption for n, caption in ROWS},
    "texts apart": pictures("images/{}.jpg") | {f"texts/{n}.txt": caption for n, caption in ROWS},
    "jfif": pictures("{}.jfif") | TEXTS,
    "csv of tabs": pictures() | {"train.csv": lines("\t", "filepath{}title\n")},
    "csv of semicolons": pictures() | {"train.csv": lines(";")},
    "csv of bars": pictures() | {"results.csv": lines("| ", "image_name{}comment\n")},
    "csv with spaces": pictures() | {"train.csv": lines(", ")},
    "csv of Excel": pictures() | {"train.csv": "sep=;\r\n" + lines(";").replace("\n", "\r\n")},
    "csv of an old Mac": pictures() | {"train.csv": lines().replace("\n", "\r")},
    "csv in UTF-16": pictures() | {"train.csv": lines("\t").encode("utf-16")},
    "csv with a mark": pictures() | {"train.csv": "\ufeff" + lines()},
    "csv of lists": pictures() | {"train.csv": lines(";", row='{}.jpg{}["{}"]\n')},
    "windows paths": pictures("a/b/{}.jpg") | {"train.csv": lines(row="a\\b\\{}.jpg{}{}\n")},
    "paths of elsewhere": pictures("a/b/{}.jpg") | {"train.csv": lines(row="C:\\me\\b\\{}.jpg{}{}\n")},
    "names without suffix": pictures("images/{}.jpg") | {"train.csv": lines(row="{}{}{}\n")},
    "no header": pictures() | {"list.csv": lines(header="")},
    "imagefolder": pictures("train/{}.jpg")
    | {"train/metadata.jsonl": "".join(json.dumps({"file_name": f"{n}.jpg", "text": c}) + "\n" for n, c in ROWS)}
    | {"test/9.jpg": encoded(9), "test/metadata.jsonl": '{"file_name": "9.jpg", "text": "a test"}\n'},
    "imagefolder of csv": pictures("train/{}.jpg") | {"train/metadata.csv": lines(), "test/9.jpg": encoded(9)},
    "coco": pictures("train2017/{}.jpg")
    | {"annotations/captions_train2017.json": json.dumps(COCO), "annotations/instances_train2017.json": "{}"}
    | {"annotations/captions_val2017.json": json.dumps(COCO), "val2017/9.jpg": encoded(9)},
    "flickr8k": pictures("Images/{}.jpg") | {"captions.txt": lines(header="image{}caption\n")},
    "flickr8k renamed": pictures("Images/{}.jpg") | {"captions.csv": lines(header="image{}caption\n")},
    "flickr8k of old": pictures("Flicker8k_Dataset/{}.jpg")
    | {"Flickr8k.token.txt": lines("\t", header="", row="{}.jpg#0{}{}\n")},
    "karpathy": pictures("images/{}.jpg") | {"dataset_flickr8k.json": json.dumps(KARPATHY)},
    "kohya": pictures() | {"meta_cap.json": json.dumps({str(n): {"caption": caption} for n, caption in ROWS})},
    "json by name": pictures() | {"captions.json": json.dumps({f"{n}.jpg": [caption] for n, caption in ROWS})},
    "json by column": pictures()
    | {"captions.json": json.dumps({"image": {n: f"{n}.jpg" for n in range(6)}, "caption": dict(ROWS)})},
    "two formats of one table": pictures()
    | {"m.csv": lines(), "m.jsonl": json.dumps({"file_name": "0.jpg", "text": CAPTIONS[0]})},
}


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_gives_its_pairs(files: dict[str, str | bytes], tmp_path: Path):
    assert sorted(pairs(write(tmp_path, files))) == sorted(EXPECTED)


@pytest.mark.parametrize("name", ["csv of tabs", "csv with spaces", "flickr8k", "coco", "karpathy"])
def test_a_table_alone_finds_its_pictures(name: str, tmp_path: Path):
    folder = write(tmp_path, FOLDERS[name])
    table = next(
        folder / path for path in FOLDERS[name] if "captions" in path or path in ("train.csv", "dataset_flickr8k.json")
    )
    assert sorted(pairs(table)) == sorted(EXPECTED)


def of_base64(text: Callable[[bytes], str]) -> str:
    return "".join(json.dumps({"image": text(base64.b64encode(p)), "caption": c}) + "\n" for p, c in EXPECTED)


TABLES: dict[str, Callable[[Path], Path]] = {
    "binary": lambda folder: of_parquet(folder, image=PICTURES, caption=CAPTIONS),
    "hugging face's": lambda folder: of_parquet(folder, image=[{"bytes": p} for p in PICTURES], text=CAPTIONS),
    "webp column": lambda folder: of_parquet(folder, key=list("abcdef"), caption=CAPTIONS, url=CAPTIONS, webp=PICTURES),
    "lists": lambda folder: of_parquet(folder, image=PICTURES, caption=[[c] for c in CAPTIONS]),
    "sentences": lambda folder: of_parquet(folder, image=PICTURES, sentences=[[c] for c in CAPTIONS]),
    "dicts": lambda folder: of_parquet(folder, image=PICTURES, sentences=[[{"raw": c}] for c in CAPTIONS]),
    "bytes": lambda folder: of_parquet(folder, image=PICTURES, caption=[c.encode() for c in CAPTIONS]),
    "TEXT is null": lambda folder: of_parquet(
        folder, image=PICTURES, TEXT=pa.array([None] * 6, pa.string()), blip_caption=CAPTIONS
    ),
    "base64": lambda folder: write(folder, {"x.jsonl": of_base64(bytes.decode)}) / "x.jsonl",
    "data address": lambda folder: (
        write(folder, {"x.jsonl": of_base64(lambda text: "data:image/jpeg;base64," + text.decode())}) / "x.jsonl"
    ),
}


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_a_table_of_pictures_gives_its_pairs(make: Callable[[Path], Path], tmp_path: Path):
    path = make(tmp_path)
    assert pairs(path) == EXPECTED
    assert pairs(path.parent) == EXPECTED


def test_base64_longer_than_the_limit_of_csv_is_read(tmp_path: Path):
    picture = encoded(0) + bytes(200_000)
    text = "caption\timage\n" + "".join(f"{c}\t{base64.b64encode(picture).decode()}\n" for c in CAPTIONS)
    assert [caption for _, caption in pairs(write(tmp_path, {"x.tsv": text}) / "x.tsv")] == CAPTIONS


TARS: dict[str, dict[str, str | bytes]] = {
    "sorted": dict(sorted((pictures() | TEXTS).items())),
    "not sorted": pictures() | TEXTS,
    "texts first": TEXTS | pictures(),
    "dots": pictures("./cat.{}.jpg") | {f"./cat.{n}.txt": caption for n, caption in ROWS},
    "jfif": pictures("{}.jfif") | TEXTS,
    "caption and case": pictures("{}.JPEG") | {f"{n}.CAPTION": caption for n, caption in ROWS},
    "of a Mac": {f"._{n}.jpg": b"Mac" for n in range(6)} | pictures() | TEXTS,
    "json": pictures() | {f"{n}.json": json.dumps({"caption": caption}) for n, caption in ROWS},
    "with fields": pictures() | TEXTS | {f"{n}.seg.png": encoded(n, "PNG") for n in range(6)} | {"0.cls": "3"},
}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("files", TARS.values(), ids=TARS)
def test_a_tar_gives_its_pairs(files: dict[str, str | bytes], mode: str, tmp_path: Path):
    path = tar(tmp_path / "0.tar", files, mode)
    assert pairs(path) == EXPECTED
    assert pairs(tmp_path) == EXPECTED


def test_members_of_a_tar_that_lack_the_other_part_are_told(tmp_path: Path):
    path = tar(
        tmp_path / "0.tar", {"0.jpg": encoded(0), "1.txt": "a cat", "2.doc": b"", "3.jpg": encoded(3), "3.txt": "x"}
    )
    samples, report = read(path)
    assert [sample.caption for sample in samples] == ["x"]
    assert report.skipped == {"no caption": ["0.tar:0.jpg (0)"], "no picture": ["0.tar:1 (1)"]}
    assert report.passed_over == {"other suffix .doc": ["0.tar:2.doc"]}


# Several captions


@pytest.mark.parametrize(
    "files",
    [
        {"0.txt": "a bird\n\n a red bird \r\nthe bird\n"},
        {"0.json": '{"captions": ["a bird", "a red bird", "the bird"]}'},
        {"0.json": '["a bird", "a red bird", "the bird"]'},
        {"m.csv": "image,caption\n0.jpg,a bird\n0.jpg,a red bird\n0.jpg,the bird\n"},
        {"m.csv": "image,caption_1,caption_2,caption3\n0.jpg,a bird,a red bird,the bird\n"},
        {"m.csv": "image;text;blip_caption;caption2\n0.jpg;a bird;a red bird;the bird\n"},
        {"m.csv": 'image;caption\n0.jpg;["a bird", "a red bird", "the bird"]\n'},
        {"m.csv": "image;caption\n0.jpg;['a bird', 'a red bird', 'the bird']\n"},
    ],
    ids=["lines", "json", "list", "rows", "numbered", "several columns", "list in json", "list in python"],
)
def test_several_captions_of_a_picture_are_several_samples_of_one_key(files: dict[str, str | bytes], tmp_path: Path):
    samples, report = read(write(tmp_path, files | {"0.jpg": encoded(0)}))
    assert [(sample.key, sample.caption) for sample in samples] == [
        ("0.jpg", caption) for caption in ("a bird", "a red bird", "the bird")
    ]
    assert (report.read, report.kept) == (3, 3)


def test_tags_are_one_caption(tmp_path: Path):
    files = {"0.jpg": encoded(0), "m.jsonl": '{"file_name": "0.jpg", "tags": ["cat", "roof"]}'}
    assert pairs(write(tmp_path, files)) == [(encoded(0), "cat, roof")]


# Nothing is lost in silence


def test_what_was_not_looked_at_is_counted(tmp_path: Path):
    files = pictures("train/{}.jpg") | {f"train/{n}.txt": c for n, c in ROWS}
    files |= {
        "test/7.jpg": encoded(7),
        ".hidden/8.jpg": encoded(8),
        "train/notes.doc": b"",
        "train/odd.txt": "x",
        "LICENSE": b"",
    }
    samples, report = read(write(tmp_path, files))
    assert len(samples) == 6
    assert report.passed_over == {
        "other split": ["test/7.jpg"],
        "hidden": [".hidden/8.jpg"],
        "other suffix .doc": ["train/notes.doc"],
        "other suffix (none)": ["LICENSE"],
        ".txt without a picture": ["train/odd.txt"],
    }
    assert report.summary().startswith("6 of 6 kept; not looked at: 1 ")


def test_other_splits_are_passed_over_only_beside_a_split_to_train_on(tmp_path: Path):
    for name, numbers in {"train-0.parquet": [0, 1], "test-0.parquet": [2], "validation-0.parquet": [3]}.items():
        pq.write_table(
            pa.table({"image": [PICTURES[n] for n in numbers], "text": [CAPTIONS[n] for n in numbers]}), tmp_path / name
        )
    samples, report = read(tmp_path)
    assert [sample.caption for sample in samples] == CAPTIONS[:2]
    assert report.passed_over == {"other split": ["test-0.parquet", "validation-0.parquet"]}
    (tmp_path / "train-0.parquet").unlink()
    assert [sample.caption for sample in read(tmp_path)[0]] == CAPTIONS[2:4]


def test_a_column_of_splits_is_obeyed(tmp_path: Path):
    rows = "image,caption,split\n0.jpg,a cat,train\n1.jpg,a dog,test\n2.jpg,a bird,val\n3.jpg,a fish,train\n"
    samples, report = read(write(tmp_path, pictures() | {"m.csv": rows}))
    assert [sample.caption for sample in samples] == ["a cat", "a fish"]
    assert report.passed_over["other split"] == ["m.csv:3", "m.csv:4"]


def test_links_are_followed_once(tmp_path: Path):
    folder = write(tmp_path, {f"real/{name}": content for name, content in (pictures() | TEXTS).items()}) / "real"
    (tmp_path / "source").mkdir()
    os.symlink(folder, tmp_path / "source" / "a")
    os.symlink(folder, tmp_path / "source" / "b")
    os.symlink(tmp_path / "source", folder / "loop")
    assert pairs(tmp_path / "source") == EXPECTED


def test_a_path_that_several_pictures_have_is_refused(tmp_path: Path):
    files = {
        "a/0.jpg": encoded(0),
        "b/0.jpg": encoded(1),
        "b/1.jpg": encoded(1),
        "m.csv": "image,caption\n0.jpg,a cat\n1.jpg,x\n",
    }
    samples, report = read(write(tmp_path, files))
    assert [sample.caption for sample in samples] == ["x"]
    assert report.skipped == {"path that several pictures have": ["m.csv:2 (0.jpg)"]}


@pytest.mark.parametrize("address", ["https://example.com/1.jpg", "s3://bucket/1.jpg"])
def test_addresses_are_named_with_what_to_do(address: str, tmp_path: Path):
    write(tmp_path, {"m.csv": f"image,caption\n{address},a cat\n"})
    report = read(tmp_path / "m.csv")[1]
    assert report.skipped == {"address instead of a picture": ["m.csv:2"]}
    assert "download them with img2dataset" in report.explained()
    write(tmp_path, {"m.csv": f"URL,TEXT\n{address},a cat\n"})
    with pytest.raises(
        ValueError, match=r"m\.csv must hold pictures or their paths, got addresses \(URL\): download them"
    ):
        open_source(tmp_path / "m.csv")


# Tables without captions


@pytest.mark.parametrize("files", [{"m.csv": "file_name\n0.jpg\n1.jpg\n"}, {"train.txt": "0.jpg\n1.jpg\n"}, {}])
def test_no_captions_are_asked_for_where_none_are_needed(files: dict[str, str | bytes], tmp_path: Path):
    write(tmp_path, pictures(numbers=range(2)) | files)
    for source in (tmp_path, *(tmp_path / name for name in files)):
        assert [file for file, _ in pairs(source, captioned=False)] == PICTURES[:2]
    for name in files:
        with pytest.raises(ValueError, match=re.escape(name) + " must have a column of captions"):
            open_source(tmp_path / name)


def test_a_parquet_of_pictures_alone_and_a_picture_of_several_captions_are_one_each(tmp_path: Path):
    assert len(pairs(of_parquet(tmp_path / "a", image=PICTURES), captioned=False)) == 6
    rows = "image,caption\n0.jpg,a cat\n0.jpg,a dog\n"
    assert len(pairs(write(tmp_path / "b", pictures(numbers=range(1)) | {"m.csv": rows}), captioned=False)) == 1


# Keys


def test_keys_that_are_empty_or_another_pictures_are_replaced_by_the_place(tmp_path: Path):
    keys = [7, 7, None, 8, 7, 9]
    samples, report = read(of_parquet(tmp_path, image=PICTURES, caption=CAPTIONS, id=keys))
    assert [sample.key for sample in samples] == ["7", "x.parquet:1", "x.parquet:2", "8", "x.parquet:4", "9"]
    assert report.converted == {
        "key of another picture: the place in the source instead": ["x.parquet:1", "x.parquet:4"],
        "no key: the place in the source instead": ["x.parquet:2"],
    }


def test_keys_that_begin_again_in_every_shard_stay_different(tmp_path: Path):
    for number in range(2):
        tar(tmp_path / f"{number}.tar", {"0.jpg": encoded(number), "0.txt": CAPTIONS[number]})
    assert [sample.key for sample in read(tmp_path)[0]] == ["0", "1.tar:0"]


# The table in docs/train.md

TRAIN = (Path(__file__).parents[1] / "docs" / "train.md").read_text(encoding="utf-8")
DOCUMENTED = re.findall(
    r"^\| ([^|`]+(?:`[^`]+`)?) \| (`.+`) \|$", TRAIN.partition("### Layouts")[2].partition("\n## ")[0], re.MULTILINE
)


def build(folder: Path, files: str) -> Path:
    """`name` is a picture; `name`: `content` a file of text, a Parquet of columns or a tar of members."""
    for name, content in re.findall(r"`([^`]+)`(?:: `([^`]+)`)?", files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            of_cells = {"image": [encoded(0)], "webp": [encoded(0, "WEBP")], "caption": ["a cat"]}
            pq.write_table(pa.table({column: of_cells.get(column, ["x"]) for column in content.split(", ")}), path)
        elif name.endswith(".tar"):
            tar(path, {member: encoded(0) if member.endswith(".jpg") else "a cat" for member in content.split(", ")})
        else:
            path.write_bytes(content.replace("\\n", "\n").replace("\\t", "\t").encode() if content else encoded(0))
    return folder


@pytest.mark.parametrize(("layout", "files"), DOCUMENTED, ids=[layout for layout, _ in DOCUMENTED])
def test_a_documented_layout_is_read(layout: str, files: str, tmp_path: Path):
    captioned = "train vqgan" not in layout
    captions = [caption for _, caption in pairs(build(tmp_path, files), captioned=captioned)]
    expected = ["a cat", "a cat on a mat"] if "several" in layout else ["a cat"] if captioned else ["not needed"]
    assert captions == expected


def test_every_line_of_the_documented_layouts_is_tried():
    table = TRAIN.partition("### Layouts")[2].partition("\n## ")[0]
    assert len(DOCUMENTED) == table.count("\n| ") - 1 >= 15
