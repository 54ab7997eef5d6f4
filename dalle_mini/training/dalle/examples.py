"""What a text-to-code network is trained on: captions as tokens, pictures as codes, row by row."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dalle_mini.config import ModelConfig
from dalle_mini.tokenizer import Tokenizer
from dalle_mini.training.dalle.loss import Batch


class Examples(NamedTuple):
    """Captions and codes, row by row; `empty` is the empty prompt, which replaces a dropped caption."""

    tokens: Int[np.ndarray, "M S"]
    mask: Int[np.ndarray, "M S"]
    codes: Int[np.ndarray, "M T"]
    empty: tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]

    @classmethod
    def of(cls, captions: Sequence[str], codes: Int[np.ndarray, "M T"], tokenizer: Tokenizer) -> "Examples":
        """Row i is caption i with codes i."""
        empty_tokens, empty_mask = tokenizer.encode_batch([""])
        return cls(*tokenizer.encode_batch(captions), codes, (empty_tokens[0], empty_mask[0]))

    def first(self, count: int) -> "Examples":
        return Examples(self.tokens[:count], self.mask[:count], self.codes[:count], self.empty)

    def batch(self, rows: Int[np.ndarray, " B"], dropped: np.ndarray | bool = False) -> Batch:
        """These rows, without the captions that are `dropped` [B, 1]."""
        tokens = np.where(dropped, self.empty[0][None], self.tokens[rows])
        return Batch(tokens, np.where(dropped, self.empty[1][None], self.mask[rows]), self.codes[rows])

    def check(self, sizes: ModelConfig) -> None:
        """Raise ValueError if this is not what a network of these sizes reads and writes."""
        for name, values, length, limit, limit_name in (
            ("codes", self.codes, sizes.image_length, sizes.codebook_size, "codebook_size"),
            ("tokens", self.tokens, sizes.max_text_length, sizes.encoder_vocab_size, "encoder_vocab_size"),
        ):
            if not len(values):
                raise ValueError(f"{name} must be of 1 example or more, got none")
            lowest, highest = values.min(), values.max()
            if not 0 <= lowest <= highest < limit or values.shape[1] != length:
                raise ValueError(
                    f"{name} must be [*, {length}], >= 0 and < {limit_name} {limit}, "
                    f"got {values.shape} from {lowest} to {highest}"
                )
