"""A text-to-code network of one's own: from the shards that `encode` wrote to a folder that `dalle_mini.load` reads.

Contract: RUN/model gets dalle/ (tokenizer, config, weights) and vqgan/, the one that the shards were encoded with; a
clip/ that is there stays. RUN/dalle has the checkpoints, metrics and sample sheets, and config.json: the sizes, recipe
and data that this run was begun with, and goes on with or not at all. Of several hosts, which share the run's folder,
the first one writes.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

import vqgan
from dalle_mini import device, tokenizer
from dalle_mini.checkpoint import save_model
from dalle_mini.config import ModelConfig
from dalle_mini.gallery import contact_sheet
from dalle_mini.training.dalle.train import Examples, draw, gathered, train
from dalle_mini.training.data.rows import check_same, write_json
from dalle_mini.training.data.shards import Encoded, fingerprint, held_back, read_codes, vqgan_location
from dalle_mini.training.data.sources import optional
from dalle_mini.training.recipe import Recipe
from vqgan.files import resolve, write_text

SHOWN = 16  # captions on a sheet
VOCABULARY = 8192  # at most, for a tokenizer that a recipe says nothing about
# What may change when a run goes on: the same sums in another order.
FREE = ("accumulation", "remat", "model_devices")


def train_dalle(
    recipe: Recipe,
    data: Sequence[Path],
    run: Path,
    *,
    painter: str = "",
    reader: str = "",
    track: str = "",
) -> str:
    """Train on the shards in the folders `data`, or go on; returns a line about the model in RUN/model.

    painter: the VQGAN of the shards, as `encode` takes it; the run's own or the embedded one when left out. reader: a
    folder or hub id with a tokenizer; one is learned from the captions when left out. track: trackio or wandb.
    Raises ValueError before training for shards of another VQGAN, a tokenizer or codes that do not fit the recipe,
    another recipe than the one the run was begun with, and all that `dalle.train` refuses.
    """
    device.set_up()
    config, encoded = recipe.dalle_training(), read_codes(data)
    network = _painter(run, painter, encoded)
    held = held_back(encoded.keys)
    words = _tokenizer(recipe, run, reader, [c for c, out in zip(encoded.captions, held, strict=True) if not out])
    sizes = recipe.dalle(vocab_size=words.vocab_size, painter=network.config)
    examples, held_out = (_examples(encoded, rows, words) for rows in (~held, held))
    facts = {"vqgan": encoded.vqgan["sha256"], "examples": len(encoded.keys)}
    _begin(run / "dalle", {"sizes": sizes.to_dict(), "recipe": dataclasses.asdict(config), "data": facts})
    _once(lambda: _keep(network, run / "model" / "vqgan", again=bool(painter)), "vqgan")
    shown = [caption for caption, out in zip(encoded.captions, held, strict=True) if out][:SHOWN]
    _once(lambda: write_text(run / "dalle" / "sheets.txt", "".join(f"{caption}\n" for caption in shown)), "captions")
    folder = run / "model" / "dalle"
    params = train(
        sizes,
        config,
        examples,
        held_out=held_out,
        out=run / "dalle",
        sheet=_sheets(folder, sizes, network, held_out),
        track=tracker(track, run, {"recipe": recipe.name, **dataclasses.asdict(config)}) if track else None,
    )
    _save(folder, sizes, params)
    return f"{len(examples.codes)} examples and {len(held_out.codes)} held back; the model is in {run / 'model'}"


def _painter(run: Path, painter: str, encoded: Encoded) -> vqgan.VQGAN:
    own = run / "model" / "vqgan"
    name = painter or (str(own) if (own / "config.json").exists() else "emoji")
    network = vqgan.load(vqgan_location(name))
    if fingerprint(network) != encoded.vqgan:
        raise ValueError(
            f"vqgan must be the one of the shards, {encoded.vqgan['sha256'][:12]} ({encoded.vqgan['n_embed']} codes), "
            f"got {name}, {fingerprint(network)['sha256'][:12]} ({network.config.n_embed} codes)"
        )
    return network


def _keep(network: vqgan.VQGAN, folder: Path, *, again: bool) -> None:
    if again or not (folder / "config.json").exists():
        # float32: rounding could move a latent to another code, and the shards' VQGAN would be another one.
        vqgan.save(folder, network.config, network.params, dtype=np.float32)


def _tokenizer(recipe: Recipe, run: Path, reader: str, captions: Sequence[str]) -> tokenizer.Tokenizer:
    """The tokenizer in RUN/model/dalle, which is copied there from `reader` or learned from `captions` if need be."""
    folder = run / "model" / "dalle"
    some = recipe.dalle(vocab_size=1)  # for the lengths; the vocabulary is what this finds out

    def load(folder: Path) -> tokenizer.Tokenizer:
        return tokenizer.Tokenizer.load(folder, max_text_length=some.max_text_length, normalize=some.normalize_text)

    found = any((folder / name).exists() for name in ("tokenizer.json", "merges.txt"))
    if reader:
        source = resolve(reader, ("*.json", "*.txt"))
        source = source / "dalle" if (source / "dalle").is_dir() else source
        recipe.dalle(vocab_size=load(source).vocab_size)  # refuses one that is too large before it is copied

    def make() -> None:
        if reader and not found:
            _copy_tokenizer(source, folder)
        elif not found:
            most = recipe.tables["dalle"].get("encoder_vocab_size", VOCABULARY)
            tokenizer.train(captions, folder, vocab_size=most, max_text_length=some.max_text_length)

    _once(make, "tokenizer")  # all, also those that found it because another was quicker
    if reader and not _same_files(source, folder):
        raise ValueError(f"tokenizer must be the one that is in {folder}, got {reader}: use a new run folder")
    return load(folder)


def _same_files(one: Path, other: Path) -> bool:
    """Whether what both folders have of a tokenizer is the same."""
    both = [name for name in tokenizer.FILES if (one / name).exists() and (other / name).exists()]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in both)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    with tokenizer.aside(folder) as new:
        for name in tokenizer.FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, new / name)


def _examples(encoded: Encoded, rows: np.ndarray, words: tokenizer.Tokenizer) -> Examples:
    tokens, mask = words.encode_batch([caption for caption, use in zip(encoded.captions, rows, strict=True) if use])
    empty_tokens, empty_mask = words.encode_batch([""])
    return Examples(tokens, mask, encoded.codes[rows].astype(np.int32), (empty_tokens[0], empty_mask[0]))


def _begin(out: Path, values: dict[str, dict[str, Any]]) -> None:
    """Write what a new run is made of; a run that goes on must be made of the same."""
    check_same(out / "config.json", values, free=FREE)

    def write() -> None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", values)

    _once(write, "config")


def _sheets(
    folder: Path, sizes: ModelConfig, network: vqgan.VQGAN, held_out: Examples
) -> Callable[[dict[str, Any]], Image.Image]:
    """Draws the first captions that were held back, and leaves a usable model in `folder` each time."""
    shown = held_out.first(SHOWN)

    def sheet(params: dict[str, Any]) -> Image.Image:
        _save(folder, sizes, params)
        return contact_sheet([Image.fromarray(pixels) for pixels in network.decode(draw(params, sizes, shown))])

    return sheet


def _save(folder: Path, sizes: ModelConfig, params: dict[str, Any]) -> None:
    whole = gathered(params)  # by all processes
    _once(lambda: save_model(folder, sizes, whole, dtype="float16"), "model")


def _once(work: Callable[[], None], name: str) -> None:
    """Work on the disk that the first process does and all wait for."""
    if jax.process_index() == 0:
        work()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def tracker(service: str, run: Path, config: dict[str, Any]) -> Callable[[int, dict[str, float]], None]:
    """Sends rows of metrics to trackio or wandb. Raises ValueError if it is another one or not installed."""
    if service not in ("trackio", "wandb"):
        raise ValueError(f"track must be trackio or wandb, got {service!r}")
    module = optional(service, f"for --track {service}")
    if jax.process_index() == 0:  # the only one that tells it anything
        module.init(project="dalle-mini", name=run.name, config=config)
    return lambda step, row: module.log(row, step=step)
