"""A VQGAN, a dVAE and a CLIP of one's own pictures.

Contract: each function reads its source once, into a file of pixels that is mapped into memory and never held in it;
step k's batch is a function of (seed, k) and of that file, so that a stopped run goes on where it was, to the bit, and
without the source. Results are the parts of RUN/model that `dalle_mini.load` reads. In RUN/vqgan, RUN/dvae and
RUN/clip are

    pictures.npy    uint8 [M, S, S, 3]: the centred squares that `encode` would show, at the size of the network
    pictures.json   written last: the source, keys and captions, and what was skipped and why

and what a run has (training/run.py). What `held_back` says is not trained on, as by the text-to-code model.

Pictures smaller than the network's are skipped, not enlarged: a VQGAN would learn their blur.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

import vqgan
from dalle_mini import device
from dalle_mini.pictures import square
from dalle_mini.training.clip.config import ClipTrainConfig
from dalle_mini.training.data.rows import read_samples
from dalle_mini.training.data.shards import held_back
from dalle_mini.training.data.skipped import Report
from dalle_mini.training.data.sources import open_source
from dalle_mini.training.dvae.config import DVAETrainConfig
from dalle_mini.training.dvae.train import train as fit_dvae
from dalle_mini.training.run import begin, check_own_codec, check_same
from dalle_mini.training.run_tokenizer import VOCABULARY, make_tokenizer
from dalle_mini.training.vqgan.config import VQGANTrainConfig
from dalle_mini.training.vqgan.train import check
from dalle_mini.training.vqgan.train import train as fit_vqgan
from dalle_mini.training.vqgan.train_step import Batch
from vqgan.config import CodecConfig, DVAEConfig, VQGANConfig
from vqgan.files import write_json

SHOWN = 16  # held-back pictures on a sheet, at most
PIXELS, FACTS = "pictures.npy", "pictures.json"

logger = logging.getLogger(__name__)


class Pictures(NamedTuple):
    pixels: UInt8[np.ndarray, "M S S 3"]  # mapped into memory
    keys: list[str]
    captions: list[str]
    report: Report


def train_vqgan(source: str | Path, run: Path, *, sizes: VQGANConfig, config: VQGANTrainConfig) -> Report:
    """Pictures to codes and back, trained on all local devices; captions are not needed.

    Says what became of the rows of the source. Raises ValueError, before anything is allocated, for settings that do
    not go together, another recipe than the one this run was begun with, a run whose text-to-code model has another
    VQGAN, and a source with fewer than 2 pictures, one to train on and one to look at.
    """
    device.set_up()
    check(sizes, config, devices=len(jax.local_devices()))
    if config.consistency_weight:
        # No two squares of photographs are the same.
        raise ValueError(f"consistency_weight must be 0 for one's own pictures, got {config.consistency_weight}")

    def fit(batches: Callable[[int], np.ndarray], held_out: np.ndarray) -> dict[str, Any]:
        settings: dict[str, Any] = {"out": run / "vqgan", "held_out": held_out, "devices": jax.local_devices()}
        return fit_vqgan(sizes, config, lambda step: Batch(batches(step)), **settings)

    return _train_codec(source, run, "vqgan", sizes, config, fit)


def train_dvae(source: str | Path, run: Path, *, sizes: DVAEConfig, config: DVAETrainConfig) -> Report:
    """As `train_vqgan`, of a dVAE, on one device."""
    device.set_up()

    def fit(batches: Callable[[int], np.ndarray], held_out: np.ndarray) -> dict[str, Any]:
        return fit_dvae(sizes, config, batches, out=run / "dvae", held_out=held_out)

    return _train_codec(source, run, "dvae", sizes, config, fit)


def _train_codec(
    source: str | Path,
    run: Path,
    name: str,
    sizes: CodecConfig,
    config: VQGANTrainConfig | DVAETrainConfig,
    fit: Callable[[Callable[[int], np.ndarray], np.ndarray], dict[str, Any]],
) -> Report:
    """fit: of step -> pictures, and of held-back pictures, to params."""
    out = run / name
    recipe = {"sizes": dataclasses.asdict(sizes), "recipe": dataclasses.asdict(config)}
    check_same(out, recipe)
    check_own_codec(run, name)
    data = read_pictures(source, out, side=sizes.resolution, captioned=False, at_least=2)
    begin(out, recipe)
    held = held_back(data.keys)
    rows = np.flatnonzero(~held)

    def batches(step: int) -> np.ndarray:
        rng = np.random.default_rng((config.seed, step))
        chosen = data.pixels[rng.choice(rows, config.batch_size)]
        return _shift_and_flip(chosen, rng, farthest=sizes.downscale)

    vqgan.save(run / "model" / "vqgan", sizes, fit(batches, data.pixels[held][:SHOWN]))
    return data.report


def train_clip(source: str | Path, run: Path, *, config: ClipTrainConfig) -> Report:
    """Pictures and captions to one space, on one device: the loss compares all of a batch with all of it.

    Reads text as RUN/model/dalle does, if that is there. Says what became of the rows of the source. Raises ValueError
    for another recipe than the one this run was begun with, and a source with fewer pictures than a batch.
    """
    from dalle_mini.training.clip.train import train as fit_clip

    out = run / "clip"
    recipe = {"recipe": dataclasses.asdict(config)}
    check_same(out, recipe)
    data = read_pictures(source, out, side=config.image_size, captioned=True, at_least=config.batch_size)

    def batches(step: int) -> tuple[np.ndarray, list[str]]:
        rng = np.random.default_rng((config.seed, step))
        chosen = rng.choice(len(data.pixels), config.batch_size, replace=False)
        return data.pixels[chosen], [data.captions[i] for i in chosen]

    begin(out, recipe)
    learned = out / "tokenizer"
    own = [folder for folder in (learned, run / "model" / "dalle") if (folder / "tokenizer.json").exists()]
    tokenizer_folder = own[0] if own else learned
    make_tokenizer(
        tokenizer_folder, lambda: data.captions, vocab_size=VOCABULARY, max_text_length=config.context_length
    )
    folder = fit_clip(config, batches, tokenizer_folder=tokenizer_folder, out=out)
    shutil.copytree(folder, run / "model" / "clip", dirs_exist_ok=True)
    return data.report


def read_pictures(source: str | Path, folder: Path, *, side: int, captioned: bool, at_least: int = 1) -> Pictures:
    """The pictures of `source` as squares of `side` pixels: from `folder`, or else read and left there.

    A folder that was finished is not compared with its source again: it is what the run is trained on. Raises
    ValueError if it is of another source or size, or if fewer pictures than `at_least` are of use.
    """
    name, path = str(source), os.path.abspath(source)
    if os.path.exists(source):
        name = path
    if not (folder / FACTS).exists():
        keys, captions, report = _write_pixels(source, folder, side=side, captioned=captioned)
        _check_number(len(captions), report, side=side, at_least=at_least)
        logger.info("%s: %s", name, report.summary())
        facts = {"source": name, "side": side, "report": dataclasses.asdict(report)}
        facts |= {"keys": keys, "captions": captions}
        write_json(folder / FACTS, facts)
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if facts["source"] not in (name, path) or facts["side"] != side:
        raise ValueError(
            f"{folder} must hold the pictures of {name} at {side} pixels, got those of {facts['source']} "
            f"at {facts['side']}: use a new run folder"
        )
    report = Report(**facts["report"])
    _check_number(len(facts["captions"]), report, side=side, at_least=at_least)
    return Pictures(np.load(folder / PIXELS, mmap_mode="r"), facts["keys"], facts["captions"], report)


def _check_number(number: int, report: Report, *, side: int, at_least: int) -> None:
    if number < at_least:
        raise ValueError(
            f"source must hold at least {at_least} pictures of {side} pixels or more, got {report.explained()}"
        )


def _write_pixels(
    source: str | Path, folder: Path, *, side: int, captioned: bool
) -> tuple[list[str], list[str], Report]:
    """pictures.npy, and the keys and captions of its rows."""
    report = Report()
    keys: list[str] = []
    captions: list[str] = []
    rows = open_source(source, captioned=captioned)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (PIXELS + ".partial")
    with partial.open("wb") as file, tqdm(unit="picture", mininterval=5) as bar:
        header = _write_header(file, (0, side, side, 3))
        for sample in read_samples(rows, report):
            if min(sample.image.size) < side:
                report.skip(f"smaller than {side} pixels", sample.key)
                continue
            file.write(square(sample.image, side).tobytes())
            keys.append(sample.key)
            captions.append(sample.caption)
            bar.update()
        file.seek(0)
        end = _write_header(file, (len(captions), side, side, 3))
        assert end == header, "numpy leaves room for the number of rows to grow"
    partial.replace(folder / PIXELS)
    return keys, captions, report


def _write_header(file: Any, shape: tuple[int, ...]) -> int:
    """The header of a .npy file, at the place where `file` is; returns where it ends."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def _shift_and_flip(
    pixels: UInt8[np.ndarray, "B S S 3"], rng: np.random.Generator, *, farthest: int
) -> UInt8[np.ndarray, "B S S 3"]:
    """Every picture as it may also lie on the grid of codes: moved by up to `farthest` pixels, mirrored or not.

    What moves in is the mirror image of what is at the edge (He et al. 2016, section 4.2, with zeros).
    """
    padding = ((0, 0), (farthest, farthest), (farthest, farthest), (0, 0))
    padded, moved = np.pad(pixels, padding, mode="reflect"), np.empty_like(pixels)
    side = pixels.shape[1]
    for i, (row, column) in enumerate(rng.integers(2 * farthest + 1, size=(len(pixels), 2))):
        moved[i] = padded[i, row : row + side, column : column + side]
    return np.where(rng.random((len(pixels), 1, 1, 1)) < 0.5, moved, moved[:, :, ::-1])
