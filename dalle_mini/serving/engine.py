"""The engine: slots on one device, each drawing one candidate, advanced together by one row of the grid at a time.

Contract: `prefill` a text once, `insert` it into as many slots as there are candidates, `decode` until every slot has
drawn its picture, `evict` at any row. The engine knows nothing of prompts, pictures or requests, and is used by one
thread at a time.

What is drawn does not depend on the slot, on the other slots or on how many there are: the number of slots is one of
`BUCKETS`, the sizes at which a row of the batch was measured to be computed to the same bits.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dalle_mini import decode
from dalle_mini.config import MAX_CANDIDATES, ModelConfig, SamplingParams
from dalle_mini.model import CrossKV, Params
from dalle_mini.tokenizer import TokenizedPrompt

BUCKETS = (1, 4, 9, MAX_CANDIDATES)  # slots


class Engine:
    """Owns the device's params and the decode state; see the module's contract."""

    def __init__(self, config: ModelConfig, params: Params) -> None:
        self.config, self.params = config, params
        self._prefill = jax.jit(partial(decode.prefill, config=config))
        self._insert = jax.jit(partial(decode.insert, config), donate_argnums=0)
        self._decode_row = jax.jit(partial(decode.decode_row, config=config), donate_argnames="state")
        self._rng = jax.jit(decode.candidate_rng)
        self._state: decode.DecodeState | None = None
        self._free: list[int] = []
        self._rows: dict[int, list[np.ndarray]] = {}  # slot -> rows drawn so far

    def reserve(self, slots: int) -> None:
        """Make room for `slots` candidates: the smallest bucket that holds them. Only while no slot is in use."""
        assert not self._rows, "slots are in use"
        bucket = next(size for size in BUCKETS if size >= slots)
        if self._state is None or bucket != self._state.codes.shape[0]:
            self._state = decode.empty_state(self.config, bucket)
        self._free = list(range(bucket))

    def prefill(self, prompt: TokenizedPrompt) -> CrossKV:
        """The text's part of the work, done once however many candidates follow."""
        return self._prefill(self.params, tokens=jnp.asarray(prompt.tokens), mask=jnp.asarray(prompt.mask))

    def insert(self, prefix: CrossKV, params: SamplingParams, *, candidate: int) -> int:
        """Start a candidate in a free slot and return the slot. `params.seed` must be set."""
        assert params.seed is not None, "the pipeline draws a seed before it draws a picture"
        slot = self._free.pop()
        sampling = decode.SlotSampling(
            condition_scale=jnp.float32(params.condition_scale),
            temperature=jnp.float32(params.temperature),
            top_k=jnp.int32(params.top_k),
            top_p=jnp.float32(params.top_p),
        )
        rng = self._rng(jnp.uint32(params.seed), jnp.uint32(candidate))
        self._state = self._insert(self._state, jnp.int32(slot), prefix, rng, sampling)
        self._rows[slot] = []
        return slot

    def decode(self) -> None:
        """Advance every slot by one row of the grid."""
        self._state, drawn = self._decode_row(self.params, state=self._state)
        drawn = np.asarray(drawn)
        for slot, rows in self._rows.items():
            rows.append(drawn[slot])

    def codes(self, slot: int) -> Int[np.ndarray, " n"]:
        """What a slot has drawn so far; a whole picture has `config.image_length` codes."""
        return np.concatenate([*self._rows[slot], np.empty(0, np.int32)])

    def evict(self, slot: int) -> None:
        """Free a slot, finished or not."""
        del self._rows[slot]
        self._free.append(slot)

    def close(self) -> None:
        """Forget the state and the params."""
        self._state, self.params = None, {}
