"""Tables of lines are read back exactly, whatever separates and quotes; what is ambiguous is refused by its line."""

import csv
import io
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import encoded, pictures, read, write

from dalle_mini.training.data.sources import open_source

# Letters of any script, and everything that separates, quotes or ends something.
TEXT = st.text(
    st.one_of(st.sampled_from(list(" \"',;|\t\n\r\\#a")), st.characters(exclude_categories=["Cs", "Cc"])), max_size=30
)
TABLE = st.lists(TEXT, min_size=1, max_size=6)


def python_csv(rows: list[list[str]], **dialect: object) -> str:
    file = io.StringIO()
    csv.writer(file, **dialect).writerows(rows)  # type: ignore[arg-type]
    return file.getvalue()


def polars_csv(rows: list[list[str]], **dialect: object) -> str:
    frame = pl.DataFrame(rows[1:], schema=rows[0], orient="row")
    return frame.write_csv(**dialect)  # type: ignore[call-overload]


DIALECTS = {
    "python": python_csv,
    "python, tabs": lambda rows: python_csv(rows, dialect="excel-tab"),
    "python, unix": lambda rows: python_csv(rows, dialect="unix"),
    "python, semicolons": lambda rows: python_csv(rows, delimiter=";"),
    "python, bars": lambda rows: python_csv(rows, delimiter="|", quoting=csv.QUOTE_ALL),
    "pandas": lambda rows: pd.DataFrame(rows[1:], columns=rows[0]).to_csv(index=False),
    "pandas, tabs": lambda rows: pd.DataFrame(rows[1:], columns=rows[0]).to_csv(index=False, sep="\t"),
    "pandas, index": lambda rows: pd.DataFrame(rows[1:], columns=rows[0]).to_csv(),
    "polars": polars_csv,
    "polars, tabs": lambda rows: polars_csv(rows, separator="\t"),
    "polars, all quoted": lambda rows: polars_csv(rows, quote_style="always"),
    "polars, not numbers": lambda rows: polars_csv(rows, quote_style="non_numeric"),
    # LibreOffice: separators and quotes of its export dialog; "Quote all text cells" on or off; line feeds.
    "libreoffice": lambda rows: python_csv(rows, lineterminator="\n"),
    "libreoffice, semicolons": lambda rows: python_csv(rows, delimiter=";", quoting=csv.QUOTE_ALL, lineterminator="\n"),
    "libreoffice, single quotes": lambda rows: python_csv(
        rows, quotechar="'", quoting=csv.QUOTE_ALL, lineterminator="\n"
    ),
}


@pytest.mark.parametrize("first", ["picture", "caption"])
@pytest.mark.parametrize("name", DIALECTS)
def test_captions_come_back_as_they_were_written(name: str, first: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("table") / "t.csv"

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(TABLE)
    def check(captions: list[str]) -> None:
        rows = [["file_name", "text"], *([f"{n}.jpg", caption] for n, caption in enumerate(captions))]
        if first == "caption":
            rows = [row[::-1] for row in rows]
        path.write_text(DIALECTS[name](rows), encoding="utf-8", newline="")
        read_back = [(row.key, " ".join((row.caption or "").split()), row.problem) for row in open_source(path)]
        assert read_back == [(f"{n}.jpg", " ".join(caption.split()), "") for n, caption in enumerate(captions)]

    check()


def captions(folder: Path) -> list[tuple[str, str]]:
    return [(sample.key, sample.caption) for sample in read(folder)[0]]


@pytest.mark.parametrize(("name", "separator"), [("q.tsv", "\t"), ("q.csv", ",")])
def test_a_quote_that_never_closes_takes_no_other_row_along(name: str, separator: str, tmp_path: Path):
    rows = [
        "caption\tfile_name",
        '"Best day ever at the beach\t0.jpg',
        "a cat on the roof\t1.jpg",
        'a "red" dog on a lawn\t2.jpg',
    ]
    write(tmp_path, pictures() | {name: "\n".join(rows).replace("\t", separator) + "\n"})
    samples, report = read(tmp_path / name)
    assert [(sample.key, sample.caption.strip('"')) for sample in samples] == [
        ("0.jpg", "Best day ever at the beach"),
        ("1.jpg", "a cat on the roof"),
        ("2.jpg", 'a "red" dog on a lawn'),
    ]
    assert report.skipped == {}


def test_a_quote_that_closes_rows_later_is_refused_by_its_line(tmp_path: Path):
    rows = ["file_name,caption"] + [f'{n}.jpg,"a cat, and a dog"' for n in range(3)]
    rows += ['3.jpg,"a bird, and', "4.jpg,a fish", '5.jpg,"the end, at last"']
    write(tmp_path, pictures() | {"q.csv": "\n".join(rows)})
    samples, report = read(tmp_path / "q.csv")
    assert [sample.key for sample in samples] == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    assert samples[-1].caption == "the end, at last"
    assert report.skipped == {"quote that never closes": ["q.csv:5"]}


def test_captions_of_several_lines_are_whole_and_the_next_row_has_its_own_line(tmp_path: Path):
    text = 'file_name,caption\n0.jpg,"a cat\non a mat"\n1.jpg,"a ""red"" dog, asleep"\n9.jpg,x\n'
    write(tmp_path, pictures() | {"q.csv": text})
    samples, report = read(tmp_path / "q.csv")
    assert [sample.caption for sample in samples] == ["a cat on a mat", 'a "red" dog, asleep']
    assert report.skipped == {"missing file": ["q.csv:5 (9.jpg)"]}


def test_separators_in_a_caption_without_quotes_belong_to_it_where_nothing_else_can_be_meant(tmp_path: Path):
    write(tmp_path, pictures() | {"q.csv": "file_name,caption\n0.jpg,a cat, black, on a mat\n1.jpg,a dog\n"})
    samples, report = read(tmp_path / "q.csv")
    assert [sample.caption for sample in samples] == ["a cat, black, on a mat", "a dog"]
    assert report.converted == {"separators inside a caption without quotes": ["q.csv:2 (0.jpg)"]}
    write(tmp_path, {"q.csv": "file_name,caption,width\n0.jpg,a cat, black,3\n1.jpg,a dog,3\n"})
    samples, report = read(tmp_path / "q.csv")
    assert [sample.caption for sample in samples] == ["a dog"]
    assert report.skipped == {"more cells than columns": ["q.csv:2"]}


def test_quotes_with_backslashes_before_them_are_read(tmp_path: Path):
    text = 'file_name,caption\n0.jpg,"a \\"red\\" cat, black"\n1.jpg,"a dog"\n'
    write(tmp_path, pictures() | {"q.csv": text})
    assert captions(tmp_path) == [("0.jpg", 'a "red" cat, black'), ("1.jpg", "a dog")]


# Encodings

WRITTEN = {
    "cp1252": "ein Stück Käse auf dem Tisch",
    "cp1250": "zażółć gęślą jaźń na dachu",
    "cp1251": "красная машина стоит перед большим домом у дороги",
    "cp932": "屋根の上の猫と赤い車が見えます",
    "gb18030": "一只猫在桌子上，红色的汽车在房子前面",
    "utf-16": "a Käse",
    "utf-16-le": "a plain cat on a mat",
    "utf-8-sig": "Käse",
}


@pytest.mark.parametrize("encoding", WRITTEN)
def test_a_table_and_a_text_are_read_in_the_encoding_that_they_tell(encoding: str, tmp_path: Path):
    rows = [f"{n}.jpg,{WRITTEN[encoding]} {n}" for n in range(6)]
    write(tmp_path, pictures() | {"t.csv": "\n".join(["file_name,caption", *rows]).encode(encoding)})
    assert captions(tmp_path) == [(f"{n}.jpg", f"{WRITTEN[encoding]} {n}") for n in range(6)]
    alone = write(tmp_path / "alone", pictures(numbers=range(1)) | {"0.txt": (WRITTEN[encoding] * 2).encode(encoding)})
    samples, report = read(alone)
    assert [sample.caption for sample in samples] == [WRITTEN[encoding] * 2] or report.skipped


def test_one_letter_of_cp1252_in_the_last_of_many_rows_loses_nothing(tmp_path: Path):
    rows = [f"{n % 6}.jpg,a cat number {n}" for n in range(1000)]
    rows[601] = "1.jpg,a piece of Käse"
    write(tmp_path, pictures() | {"t.csv": "\n".join(["file_name,caption", *rows]).encode("cp1252")})
    samples, report = read(tmp_path / "t.csv")
    assert (report.read, report.kept) == (1000, 1000)
    assert samples[601].caption == "a piece of Käse"
    assert len(report.converted["read as cp1252"]) == 1000


def test_a_damaged_letter_in_a_table_of_utf8_loses_its_row_alone(tmp_path: Path):
    rows = ["0.jpg,Käse", "1.jpg,Brötchen", "2.jpg,K\udce4se", "3.jpg,a cat"]
    content = "\n".join(["file_name,caption", *rows]).encode(errors="surrogateescape")
    write(tmp_path, pictures() | {"t.csv": content})
    samples, report = read(tmp_path / "t.csv")
    assert [sample.caption for sample in samples] == ["Käse", "Brötchen", "a cat"]
    assert report.skipped == {"not UTF-8": ["t.csv:4"]}


def test_text_in_no_plain_encoding_is_refused_and_told(tmp_path: Path):
    # As good a text in one code of Cyrillic as in another.
    write(tmp_path, {"0.jpg": encoded(0), "0.txt": "красная машина перед домом".encode("koi8-r")})
    assert read(tmp_path)[1].skipped == {"caption in an unknown encoding": ["0.jpg"]}
