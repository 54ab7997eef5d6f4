"""`doctor` says what a fault's report needs, without secrets, and goes on where something fails."""

import re

import pytest

from dalle_mini.__main__ import main
from dalle_mini.commands import doctor


def test_everything_is_told_and_a_picture_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:secret@proxy.example.org:3128")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["doctor", "--port", "0"]) == 0
    told = capsys.readouterr().out
    lines = dict(line.split(": ", 1) for line in told.splitlines())
    assert re.search(r"jax \d.*torch \d.*gradio \d", lines["versions"])
    assert lines["device"].startswith("CPU")
    assert re.fullmatch(r"[\d.]+ GiB, .*", lines["memory"])
    assert lines["port 0"] == "free"
    assert re.fullmatch(r"loaded emoji in [\d.]+ s, drew in [\d.]+ s, score [\d.]+, seed 7", lines["a picture"])
    assert {"HTTPS_PROXY=http://...@proxy.example.org:3128", "HF_TOKEN=..."} <= set(lines["variables"].split())
    assert "secret" not in told


def test_what_fails_is_told_and_the_rest_as_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_picture", lambda model: (_ for _ in ()).throw(OSError("no\nroom")))
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "a picture: FAILED: no room" in told
    assert "temporary files: " in told
