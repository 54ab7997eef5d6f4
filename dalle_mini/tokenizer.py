"""Prompts -> tokens, with the tokenizer files that are published beside the checkpoints.

Contract: a prompt of any content becomes `[2, T]` token ids and their mask; row 0 is the prompt, row 1 the negative
prompt of super conditioning, by default the empty one. A row is `<s> text </s> <pad> ...`, cut to T = max_text_length
with `</s>` kept. This file knows how to normalise (text.py) but nothing of the network. `train` writes the same kind of
files for a model of one's own.

The scheme is BART's byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", section 2.2).

Letters: B batch, T text position.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from dalle_mini import text
from vqgan.files import CheckpointError

# Their order is their id: the published vocabularies begin with these four.
SPECIAL_TOKENS = BOS, PAD, EOS, UNK = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
WORD_LIST = "enwiki-words-frequency.txt"
# In the order in which they appear in a folder: what a tokenizer is found by comes last.
FILES = (WORD_LIST, "special_tokens_map.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.json")
# Normalising costs time (the worst input measured: 0.3 s for this many), so nothing beyond is looked at.
MAX_CHARACTERS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizedPrompt:
    """What the encoder reads: row 0 is the prompt, row 1 the negative prompt."""

    tokens: Int32[np.ndarray, "2 T"]
    mask: Int32[np.ndarray, "2 T"]  # 1 from <s> to </s>, 0 on <pad>
    text: str  # as tokenised, that is after normalisation
    truncated: bool  # whether some of the prompt did not fit
    negative: str = ""  # the negative prompt, likewise
    negative_truncated: bool = False


class Tokenizer:
    """A byte-level BPE read from a folder; see `load`. Safe to share between threads."""

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        *,
        max_text_length: int,
        normalize: bool,
        splitter: text.HashtagSplitter | None,
    ) -> None:
        self._bpe = bpe
        self._max_text_length = max_text_length
        self._normalize = normalize
        self._splitter = splitter
        vocab = bpe.get_vocab()
        self._bos, self._pad, self._eos = vocab[BOS], vocab[PAD], vocab[EOS]

    @classmethod
    def load(cls, folder: str | Path, *, max_text_length: int, normalize: bool) -> "Tokenizer":
        """Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`; also the hashtag word list, if any.

        Raises CheckpointError, naming the file, when one is missing, damaged or without the special tokens.
        """
        folder = Path(folder)
        bpe = _read_bpe(folder)
        words = folder / WORD_LIST
        splitter = text.HashtagSplitter.load(words) if words.is_file() else None
        return cls(bpe, max_text_length=max_text_length, normalize=normalize, splitter=splitter)

    @property
    def vocab_size(self) -> int:
        """Every token id is below this; a model's encoder_vocab_size must be at least as large."""
        return max(self._bpe.get_vocab().values()) + 1  # not its length: a vocabulary may have holes

    def encode(self, prompt: str, negative: str = "") -> TokenizedPrompt:
        """Tokens of one prompt and what to stay away from. Never raises for a str, whatever is in it."""
        cleaned = self._clean(negative)
        texts = [self._clean(prompt), cleaned if cleaned.strip() else ""]  # nothing left is the empty prompt
        rows = self._ids(texts)
        tokens, mask = self._pack(rows)
        truncated, negative_truncated = (
            len(row) > self._max_text_length - 2 or len(given) > MAX_CHARACTERS
            for row, given in zip(rows, (prompt, negative), strict=True)
        )
        return TokenizedPrompt(
            tokens=tokens,
            mask=mask,
            text=texts[0],
            truncated=truncated,
            negative=texts[1],
            negative_truncated=negative_truncated,
        )

    def encode_batch(self, captions: Sequence[str]) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]:
        """Tokens and mask of many captions, for training.

        "" is the empty prompt itself (a dropped caption), never normalised into " ".
        """
        return self._pack(self._ids([caption and self._clean(caption) for caption in captions]))

    def _clean(self, prompt: str) -> str:
        prompt = prompt[:MAX_CHARACTERS]
        if self._normalize:
            return text.normalize(prompt, self._splitter)
        return text.without_surrogates(prompt)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [row.ids for row in self._bpe.encode_batch_fast(texts, add_special_tokens=False)]

    def _pack(self, rows: list[list[int]]) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]:
        shape = (len(rows), self._max_text_length)
        tokens, mask = np.full(shape, self._pad, np.int32), np.zeros(shape, np.int32)
        for i, row in enumerate(rows):
            row = [self._bos, *row[: self._max_text_length - 2], self._eos]
            tokens[i, : len(row)], mask[i, : len(row)] = row, 1
        return tokens, mask


def train(captions: Iterable[str], folder: str | Path, *, vocab_size: int, max_text_length: int) -> None:
    """Learns a byte-level BPE from `captions` (normalised here) and writes the published set of files.

    `vocab_size` is a limit: few captions fill less (see `Tokenizer.vocab_size`). The same captions give the
    same files, which also open with `transformers.AutoTokenizer`, so that open_clip can use them.
    Raises ValueError when vocab_size cannot hold the 256 bytes and the special tokens.
    """
    smallest = len(SPECIAL_TOKENS) + 256
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be >= {smallest}, got {vocab_size!r}")
    bpe = tokenizers.Tokenizer(models.BPE())
    _dress(bpe)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_normalized(captions), trainer=trainer)

    # `<s> text </s>`, for other readers of the file; `Tokenizer` frames its rows itself.
    vocab = bpe.get_vocab()
    bpe.post_processor = processors.RobertaProcessing((EOS, vocab[EOS]), (BOS, vocab[BOS]), add_prefix_space=False)
    roles = {"bos_token": BOS, "cls_token": BOS, "eos_token": EOS, "sep_token": EOS}
    roles |= {"pad_token": PAD, "unk_token": UNK}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_text_length,
    }
    with aside(Path(folder)) as new:
        bpe.model.save(str(new))  # vocab.json, merges.txt
        bpe.save(str(new / "tokenizer.json"))
        _write_json(new / "special_tokens_map.json", roles)
        _write_json(new / "tokenizer_config.json", settings | roles)


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder to write FILES into, which appear in `folder` when all of them are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir(), key=lambda file: FILES.index(file.name)):
            file.replace(folder / file.name)


def _normalized(captions: Iterable[str]) -> Iterator[str]:
    for caption in captions:
        yield text.normalize(caption, None)


def _read_bpe(folder: Path) -> tokenizers.Tokenizer:
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.is_file() and not (vocab.is_file() and merges.is_file()):
        raise CheckpointError(f"{folder} has neither tokenizer.json nor vocab.json and merges.txt")
    source = whole if whole.is_file() else f"{vocab} with {merges.name}"
    try:
        if source == whole:
            bpe = tokenizers.Tokenizer.from_file(str(whole))
        else:
            bpe = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
            _dress(bpe)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{source} is not a readable tokenizer: {error}") from error
    missing = [token for token in SPECIAL_TOKENS if bpe.token_to_id(token) is None]
    if missing:
        raise CheckpointError(f"{source} has no token {', '.join(missing)}")
    # A saved file may carry the cutting and padding of whoever saved it; ours depends on the model alone.
    bpe.no_truncation()
    bpe.no_padding()
    return bpe


def _dress(bpe: tokenizers.Tokenizer) -> None:
    """Gives a bare BPE model BART's byte-level splitting, which vocab.json and merges.txt do not carry."""
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    known = [token for token in _special_tokens() if bpe.token_to_id(token.content) is not None]
    bpe.add_special_tokens(known)


def _special_tokens() -> list[tokenizers.AddedToken]:
    """BART's; <mask>, of the published vocabularies only, swallows the space before it."""
    plain = [tokenizers.AddedToken(token, special=True, normalized=True) for token in SPECIAL_TOKENS]
    return [*plain, tokenizers.AddedToken(MASK, special=True, normalized=True, lstrip=True)]


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
