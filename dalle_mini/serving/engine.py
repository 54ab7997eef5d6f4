"""The engine: slots on one device, each drawing one candidate, advanced together by one row of the grid at a time.

Contract: `prefill` a text once, `insert` it into as many slots as there are candidates, `decode` until every slot has
drawn its picture, `evict` at any row. The engine knows nothing of prompts, pictures or requests, and is used by one
thread at a time.

What is drawn does not depend on the slot, on the other slots or on how many there are. Matrix libraries may sum in
another order for another batch size, so only the sizes of `BUCKETS` are ever computed, which were measured to give the
same bits (tests/test_engine.py, on a CPU with the flag of device.py); more slots are more groups of the same size.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dalle_mini import decode
from dalle_mini.config import ModelConfig, SamplingParams
from dalle_mini.model import CrossKV, Params
from dalle_mini.tokenizer import TokenizedPrompt

BUCKETS = (4, 9)  # slots that are computed together


class Engine:
    """Owns the device's params and the decode state; see the module's contract."""

    def __init__(self, config: ModelConfig, params: Params) -> None:
        self.config, self.params = config, params
        self._prefill = jax.jit(partial(decode.prefill, config=config))
        self._insert = jax.jit(partial(decode.insert, config), donate_argnums=0)
        self._decode_row = jax.jit(partial(decode.decode_row, config=config), donate_argnames="state")
        self._rng = jax.jit(decode.candidate_rng)
        self._size = BUCKETS[0]  # slots of a group
        self._groups: dict[int, decode.DecodeState] = {}
        self._free: list[int] = []
        self._rows: dict[int, list[np.ndarray]] = {}  # slot -> rows drawn so far

    def reserve(self, slots: int) -> None:
        """Make room for `slots` candidates. Only while no slot is in use."""
        assert not self._rows, "slots are in use"
        size = next((size for size in BUCKETS if size >= slots), BUCKETS[-1])
        needed = range(-(-slots // size))
        kept = self._groups if size == self._size else {}
        self._groups = {g: kept[g] if g in kept else decode.empty_state(self.config, size) for g in needed}
        self._size, self._free = size, list(range(size * len(needed)))[::-1]

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
        group, place = divmod(slot, self._size)
        self._groups[group] = self._insert(self._groups.pop(group), jnp.int32(place), prefix, rng, sampling)
        self._rows[slot] = []
        return slot

    def decode(self) -> None:
        """Advance every slot by one row of the grid."""
        for group in {slot // self._size for slot in self._rows}:
            # Popped, because a donated state is gone if the device fails; `reserve` then makes a new one.
            self._groups[group], drawn = self._decode_row(self.params, state=self._groups.pop(group))
            drawn = np.asarray(drawn)
            for slot, rows in self._rows.items():
                if slot // self._size == group:
                    rows.append(drawn[slot % self._size])

    def codes(self, slot: int) -> Int[np.ndarray, " n"]:
        """What a slot has drawn so far; a whole picture has `config.image_length` codes."""
        return np.concatenate([*self._rows[slot], np.empty(0, np.int32)])

    def evict(self, slot: int) -> None:
        """Free a slot, finished or not."""
        del self._rows[slot]
        self._free.append(slot)

    def close(self) -> None:
        """Forget the states and the params."""
        self._groups, self.params = {}, {}
