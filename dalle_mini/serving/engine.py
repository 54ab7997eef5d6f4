"""The engine: slots on one device, each drawing one candidate, advanced together by one row of the grid at a time.

Contract: `prefill` a text, `insert` it into as many slots as there are candidates, `decode` until a slot has drawn its
picture, `evict` it at any row; others may join and leave meanwhile. The engine knows nothing of prompts, pictures or
requests, and is used by one thread at a time.

What is drawn does not depend on the slot, on the other slots or on how many there are. Matrix libraries may sum in
another order for another number of rows, or at another place among them. So slots live in groups whose batches all have
`ROWS` rows; a group is made when there is no free place, and dropped when its last slot is. A slot has two rows, with
and without the prompt; where condition_scale is 1 the second would change nothing, and one is all there is.

Measured on CPUs, logits as integers, with the flag of device.py: no two sizes agree everywhere (12 and 18 rows do on
two threads and not on four or more), and of one size not all places do (with AVX2, products are made of six rows and of
what is left over: 1, 2 or 3 rows sum in an order of their own). All places of 18 do, with AVX2 and with AVX-512. On
accelerators nobody has measured it.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dalle_mini import decode, environment
from dalle_mini.checkpoint import load_params
from dalle_mini.config import ModelConfig
from dalle_mini.decode import DecodeState
from dalle_mini.model import CrossKV, Params
from dalle_mini.sampling_params import SamplingParams
from dalle_mini.start import FREE, Start
from dalle_mini.tokenizer import TokenizedPrompt

ROWS = 18  # that are computed together: 9 slots with guidance, 18 without
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


class Engine:
    """Owns a device's params and decode states; see the module's contract.

    slots: how many candidates with guidance are drawn at once, in whole groups, at least one; without, twice as many.
    None: what the memory holds.
    """

    def __init__(
        self, config: ModelConfig, params: Params, *, slots: int | None = None, device: jax.Device | None = None
    ) -> None:
        self.device = device or jax.devices()[0]
        self.config, self.params = config, jax.device_put(params, self.device)
        self.slots = slots or _slots_for(config, self.device)
        self._groups: dict[int, Group] = {}
        self._numbers = itertools.count()
        self._prompts: OrderedDict[bytes, CrossKV] = OrderedDict()
        self._prefill = jax.jit(partial(decode.prefill, config=config))
        self._insert = jax.jit(partial(decode.insert, config), donate_argnums=0)
        self._decode_row = jax.jit(partial(decode.decode_row, config=config), donate_argnames="state")
        self._rng = jax.jit(decode.candidate_rng)
        self._likelihoods = jax.jit(partial(decode.likelihoods, config=config))

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

    def likelihoods(self, prompt: TokenizedPrompt, codes: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """How likely the codes of a picture are for a prompt, as logarithms. Any thread may."""
        tokens, mask, codes = jax.device_put((prompt.tokens[:1], prompt.mask[:1], codes), self.device)
        return np.asarray(self._likelihoods(self.params, tokens=tokens, mask=mask, codes=codes))

    def has_room(self, params: SamplingParams) -> bool:
        """Whether one more candidate can be inserted now."""
        return self._find(_guided(params)) is not None or (len(self._groups) + 1) * ROWS <= 2 * self.slots

    def insert(self, prefix: CrossKV, params: SamplingParams, *, candidate: int) -> Slot:
        """Start a candidate in a free slot. `params.seed` must be set."""
        assert params.seed is not None, "the pipeline draws a seed before it draws a picture"
        guided = _guided(params)
        number = self._find(guided)
        if number is None:
            number = self._make(guided)
        group = self._groups[number]
        place, rng = group.free[-1], self._rng(jnp.uint32(params.seed), jnp.uint32(candidate))
        state, group.state = group.state, None  # a donated state is gone if the device fails
        try:
            given = self._given(params, candidate)
            group.state = self._insert(state, jnp.int32(place), prefix, rng, _sampling(params), *given)
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
        """Run one program after another, so that nobody waits for a compiler. Any thread may."""
        params, sampling = self.params, self.config.sampling  # `close` may come in between
        tokens = jax.device_put(np.zeros((2, self.config.max_text_length), np.int32), self.device)
        prefix = self._prefill(params, tokens=tokens, mask=jnp.ones_like(tokens))
        rng = self._rng(jnp.uint32(0), jnp.uint32(0))
        for guided in (True, False):
            state = self._empty(guided)
            state = self._insert(state, jnp.int32(0), prefix, rng, _sampling(sampling), *self._given(sampling, 0))
            self._decode_row(params, state=state)
            yield

    def close(self) -> None:
        """Forget the states and the params."""
        self.reset()
        self.params = {}

    def _find(self, guided: bool) -> int | None:
        """A group with a free place."""
        return next((n for n, group in self._groups.items() if group.guided == guided and group.free), None)

    def _make(self, guided: bool) -> int:
        """A new group, where there is room."""
        number, state = next(self._numbers), self._empty(guided)
        self._groups[number] = Group(guided=guided, state=state, free=list(range(len(state.codes)))[::-1], drawn={})
        return number

    def _given(self, params: SamplingParams, candidate: int) -> tuple[np.ndarray, np.ndarray]:
        start = params.start or Start((FREE,) * self.config.image_length)
        return start.given(params.seed or 0, candidate)

    def _empty(self, guided: bool) -> DecodeState:
        state = decode.empty_state(self.config, ROWS // 2 if guided else ROWS, guided=guided)
        return jax.device_put(state, self.device)


def load_engines(folder: Path, config: ModelConfig, *, slots: int | None = None) -> list[Engine]:
    """The text-to-code model of a folder, once on each device of this process. Raises `CheckpointError`."""
    params = load_params(folder, config, dtype=config.param_dtype)
    return [Engine(config, params, slots=slots, device=one) for one in jax.local_devices()]


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
    """What a quarter of the memory holds, in whole groups, at least one."""
    if device.platform == "cpu":
        memory, most = environment.memory(), MOST_SLOTS
    else:
        memory, most = (device.memory_stats() or {}).get("bytes_limit", 0), 4 * MOST_SLOTS
    positions = config.image_length + config.max_text_length
    slot = 2 * 2 * config.decoder_layers * config.d_model * positions * jnp.dtype(config.dtype).itemsize
    group = ROWS // 2
    return group * max(1, min(memory // 4 // slot, most) // group)
