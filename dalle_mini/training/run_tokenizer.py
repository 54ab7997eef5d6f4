"""The tokenizer of a run: made once, by whichever network is trained first, and then read by all."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from dalle_mini import tokenizer
from dalle_mini.config import ModelConfig
from dalle_mini.model_names import EMBEDDED, SHELF, model_of
from dalle_mini.tokenizer import Tokenizer
from dalle_mini.training.run import once
from vqgan.hub import resolve

VOCABULARY = 8192  # at most, for a tokenizer that a recipe says nothing about


def make_tokenizer(
    folder: Path, captions: Callable[[], Sequence[str]], *, vocab_size: int, max_text_length: int, source: str = ""
) -> None:
    """Leave a tokenizer in `folder`, if none is there: that of `source`, a folder or a hub id, or one of the captions.

    vocab_size: at most, for one that is learned. Raises ValueError if another one than that of `source` is there.
    """
    found = any((folder / name).exists() for name in ("tokenizer.json", "merges.txt"))
    origin = tokenizer_folder(source) if source else folder

    def make() -> None:
        if source and not found:
            _copy_tokenizer(origin, folder)
        elif not found:
            tokenizer.train(captions(), folder, vocab_size=vocab_size, max_text_length=max_text_length)

    once(make, "tokenizer")  # all, also those that found it because another was quicker
    if source and not _same_files(origin, folder):
        raise ValueError(f"tokenizer must be the one that is in {folder}, got {source}: use a new run folder")


def load_tokenizer(folder: Path, sizes: ModelConfig) -> Tokenizer:
    return Tokenizer.load(folder, max_text_length=sizes.max_text_length, normalize=sizes.normalize_text)


def tokenizer_folder(source: str) -> Path:
    """The folder of a tokenizer's files: of a folder, a run, a hub id or a preset, or of the model in it."""
    folder = model_of(resolve(SHELF.get(source, EMBEDDED if source == "emoji" else source), ("*.json", "*.txt")))
    return folder / "dalle" if (folder / "dalle").is_dir() else folder


def _same_files(one: Path, other: Path) -> bool:
    """Whether what both folders have of a tokenizer is the same."""
    both = [name for name in tokenizer.FILES if (one / name).exists() and (other / name).exists()]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in both)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    with tokenizer.aside(folder) as new:
        for name in tokenizer.FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, new / name)
