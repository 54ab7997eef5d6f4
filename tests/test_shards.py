"""Shards hold the codes of the pictures, go on where they were stopped, and never mix VQGANs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from dalle_mini.__main__ import main
from dalle_mini.model_names import EMBEDDED, PUBLISHED_VQGAN
from dalle_mini.training.data import encode as encoding
from dalle_mini.training.data.encode import encode
from dalle_mini.training.data.shards import FACTS, fingerprint, read_codes, vqgan_location
from vqgan import Codec, load

COUNT, SHARD_ROWS = 22, 9  # two whole shards and a rest
SHARDS = ["00000.parquet", "00001.parquet", "00002.parquet"]


@pytest.fixture(scope="module")
def painter() -> Codec:
    return load(EMBEDDED / "vqgan")


def picture(number: int) -> Image.Image:
    """Wider than high, every one different."""
    image = Image.new("RGB", (96, 64), (number * 37 % 256, 255 - number * 11, number * 91 % 256))
    image.paste((255, 255, 255), (number, 10, number + 30, 40))
    return image


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(COUNT):
        picture(number).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"square number {number}")
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "20.txt").unlink()
    return folder


@pytest.fixture(scope="module")
def shards(source: Path, painter: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted encode writes."""
    out = tmp_path_factory.mktemp("encoded")
    encode(source, painter, out=out, shard_rows=SHARD_ROWS)
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def other_codes(painter: Codec) -> Codec:
    """The same network with its codebook in another order."""
    quantize = jax.tree.map(lambda codebook: codebook[::-1], painter.params["quantize"])
    return Codec(painter.config, {**painter.params, "quantize": quantize})


def copy(shards: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in content(shards).items():
        (folder / name).write_bytes(data)
    return folder


def test_shards_hold_the_codes_of_the_pictures_that_can_be_used(shards: Path, painter: Codec):
    kept = [number for number in range(COUNT) if number not in (3, 20)]
    captions, codes, vqgan, keys = read_codes([shards])
    assert [Path(key).stem for key in keys] == [f"{number:02d}" for number in kept]
    assert captions == [f"square number {number}" for number in kept]
    assert (codes.dtype, codes.shape) == (np.uint16, (len(kept), 64))
    pixels = np.stack([np.asarray(ImageOps.fit(picture(number), (64, 64))) for number in kept])
    np.testing.assert_array_equal(codes, painter.encode(pixels))
    assert vqgan == fingerprint(painter)
    assert sorted(content(shards)) == [*SHARDS, "sheet.png", "statistics.json"]


def test_statistics_are_those_of_the_shards(shards: Path, painter: Codec):
    _, codes, vqgan, _ = read_codes([shards])
    statistics = json.loads((shards / "statistics.json").read_text())
    uses = np.unique(codes, return_counts=True)[1] / codes.size
    assert statistics == {
        "vqgan": vqgan,
        "codebook": {
            "used": len(uses),
            "size": 2048,
            "perplexity": pytest.approx(np.exp(-(uses * np.log(uses)).sum()), abs=0.01),
        },
        "words_per_caption": 3.0,
        "summary": "20 of 22 kept, 1 not a picture, 1 no caption",
        "advice": [],
        "read": COUNT,
        "kept": COUNT - 2,
        "skipped": {
            "no caption": {"count": 1, "keys": ["20.png"]},
            "not a picture": {"count": 1, "keys": ["03.png"]},
        },
        "passed_over": {},
        "converted": {},
    }


def test_the_sheet_shows_pictures_decoded_from_the_codes(shards: Path, painter: Codec):
    codes = read_codes([shards]).codes.astype(np.int32)
    with Image.open(shards / "sheet.png") as sheet:
        assert sheet.size == (4 * 64 + 3 * 2, 4 * 64 + 3 * 2)
        first = np.asarray(sheet.convert("RGB"))[:64, :64]
    np.testing.assert_array_equal(first, painter.decode(codes[:1])[0])


class StopError(Exception):
    """Ends an encode in its middle."""


def test_stopped_and_resumed_gives_what_an_uninterrupted_encode_gives(
    source: Path, shards: Path, painter: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = encoding._write

    def stop_before_renaming(path: Path, *rest: Any) -> None:
        if path.name == "00001.parquet":
            path.with_name(path.name + ".partial").write_bytes(b"half a shard")
            raise StopError
        write(path, *rest)

    monkeypatch.setattr(encoding, "_write", stop_before_renaming)
    with pytest.raises(StopError):
        encode(source, painter, out=tmp_path, shard_rows=SHARD_ROWS)
    assert sorted(content(tmp_path)) == ["00000.parquet", "00001.parquet.partial"]
    with pytest.raises(ValueError, match=r"must hold the shards and statistics.json of a finished encode"):
        read_codes([tmp_path])

    written = []
    monkeypatch.setattr(encoding, "_write", lambda path, *rest: (written.append(path.name), write(path, *rest)))
    encode(source, painter, out=tmp_path, shard_rows=SHARD_ROWS)
    assert written == SHARDS[1:]
    assert content(tmp_path) == content(shards)


def test_a_finished_encode_is_not_encoded_again(
    source: Path, shards: Path, painter: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = copy(shards, tmp_path / "out")
    monkeypatch.setattr(Codec, "encode", None)
    encode(source, painter, out=out, shard_rows=SHARD_ROWS)
    assert content(out) == content(shards)


@pytest.mark.parametrize("change", ["caption", "picture", "one more", "one less", "size of a shard"])
def test_a_source_that_changed_is_refused(change: str, source: Path, shards: Path, painter: Codec, tmp_path: Path):
    changed, out = copy(source, tmp_path / "source"), copy(shards, tmp_path / "out")
    if change == "caption":
        (changed / "12.txt").write_text("another caption")
    elif change == "picture":
        (changed / "12.png").write_bytes((source / "13.png").read_bytes())
    elif change == "one more":
        (changed / "99.png").write_bytes(b"")
    elif change == "one less":
        (changed / "21.png").unlink()
    shard_rows = SHARD_ROWS - (change == "size of a shard")
    what = "pictures as the source has" if change == "picture" else "rows of the same source"
    with pytest.raises(ValueError, match=rf"0000\d.parquet must be of the same {what}, got others: use"):
        encode(changed, painter, out=out, shard_rows=shard_rows)
    assert {name: data for name, data in content(out).items() if name in SHARDS} == {
        name: data for name, data in content(shards).items() if name in SHARDS
    }


def test_a_shard_that_does_not_say_which_pictures_it_is_of_is_kept(
    source: Path, shards: Path, painter: Codec, tmp_path: Path
):
    """As it was written before shards said so."""
    out = copy(shards, tmp_path / "out")
    table = pq.read_table(out / SHARDS[0])
    facts = json.loads(table.schema.metadata[FACTS])
    del facts["pictures"]
    pq.write_table(table.replace_schema_metadata({FACTS: json.dumps(facts)}), out / SHARDS[0])
    before = (out / SHARDS[0]).read_bytes()
    encode(source, painter, out=out, shard_rows=SHARD_ROWS)
    assert (out / SHARDS[0]).read_bytes() == before


def test_shards_of_another_vqgan_are_refused_by_name(source: Path, shards: Path, painter: Codec, tmp_path: Path):
    other = other_codes(painter)
    with pytest.raises(
        ValueError, match=r"00000.parquet must be of the VQGAN \w{12} \(2048 codes, 64 px\), got \w{12}"
    ):
        encode(source, other, out=copy(shards, tmp_path / "mixed"), shard_rows=SHARD_ROWS)
    encode(source, other, out=tmp_path / "other", shard_rows=SHARD_ROWS)
    with pytest.raises(
        ValueError, match=r"other/00000.parquet must be of the VQGAN \w{12} .* as the others, got \w{12}"
    ):
        read_codes([shards, tmp_path / "other"])


def test_only_what_decides_the_codes_is_in_the_fingerprint(painter: Codec):
    params = painter.params
    decoder = Codec(painter.config, {**params, "decoder": jax.tree.map(lambda leaf: leaf + 1, params["decoder"])})
    encoder = Codec(painter.config, {**params, "encoder": jax.tree.map(lambda leaf: leaf + 1, params["encoder"])})
    assert fingerprint(decoder) == fingerprint(painter)
    assert len({fingerprint(vqgan)["sha256"] for vqgan in (painter, encoder, other_codes(painter))}) == 3


def test_several_folders_of_one_vqgan_are_read_as_one(shards: Path, tmp_path: Path):
    once, twice = read_codes([shards]), read_codes([shards, copy(shards, tmp_path / "more")])
    assert twice.captions == once.captions * 2
    np.testing.assert_array_equal(twice.codes, np.concatenate([once.codes, once.codes]))


def test_incomplete_or_damaged_shards_are_named(shards: Path, tmp_path: Path):
    missing = copy(shards, tmp_path / "missing")
    (missing / "00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"missing must hold 20 samples, as its statistics.json says, got 11"):
        read_codes([missing])
    damaged = copy(shards, tmp_path / "damaged")
    (damaged / "00001.parquet").write_bytes((shards / "00001.parquet").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"00001.parquet must be a whole shard that encode wrote: "):
        read_codes([damaged])


def test_a_source_without_a_usable_picture_is_refused(painter: Codec, tmp_path: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="source must hold pictures with captions, got 0 of 1 kept, 1 no caption"):
        encode(tmp_path / "source", painter, out=tmp_path / "out")
    assert not (tmp_path / "out" / "statistics.json").exists()


@pytest.mark.slow
def test_several_devices_share_the_work_and_give_the_same_codes(source: Path, shards: Path, tmp_path: Path):
    script = """
import sys
from pathlib import Path
from dalle_mini import device
device.set_up()
import jax
from dalle_mini.training.data.encode import encode
from vqgan import Codec, load

used, encode_on_one = set(), Codec.encode
def noting(vqgan, pixels):
    used.add(jax.tree.leaves(vqgan.params)[0].device)
    return encode_on_one(vqgan, pixels)

Codec.encode = noting
encode(sys.argv[1], load(sys.argv[2]), out=Path(sys.argv[3]))
assert used == set(jax.local_devices()), used
assert len(used) == 2
"""
    arguments = [str(source), str(EMBEDDED / "vqgan"), str(tmp_path / "out")]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags}
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    ours, theirs = read_codes([tmp_path / "out"]), read_codes([shards])
    assert (ours.captions, ours.vqgan) == (theirs.captions, theirs.vqgan)
    np.testing.assert_array_equal(ours.codes, theirs.codes)


def test_presets_and_folders_of_models_name_their_vqgan():
    assert vqgan_location("emoji") == EMBEDDED / "vqgan"
    assert vqgan_location(str(EMBEDDED)) == EMBEDDED / "vqgan"
    assert vqgan_location("mega") == PUBLISHED_VQGAN
    assert vqgan_location(str(EMBEDDED / "vqgan")) == str(EMBEDDED / "vqgan")
    assert vqgan_location("someone/vqgan") == "someone/vqgan"


def test_a_folder_of_pictures_is_filtered_and_encoded_by_two_commands(
    source: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    filtered, out = str(tmp_path / "filtered"), str(tmp_path / "encoded")
    assert main(["filter", str(source), "--out", filtered]) == 0
    assert capsys.readouterr().out == f"{source}: 20 of 22 kept, 1 not a picture, 1 no caption; see {filtered}\n"
    assert main(["encode", filtered, "--out", out]) == 0
    told = f"{filtered}: 20 of 20 kept; not looked at: 1 .json without a picture; see {out}\n"
    assert capsys.readouterr().out == told
    encoded, expected = read_codes([Path(out)]), read_codes([shards])
    assert encoded.captions == expected.captions
    np.testing.assert_array_equal(encoded.codes, expected.codes)


def test_a_vqgan_that_is_nowhere_is_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["encode", str(source), "--out", str(tmp_path / "out"), "--vqgan", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "nowhere" in told
    assert told.count("\n") == 1
