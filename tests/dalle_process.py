"""Trains a tiny text-to-code network in a process of its own, run by test_dalle_training.py.

    python tests/dalle_process.py '[{"out": ..., "config": {...}, "save_every_step": false, "stop": null}, ...]' [WHERE]

Each run writes its params to OUT/params.npz. `stop` ends a run after that many steps, with a checkpoint; WHERE is for
`sharding.start_processes`.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from PIL import Image

from dalle_mini import device
from dalle_mini.config import ModelConfig
from dalle_mini.training.dalle import sharding
from dalle_mini.training.dalle import train as dalle
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.dalle.draw import gathered
from dalle_mini.training.dalle.examples import Examples
from dalle_mini.training.loop import LoopConfig

# Heads and feed-forwards divide by 4; the 21 classes do not, and stay whole.
SIZES = ModelConfig(
    encoder_vocab_size=30,
    image_vocab_size=20,
    codebook_size=16,
    decoder_start_token_id=20,
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    image_length=9,
    max_text_length=6,
)


class StopError(Exception):
    """Ends a run in its middle."""


def examples(count: int = 64) -> Examples:
    """A caption's first word says which code the whole picture is made of."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 30, (count, 6), dtype=np.int32)
    codes = np.repeat(tokens[:, :1] % 16, 9, axis=1)
    empty = np.array([0, 2, 1, 1, 1, 1], np.int32)
    return Examples(tokens, np.ones_like(tokens), codes, (empty, (empty != 1).astype(np.int32)))


def run(out: str, config: dict[str, Any], save_every_step: bool = False, stop: int | None = None, pause: float = 0):
    """`pause`: seconds a step, at least."""

    def sheet(params: Any) -> Image.Image:
        if stop:
            raise StopError
        time.sleep(pause)
        return Image.new("RGB", (1, 1))

    save = -1 if save_every_step or stop else 1e9
    dalle.LoopConfig = partial(LoopConfig, log_every=1, save_seconds=save, sheet_every=stop or (1 if pause else 1000))
    try:
        params = dalle.train(
            SIZES, DalleTrainConfig(**config), examples(), held_out=examples(16), out=Path(out), sheet=sheet
        )
    except StopError:
        return
    params = gathered(params)
    if jax.process_index() == 0:
        np.savez(Path(out) / "params.npz", **traverse_util.flatten_dict(params, sep="/"))


if __name__ == "__main__":
    device.set_up()
    if len(sys.argv) > 2:
        sharding.start_processes(sys.argv[2])
    for one in json.loads(sys.argv[1]):
        run(**one)
