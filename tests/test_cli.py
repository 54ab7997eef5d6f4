"""The command line: bad input in one line, files where they are expected, the same pictures as from Python."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle_mini.__main__ import main
from dalle_mini.gallery import read_metadata
from dalle_mini.reconstruction import GAP, TILE
from dalle_mini.tokenizer import MAX_CHARACTERS
from dalle_mini.training.emoji.world import BACKGROUNDS


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command leaves on standard error."""
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err.strip()


@pytest.mark.parametrize(
    ("option", "value", "setting"),
    [
        ("--candidates", "0", "num_candidates"),
        ("--candidates", "17", "num_candidates"),
        ("--candidates", "2.5", "num_candidates"),
        ("--candidates", "nan", "num_candidates"),
        ("--candidates", "many", "num_candidates"),
        ("--seed", "-1", "seed"),
        ("--seed", "4294967296", "seed"),
        ("--condition-scale", "-1", "condition_scale"),
        ("--condition-scale", "inf", "condition_scale"),
        ("--temperature", "0", "temperature"),
        ("--top-k", "-1", "top_k"),
        ("--top-p", "0", "top_p"),
        ("--top-p", "1.5", "top_p"),
        ("--seamless", "z", "seamless"),
        ("--show", "10", "show"),
        ("--seconds", "0", "seconds"),
    ],
)
def test_bad_setting_is_named_with_rule_and_value(
    option: str, value: str, setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    line = refusal(["generate", "a cat", option, value, "--out", str(out)], capsys)
    assert line.startswith(f"error: {setting} must be ")
    assert value in line.rpartition("got ")[2]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["generate"], "error: prompt must be given, as PROMPT or with --prompts-file, got none"),
        (["generate", ""], "error: prompt must not be empty, got ''"),
        (["generate", "a cat", "  "], "error: prompt must not be empty, got '  '"),
        (["generate", "a cat", "\u200b"], "error: prompt must not be empty, got '\\u200b'"),
        (["generate", "a cat", "--out", "/proc"], "error: out must be a folder that can be written, got '/proc'"),
        (
            ["reconstruct", "assets/images/page.png", "--out", "/proc/x.png"],
            "error: out must be a folder that can be written, got '/proc'",
        ),
        (
            ["generate", "a cat", "--start", "nowhere.jpg"],
            "error: start must be an image that can be read, got 'nowhere.jpg' (No such file or directory)",
        ),
        (
            ["generate", "--vary", "nowhere.png"],
            "error: picture must be a PNG file that can be read, got 'nowhere.png'",
        ),
        (
            ["generate", "a cat", "--vary", "a.png"],
            "error: vary must be given without a prompt and a start, which are those of its file, got 'a.png'",
        ),
        (["generate", "a cat", "--bogus"], "error: No such option: --bogus"),
        (["generate", "a cat", "--seed"], "error: Option '--seed' requires an argument."),
        (
            ["evaluate", "--captions", "0"],
            "error: Invalid value for '--captions': Input should be greater than or equal to 1",
        ),
        (["publish", "emoji"], "error: Missing option '--out'."),
        (["xyzzy"], "error: No such command 'xyzzy'."),
    ],
)
def test_bad_command_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]):
    assert refusal(arguments, capsys) == line


@pytest.mark.parametrize("network", ["vqgan", "decoder", "dalle", "clip"])
def test_run_that_cannot_be_a_folder_is_named(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run").write_text("mine")
    line = refusal(["train", network, "--run", str(tmp_path / "run")], capsys)
    assert line == f"error: run must be a folder that can be written, got '{tmp_path / 'run'}'"


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00bad"], ids=["missing", "not text"])
def test_unreadable_prompts_file_is_named(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    line = refusal(["generate", "--prompts-file", str(path)], capsys)
    assert line == f"error: prompts-file must be a text file in UTF-8 that can be read, got '{path}'"


def test_out_that_is_a_file_is_named_before_anything_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").write_text("mine")
    line = refusal(["generate", "a cat", "--out", str(tmp_path / "out")], capsys)
    assert line == f"error: out must be a folder that can be written, got '{tmp_path / 'out'}'"


def test_model_that_is_nowhere_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    nowhere = str(tmp_path / "nowhere")
    assert "nowhere" in refusal(["generate", "a cat", "--model", nowhere, "--out", str(tmp_path / "out")], capsys)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), (b"text", "not a picture")], ids=["missing", "text"]
)
def test_picture_that_cannot_be_read_is_named(
    content: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    line = refusal(["reconstruct", str(path), "--out", str(tmp_path / "out.png")], capsys)
    assert line.startswith("error: picture must be an image that can be read, ")
    assert line.endswith(f"got '{path}' ({reason})")


def test_a_bad_command_ends_with_exit_code_2_and_no_traceback():
    command = [sys.executable, "-m", "dalle_mini", "generate", "a cat", "--candidates", "17"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: num_candidates must be a whole number from 1 to 16, got 17\n"


@pytest.mark.slow
def test_bench_of_a_model_that_is_nowhere_ends_with_one_line(tmp_path: Path):
    command = [sys.executable, "-m", "dalle_mini", "bench", "--model", str(tmp_path / "nowhere")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert re.fullmatch(r"error: .*nowhere.*\n", run.stderr)


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from dalle_mini.__main__ import main; code = main(['generate', '--help'])\n"
        "assert not {'jax', 'torch', 'gradio', 'transformers'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "--condition-scale" in run.stdout


def test_one_prompt_gives_the_pictures_that_python_gives(emoji, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert main(["generate", "a cat", "--candidates", "3", "--seed", "7", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"'a cat': 3 in {out}, best score ")
    assert ", seed 7, " in told
    for path in emoji.generate("a cat", num_candidates=3, seed=7).save(tmp_path / "python"):
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name
    assert {path.name for path in out.iterdir()} == {"01.png", "02.png", "03.png", "grid.png", "scores.json"}


def test_drawing_from_something_gives_the_pictures_that_python_gives(
    emoji, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    photo = Image.new("RGB", (90, 60), BACKGROUNDS["pink"])
    photo.save(tmp_path / "photo.png")
    asked: dict[str, Any] = {"negative_prompt": "blue", "seamless": "both", "num_candidates": 3, "show": 1, "seed": 7}
    line = ["--negative", "blue", "--seamless", "both", "--candidates", "3", "--show", "1", "--seed", "7"]
    begin = ["--start", str(tmp_path / "photo.png"), "--keep-rows", "3"]
    assert main(["generate", "a cat", *line, *begin, "--out", str(tmp_path / "out")]) == 0
    (expected,) = emoji.generate("a cat", start=photo, keep=3, **asked)
    expected.save_png(tmp_path / "python.png")
    assert (tmp_path / "out" / "01.png").read_bytes() == (tmp_path / "python.png").read_bytes()

    vary = ["--vary", str(tmp_path / "out" / "01.png"), "--strength", "0.25", "--seed", "8", "--candidates", "1"]
    assert main(["generate", *vary, "--out", str(tmp_path / "varied")]) == 0
    (expected,) = expected.vary(0.25, seed=8, num_candidates=1)
    expected.save_png(tmp_path / "python.png")
    assert (tmp_path / "varied" / "01.png").read_bytes() == (tmp_path / "python.png").read_bytes()
    assert capsys.readouterr().out.count("'a cat': 1 in ") == 2


def test_several_prompts_get_a_folder_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompts = ["a pizza", "🐈 left of a pizza", "‏قطة\x1b[31m", "a cat " * 2000]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts[1:]) + "\n", encoding="utf-8")
    arguments = ["generate", prompts[0], "--prompts-file", str(tmp_path / "prompts.txt"), "--candidates", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(prompts)
    assert "cut" in lines[3]  # and said so
    folders = sorted((tmp_path / "out").iterdir())
    assert [folder.name[:4] for folder in folders] == ["001-", "002-", "003-", "004-"]
    assert folders[0].name == "001-a-pizza"
    for folder, prompt in zip(folders, prompts, strict=True):
        assert read_metadata(folder / "01.png")["prompt"] == prompt.strip()[:MAX_CHARACTERS]
        assert [row["rank"] for row in json.loads((folder / "scores.json").read_text())] == [1]


def test_no_rerank_draws_without_torch(tmp_path: Path):
    out = tmp_path / "out"
    script = (
        "import sys; from dalle_mini.__main__ import main\n"
        f"code = main(['generate', 'a cat', '--candidates', '2', '--no-rerank', '--out', {str(out)!r}])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert ", not ranked, " in run.stdout
    assert [row["candidate"] for row in json.loads((out / "scores.json").read_text())] == [0, 1]
    assert "score" not in read_metadata(out / "01.png")


def test_reconstruction_stands_beside_the_picture(tmp_path: Path):
    photo = Image.new("RGB", (300, 200), BACKGROUNDS["blue"])
    photo.save(tmp_path / "photo.png")
    assert main(["reconstruct", str(tmp_path / "photo.png"), "--out", str(tmp_path / "both.png")]) == 0
    with Image.open(tmp_path / "both.png") as both:
        for place in (TILE // 2, TILE + GAP + TILE // 2):
            red, green, blue = both.convert("RGB").getpixel((place, TILE // 2))
            assert blue > 200 > green > red


def test_a_picture_of_16_bits_is_reconstructed_as_bright_as_it_is(tmp_path: Path):
    Image.fromarray(np.full((64, 64), 20_000, np.uint16)).save(tmp_path / "photo.png")
    assert main(["reconstruct", str(tmp_path / "photo.png"), "--out", str(tmp_path / "both.png")]) == 0
    with Image.open(tmp_path / "both.png") as both:
        assert both.convert("L").getpixel((32, 32)) == 20_000 >> 8
