"""A text-to-code network of one's own: from the shards that `encode` wrote to a folder that `dalle_mini.load` reads.

Contract: RUN/model gets dalle/ (tokenizer, config, weights) and vqgan/, the one that the shards were encoded with; a
clip/ that is there stays.
"""

import dataclasses
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np

import vqgan
from dalle_mini import device
from dalle_mini.tokenizer import Tokenizer
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.data.shards import Encoded, fingerprint, held_back, read_codes, vqgan_location
from dalle_mini.training.recipe import Recipe
from dalle_mini.training.run import begin, once
from dalle_mini.training.run_tokenizer import VOCABULARY, load_tokenizer, make_tokenizer, tokenizer_folder
from dalle_mini.training.tasks.text_to_code import train_text_to_code
from dalle_mini.vocabulary import Vocabulary


def train_dalle(
    recipe: Recipe,
    data: Sequence[Path],
    run: Path,
    *,
    vqgan_name: str = "",
    tokenizer: str = "",
    track: str = "",
) -> str:
    """Train on the shards in the folders `data`, or go on; returns a line about the model in RUN/model.

    vqgan_name: the VQGAN of the shards, as `encode` takes it; the run's own or the embedded one when left out.
    tokenizer: a folder or hub id with one; that of the model to go on from, or one that is learned from the captions,
    when left out. track: trackio or wandb.
    Raises ValueError before training for shards of another VQGAN, a tokenizer or codes that do not fit the recipe,
    another recipe than the one the run was begun with, and all that `dalle.train` refuses.
    """
    device.set_up()
    encoded = read_codes(data)
    network = _vqgan(run, vqgan_name, encoded)
    held = held_back(encoded.keys)
    texts = {out: list(compress(encoded.captions, held == out)) for out in (False, True)}
    source = tokenizer or recipe.dalle_training().init
    reader = _tokenizer(recipe, run / "model" / "dalle", texts[False], source)
    sizes = recipe.dalle(vocab_size=reader.vocab_size, vqgan=network.config)
    examples, held_out = (
        Examples.of(captions, encoded.codes[held == out].astype(np.int32), reader) for out, captions in texts.items()
    )
    facts = {"vqgan": encoded.vqgan["sha256"], "examples": len(encoded.keys)}
    settings = dataclasses.asdict(recipe.dalle_training())
    begin(run / "dalle", {"sizes": sizes.to_dict(), "recipe": settings, "data": facts})
    once(lambda: _keep_vqgan(network, run / "model" / "vqgan", again=bool(vqgan_name)), "vqgan")
    train_text_to_code(
        recipe,
        run,
        sizes,
        examples=examples,
        held_out=held_out,
        shown=texts[True],
        vqgan=network,
        vocabulary=Vocabulary.of(texts[False]),
        track=track,
    )
    return f"{len(examples.codes)} examples and {len(held_out.codes)} held back; the model is in {run / 'model'}"


def _tokenizer(recipe: Recipe, folder: Path, captions: Sequence[str], source: str) -> Tokenizer:
    """The one in `folder`, which is copied there from `source` or learned from `captions` if need be."""
    some = recipe.dalle(vocab_size=1)  # for the lengths; the vocabulary is what this finds out
    if source:  # refused, if it is too large, before it is copied
        recipe.dalle(vocab_size=load_tokenizer(tokenizer_folder(source), some).vocab_size)
    most = recipe.tables["dalle"].get("encoder_vocab_size", VOCABULARY)
    make_tokenizer(folder, lambda: captions, vocab_size=most, max_text_length=some.max_text_length, source=source)
    return load_tokenizer(folder, some)


def _vqgan(run: Path, name: str, encoded: Encoded) -> vqgan.Codec:
    own = run / "model" / "vqgan"
    name = name or (str(own) if (own / "config.json").exists() else "emoji")
    network = vqgan.load(vqgan_location(name))
    if fingerprint(network) != encoded.vqgan:
        raise ValueError(
            f"vqgan must be the one of the shards, {encoded.vqgan['sha256'][:12]} ({encoded.vqgan['n_embed']} codes), "
            f"got {name}, {fingerprint(network)['sha256'][:12]} ({network.codebook_size} codes)"
        )
    return network


def _keep_vqgan(network: vqgan.Codec, folder: Path, *, again: bool) -> None:
    if again or not (folder / "config.json").exists():
        # float32: rounding could move a latent to another code, and the shards' VQGAN would be another one.
        vqgan.save(folder, network.config, network.params, dtype=np.float32)
