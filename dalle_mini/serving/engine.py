"""The engine: slots on one device, each drawing one candidate, advanced together by one row of the grid at a time.

Contract: `prefill` a text, `insert` it into as many slots as there are candidates, `decode` until a slot has drawn its
picture, `evict` it at any row; others may join and leave meanwhile. The engine knows nothing of prompts, pictures or
requests, and is used by one thread at a time.

What is drawn does not depend on the slot, on the other slots or on how many there are. Matrix libraries may sum in
another order for another batch size or at another place of a batch, so only the sizes of `BUCKETS` are ever computed.
They were measured to give the same bits at every place: on CPUs with AVX2 (Zen 3), whose products are made of six rows
and of what is left over, where 1, 2 and 3 rows sum in an order of their own, and with AVX-512 (Zen 4), at the widths of
emoji and mini; with the flag of device.py. tests/test_engine.py tells whether it holds on a machine. Slots live in groups of these sizes: a group is
made when there is no free place, and is dropped when its last slot is. A slot has two rows of its group's batch, with
and without the prompt; where condition_scale is 1 the second would change nothing, and one row is all there is.
On other devices nobody has measured this: there every group has the largest bucket's size, the same for everyone.
"""

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dalle_mini import decode
from dalle_mini.config import ModelConfig, SamplingParams
from dalle_mini.decode import DecodeState
from dalle_mini.model import CrossKV, Params
from dalle_mini.tokenizer import TokenizedPrompt

BUCKETS = (12, 18)  # rows that are computed together: 6 and 9 slots with guidance, 12 and 18 without
KEPT_PROMPTS = 8  # texts whose prefill is kept for the next time
MOST_SLOTS = 36  # of the automatic choice on a CPU, where more at a time are hardly faster


class Slot(NamedTuple):
    group: int
    place: int


@dataclass
class Group:
    """Slots that are computed together; `state` is None while, and if ever, the device has failed with it."""

    guided: bool
    state: DecodeState | None
    free: list[int]
    drawn: dict[int, list[np.ndarray]]  # place -> rows so far

    @property
    def rows(self) -> int:
        places = len(self.free) + len(self.drawn)
        return 2 * places if self.guided else places


class Engine:
    """Owns a device's params and decode states; see the module's contract.

    slots: how many candidates with guidance are drawn at once; without, twice as many. None: what the memory holds.
    """

    def __init__(
        self, config: ModelConfig, params: Params, *, slots: int | None = None, device: jax.Device | None = None
    ) -> None:
        self.device = device or jax.devices()[0]
        smallest = BUCKETS[-1] // 2
        if slots is not None and slots < smallest:
            raise ValueError(f"slots must be >= {smallest}, got {slots}")
        self.config, self.params = config, jax.device_put(params, self.device)
        self.slots = slots or _slots_for(config, self.device)
        self.buckets = BUCKETS if self.device.platform == "cpu" else BUCKETS[-1:]
        self._groups: dict[int, Group] = {}
        self._numbers = itertools.count()
        self._prompts: OrderedDict[bytes, CrossKV] = OrderedDict()
        self._prefill = jax.jit(partial(decode.prefill, config=config))
        self._insert = jax.jit(partial(decode.insert, config), donate_argnums=0)
        self._decode_row = jax.jit(partial(decode.decode_row, config=config), donate_argnames="state")
        self._rng = jax.jit(decode.candidate_rng)

    def prefill(self, prompt: TokenizedPrompt) -> CrossKV:
        """The text's part of the work, done once however many candidates follow; the latest texts are kept."""
        asked = prompt.tokens.tobytes()
        if asked not in self._prompts:
            tokens, mask = jax.device_put((prompt.tokens, prompt.mask), self.device)
            self._prompts[asked] = self._prefill(self.params, tokens=tokens, mask=mask)
        self._prompts.move_to_end(asked)
        while len(self._prompts) > KEPT_PROMPTS:
            self._prompts.popitem(last=False)
        return self._prompts[asked]

    def has_room(self, params: SamplingParams) -> bool:
        """Whether one more candidate can be inserted now."""
        return self._find(_guided(params)) is not None or self._rows_left() >= self.buckets[0]

    def insert(self, prefix: CrossKV, params: SamplingParams, *, candidate: int, more: int = 0) -> Slot:
        """Start a candidate in a free slot. `params.seed` must be set; `more` are about to follow it."""
        assert params.seed is not None, "the pipeline draws a seed before it draws a picture"
        guided = _guided(params)
        number = self._find(guided)
        if number is None:
            number = self._make(guided, 1 + more)
        group = self._groups[number]
        place, rng = group.free[-1], self._rng(jnp.uint32(params.seed), jnp.uint32(candidate))
        state, group.state = group.state, None  # a donated state is gone if the device fails
        try:
            group.state = self._insert(state, jnp.int32(place), prefix, rng, _sampling(params))
        except Exception:
            if not group.drawn:  # nobody would ever evict it
                del self._groups[number]
            raise
        group.drawn[group.free.pop()] = []
        return Slot(number, place)

    def decode(self) -> None:
        """Advance every slot by one row of the grid."""
        drawn = {}
        for number, group in self._groups.items():
            state, group.state = group.state, None
            group.state, drawn[number] = self._decode_row(self.params, state=state)
        for number, rows in drawn.items():
            rows = np.asarray(rows)
            for place, before in self._groups[number].drawn.items():
                before.append(rows[place])

    def codes(self, slot: Slot) -> Int[np.ndarray, " n"]:
        """What a slot has drawn so far; a whole picture has `config.image_length` codes."""
        return np.concatenate([*self._groups[slot.group].drawn[slot.place], np.empty(0, np.int32)])

    def evict(self, slot: Slot) -> None:
        """Free a slot, finished or not."""
        group = self._groups[slot.group]
        del group.drawn[slot.place]
        group.free.append(slot.place)
        if not group.drawn:
            del self._groups[slot.group]

    def reset(self) -> None:
        """Forget every slot, after the device has failed."""
        self._groups, self._prompts = {}, OrderedDict()

    @property
    def slots_in_use(self) -> int:
        return sum(len(group.drawn) for group in self._groups.values())

    def warm_up(self) -> Iterator[None]:
        """Run the programs of one bucket after another, so that nobody waits for a compiler. Any thread may."""
        params = self.params  # `close` may come in between
        tokens = jax.device_put(np.zeros((2, self.config.max_text_length), np.int32), self.device)
        prefix = self._prefill(params, tokens=tokens, mask=jnp.ones_like(tokens))
        rng = self._rng(jnp.uint32(0), jnp.uint32(0))
        for rows, guided in itertools.product(self.buckets, (True, False)):
            state = jax.device_put(self._empty(guided, rows), self.device)
            state = self._insert(state, jnp.int32(0), prefix, rng, _sampling(self.config.sampling))
            self._decode_row(params, state=state)
            yield

    def close(self) -> None:
        """Forget the states and the params."""
        self.reset()
        self.params = {}

    def _find(self, guided: bool) -> int | None:
        """A group with a free place."""
        return next((n for n, group in self._groups.items() if group.guided == guided and group.free), None)

    def _rows_left(self) -> int:
        return 2 * self.slots - sum(group.rows for group in self._groups.values())

    def _make(self, guided: bool, wanted: int) -> int:
        """A new group: the smallest bucket that holds what is `wanted`, or else the largest that there is room for."""
        wanted *= 2 if guided else 1
        fitting = [rows for rows in self.buckets if rows <= self._rows_left()]
        assert fitting, "insert only where has_room"
        rows = next((rows for rows in fitting if rows >= wanted), fitting[-1])
        number = next(self._numbers)
        state = jax.device_put(self._empty(guided, rows), self.device)
        self._groups[number] = Group(guided=guided, state=state, free=list(range(len(state.codes)))[::-1], drawn={})
        return number

    def _empty(self, guided: bool, rows: int) -> DecodeState:
        return decode.empty_state(self.config, rows // 2 if guided else rows, guided=guided)


def _sampling(params: SamplingParams) -> decode.SlotSampling:
    return decode.SlotSampling(
        condition_scale=jnp.float32(params.condition_scale),
        temperature=jnp.float32(params.temperature),
        top_k=jnp.int32(params.top_k),
        top_p=jnp.float32(params.top_p),
    )


def _guided(params: SamplingParams) -> bool:
    return params.condition_scale != 1


def _slots_for(config: ModelConfig, device: jax.Device) -> int:
    """What a quarter of the memory holds, in whole groups of the largest bucket, at least one."""
    if device.platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        most = MOST_SLOTS
    else:
        memory, most = (device.memory_stats() or {}).get("bytes_limit", 0), 4 * MOST_SLOTS
    positions = config.image_length + config.max_text_length
    slot = 2 * 2 * config.decoder_layers * config.d_model * positions * jnp.dtype(config.dtype).itemsize
    group = BUCKETS[-1] // 2
    return group * max(1, min(memory // 4 // slot, most) // group)
