"""A candidate is the same to the bit whatever else the engine is doing; a tiny random model is enough to show it."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import random_params

from dalle_mini import model
from dalle_mini.checkpoint import load_params
from dalle_mini.config import ModelConfig
from dalle_mini.decode import candidate_rng
from dalle_mini.sampling import guide, sample
from dalle_mini.sampling_params import MAX_CANDIDATES, SamplingParams
from dalle_mini.serving.engine import KEPT_PROMPTS, ROWS, Engine, Slot
from dalle_mini.start import FREE, Start
from dalle_mini.tokenizer import TokenizedPrompt

GOLDEN = Path(__file__).parent / "golden"
CONFIG = ModelConfig(
    encoder_vocab_size=40,
    image_vocab_size=70,
    codebook_size=60,  # ten classes that no code may come from
    decoder_start_token_id=65,
    d_model=64,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=96,
    decoder_ffn_dim=96,
    image_length=16,
    max_text_length=8,
    init_std=0.2,  # larger than in training, so that the codes do depend on the text
)


class Request(NamedTuple):
    tokens: tuple[int, ...]
    params: SamplingParams
    candidate: int
    negative: tuple[int, ...] = ()

    @property
    def prompt(self) -> TokenizedPrompt:
        tokens, mask = np.ones((2, 8), np.int32), np.zeros((2, 8), np.int32)
        for row, ids in enumerate([(0, *self.tokens, 2), (0, *self.negative, 2)]):
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        return TokenizedPrompt(tokens=tokens, mask=mask, text="", truncated=False)


def request(seed: int = 0, candidate: int = 0, tokens: tuple[int, ...] = (7, 8, 9), **settings: Any) -> Request:
    return Request(tokens, SamplingParams(seed=seed, **settings), candidate)


OURS = request(3, 2, condition_scale=3.0)
NEIGHBOURS = [
    request(3, 1, condition_scale=3.0),
    request(4, 2, (11, 12, 13, 14, 15, 16), temperature=10.0, top_k=0, condition_scale=100.0),
    request(5, 0, (), temperature=0.01, top_k=1),
    request(2**32 - 1, 15, (30,), top_p=0.3, top_k=0, condition_scale=0.0),
    request(6, 3, start=Start((5, 6, FREE, 7) + (FREE,) * 12)),
    request(7, 1, start=Start((1, 2, 3, 4) * 4, 0.5, (-4.0,) * 16)),
]


class Drawn(NamedTuple):
    codes: np.ndarray  # [16]
    bits: np.ndarray  # of every key and value, which the logits are made of


@pytest.fixture(scope="module")
def engine() -> Engine:
    params = random_params(CONFIG)
    return Engine(CONFIG, params)


def insert(engine: Engine, wanted: Request) -> Slot:
    return engine.insert(engine.prefill(wanted.prompt), wanted.params, candidate=wanted.candidate)


def take(engine: Engine, slot: Slot) -> Drawn:
    """What a finished slot holds; it is evicted."""
    codes = engine.codes(slot)
    assert codes.shape == (CONFIG.image_length,)
    group = engine._groups[slot.group]
    own = 2 if group.guided else 1
    rows = slice(own * slot.place, own * slot.place + own)
    bits = np.stack([np.asarray(array)[rows] for array in jax.tree.leaves(group.state.cache)]).view(np.uint32)
    engine.evict(slot)
    return Drawn(codes, bits)


def draw(engine: Engine, requests: Sequence[Request]) -> list[Drawn]:
    """All together, in as few slots as hold them."""
    slots = [insert(engine, wanted) for wanted in requests]
    for _ in range(CONFIG.side):
        engine.decode()
    return [take(engine, slot) for slot in slots]


def assert_same(drawn: Drawn, expected: Drawn) -> None:
    np.testing.assert_array_equal(drawn.codes, expected.codes)
    np.testing.assert_array_equal(drawn.bits, expected.bits)


@pytest.fixture(scope="module")
def alone(engine: Engine) -> Drawn:
    return draw(engine, [OURS])[0]


def crowd(number: int, place: int) -> list[Request]:
    """OURS at `place` among neighbours of many kinds."""
    others = [NEIGHBOURS[i % len(NEIGHBOURS)] for i in range(number - 1)]
    return [*others[:place], OURS, *others[place:]]


@pytest.mark.parametrize("slots", [4, ROWS // 2, MAX_CANDIDATES])
def test_a_candidate_is_the_same_in_every_slot_and_group(engine: Engine, alone: Drawn, slots: int):
    for place in range(slots):
        assert_same(draw(engine, crowd(slots, place))[place], alone)


def test_a_candidate_is_the_same_beside_empty_slots(engine: Engine, alone: Drawn):
    for number in (2, 3, 5, 10):
        assert_same(draw(engine, crowd(number, 1))[1], alone)


def test_every_candidate_of_a_full_batch_is_the_one_drawn_alone(engine: Engine):
    together = draw(engine, NEIGHBOURS)
    for drawn, wanted in zip(together, NEIGHBOURS, strict=True):
        assert_same(drawn, draw(engine, [wanted])[0])


def test_eviction_and_insertion_midway_leave_the_others_unchanged(engine: Engine, alone: Drawn):
    """A slot is freed after a row and taken by OURS, which then draws on beside slots that are long finished."""
    expected = [draw(engine, [wanted])[0] for wanted in NEIGHBOURS]
    slots = [insert(engine, wanted) for wanted in NEIGHBOURS]
    engine.decode()
    engine.evict(slots.pop(1))
    del expected[1]
    ours = insert(engine, OURS)
    for _ in range(CONFIG.side - 1):
        engine.decode()
    for slot, wanted in zip(slots, expected, strict=True):
        assert_same(take(engine, slot), wanted)
    engine.decode()
    assert_same(take(engine, ours), alone)


def test_rows_come_one_after_another(engine: Engine, alone: Drawn):
    slot = insert(engine, OURS)
    for row in range(CONFIG.side + 1):
        np.testing.assert_array_equal(engine.codes(slot), alone.codes[: row * CONFIG.side])
        if row < CONFIG.side:
            engine.decode()
    engine.evict(slot)


@pytest.mark.parametrize("condition_scale", [3.0, 1.0], ids=["guided", "plain"])
def test_codes_follow_from_the_full_forward_and_the_documented_rng(engine: Engine, condition_scale: float):
    """Without cache, slots and loop: fold_in(fold_in(key(seed), candidate), position) on teacher-forced logits."""
    wanted = OURS._replace(params=dataclasses.replace(OURS.params, condition_scale=condition_scale))
    prompt, params, length = wanted.prompt, wanted.params, CONFIG.image_length
    (alone,) = draw(engine, [wanted])

    @jax.jit
    def teacher_forced(codes: jax.Array) -> jax.Array:
        codes_in = jnp.concatenate([jnp.array([CONFIG.bos_code]), codes[:-1]])
        both = jnp.broadcast_to(codes_in[None], (2, length))
        cond, uncond = model.forward(engine.params, CONFIG, jnp.asarray(prompt.tokens), jnp.asarray(prompt.mask), both)
        candidate = jax.random.fold_in(jax.random.key(params.seed), OURS.candidate)
        return sample(
            guide(cond, uncond, jnp.full(length, params.condition_scale)),
            jax.vmap(lambda position: jax.random.fold_in(candidate, position))(jnp.arange(length)),
            temperature=jnp.full(length, params.temperature),
            top_k=jnp.full(length, params.top_k),
            top_p=jnp.full(length, params.top_p),
            codebook_size=CONFIG.codebook_size,
        )

    np.testing.assert_array_equal(teacher_forced(jnp.asarray(alone.codes)), alone.codes)


GIVEN = np.full(16, FREE)
GIVEN[[2, 3, 7, 8, 13]] = 40, 41, 42, 43, 44


def test_given_codes_are_taken_and_what_comes_before_them_is_drawn_as_without(engine: Engine, alone: Drawn):
    begun = OURS._replace(params=dataclasses.replace(OURS.params, start=Start(tuple(GIVEN.tolist()))))
    ((codes, _),) = draw(engine, [begun])
    np.testing.assert_array_equal(codes[GIVEN != FREE], GIVEN[GIVEN != FREE])
    np.testing.assert_array_equal(codes[:2], alone.codes[:2])
    assert not np.array_equal(codes[GIVEN == FREE], alone.codes[GIVEN == FREE]), "the rest follows from them"


def test_a_candidate_whose_own_codes_are_given_is_that_candidate_to_the_bit(engine: Engine, alone: Drawn):
    """Given or drawn, codes go the same way: also what is drawn after them is the same."""
    for number in (16, 6):
        given = np.where(np.arange(16) < number, alone.codes, FREE)
        begun = OURS._replace(params=dataclasses.replace(OURS.params, start=Start(tuple(given.tolist()))))
        assert_same(draw(engine, [begun])[0], alone)


@pytest.mark.parametrize(
    "other",
    [
        OURS._replace(candidate=3),
        OURS._replace(tokens=(7, 8, 10)),
        OURS._replace(params=dataclasses.replace(OURS.params, seed=4)),
        OURS._replace(params=dataclasses.replace(OURS.params, condition_scale=1.0)),
        OURS._replace(params=dataclasses.replace(OURS.params, temperature=5.0)),
        OURS._replace(params=dataclasses.replace(OURS.params, top_k=1)),
        OURS._replace(params=dataclasses.replace(OURS.params, top_p=0.01)),
        OURS._replace(params=dataclasses.replace(OURS.params, start=Start((1, *[FREE] * 15)))),
        OURS._replace(negative=(20, 21)),
    ],
    ids=["candidate", "text", "seed", "condition_scale", "temperature", "top_k", "top_p", "start", "negative"],
)
def test_whatever_a_candidate_depends_on_changes_it(engine: Engine, alone: Drawn, other: Request):
    assert not np.array_equal(draw(engine, [other])[0].codes, alone.codes)


def test_the_rng_of_a_candidate_covers_every_seed():
    words = [tuple(jax.random.key_data(candidate_rng(np.uint32(s), 0)).tolist()) for s in (0, 1, 2**31, 2**32 - 1)]
    assert len(set(words)) == 4


def test_codes_stay_inside_the_codebook(engine: Engine):
    hot = [request(seed, i, temperature=10.0, top_k=0) for i, seed in enumerate(range(MAX_CANDIDATES))]
    codes = np.stack([drawn.codes for drawn in draw(engine, hot)])
    assert 0 <= codes.min() <= codes.max() < CONFIG.codebook_size
    assert codes.max() > CONFIG.codebook_size - 10  # they do reach its upper end


def test_changing_a_setting_compiles_nothing(engine: Engine, alone: Drawn):
    programs = (engine._prefill, engine._insert, engine._decode_row, engine._rng)
    before = [program._cache_size() for program in programs]
    for wanted in NEIGHBOURS:
        draw(engine, [wanted])
    assert [program._cache_size() for program in programs] == before


def test_after_warming_up_nothing_compiles(engine: Engine):
    engine = Engine(CONFIG, engine.params, slots=18)
    for _ in engine.warm_up():
        pass
    assert engine.slots_in_use == 0
    programs = (engine._prefill, engine._insert, engine._decode_row, engine._rng)
    before = [program._cache_size() for program in programs]
    for company in ([OURS], [OURS] * 10, [PLAIN[0]], PLAIN[:10]):
        draw(engine, company)
    assert [program._cache_size() for program in programs] == before


PLAIN = [request(seed, 1, condition_scale=1.0) for seed in range(20)]


def test_without_guidance_a_slot_has_one_row(engine: Engine):
    slots = [insert(engine, wanted) for wanted in PLAIN[:ROWS]]
    (group,) = engine._groups.values()
    assert group.state.cache.k[0].shape[0] == ROWS
    for slot in slots:
        engine.evict(slot)


def test_without_guidance_too_a_candidate_is_the_same_in_every_company(engine: Engine):
    expected = draw(engine, [PLAIN[0]])[0]
    for number in (2, 8, ROWS, 20):
        assert_same(draw(engine, [OURS, *PLAIN[1:number], PLAIN[0]])[-1], expected)


@pytest.mark.parametrize("name", ["mini", "mega"])
def test_forced_codes_are_the_references_own_teacher_forcing(name: str):
    """Its sampling runs, forced to every position: the likeliest code after them is that of the run's own logits."""
    folder = GOLDEN / name
    config = ModelConfig.from_json(folder / "config.json")
    engine, length = Engine(config, load_params(folder, config, dtype="float32"), slots=54), config.image_length
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    for run, settings in enumerate(json.loads((folder / "samples.json").read_text())):
        scale, expected, slots = settings["condition_scale"], {}, {}
        for b, sequence in enumerate(arrays[f"sample{run}_sequences"]):
            tokens, mask = (
                np.stack([arrays[f"{kind}{array}"][b] for kind in ("", "uncond_")])
                for array in ("input_ids", "attention_mask")
            )
            prefix = engine.prefill(TokenizedPrompt(tokens=tokens, mask=mask, text="", truncated=False))
            for t in range(length):
                start = Start((*sequence[1 : t + 1].tolist(), *[FREE] * (length - t)))
                params = SamplingParams(seed=0, condition_scale=scale, top_k=1, start=start)
                slots[b, t] = engine.insert(prefix, params, candidate=0)
                expected[b, t] = arrays[f"sample{run}_warped_logits"][b, t, : config.codebook_size].argmax()
        for _ in range(config.side):
            engine.decode()
        assert {place: engine.codes(slot)[place[1]] for place, slot in slots.items()} == expected
        engine.reset()


@pytest.mark.slow
def test_all_that_holds_on_this_machine_holds_on_five_threads():
    """XLA divides products among its threads, of which there are NPROC."""
    line = [sys.executable, "-m", "pytest", __file__, "-m", "not slow", "-k", "same or unchanged or alone"]
    settings = os.environ | {"NPROC": "5", "REQUIRE_BROWSER": ""}
    done = subprocess.run(line, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]


def test_groups_are_made_when_needed_and_dropped_when_empty(engine: Engine):
    slots = [insert(engine, wanted) for wanted in [OURS] * (ROWS // 2 + 1)]
    assert [len(group.drawn) for group in engine._groups.values()] == [ROWS // 2, 1]
    assert engine.slots_in_use == ROWS // 2 + 1
    for slot in slots:
        engine.evict(slot)
    assert engine._groups == {}


def test_there_is_room_for_as_many_slots_as_were_asked_for():
    params = random_params(CONFIG)
    engine = Engine(CONFIG, params, slots=9)
    for _ in range(9):
        assert engine.has_room(OURS.params)
        insert(engine, OURS)
    assert not engine.has_room(OURS.params)
    assert not engine.has_room(PLAIN[0].params)
    engine.reset()
    assert engine.has_room(PLAIN[0].params)


def test_the_latest_prompts_are_prefilled_once(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    engine.reset()
    calls, prefill = [], engine._prefill
    monkeypatch.setattr(engine, "_prefill", lambda *args, **kwargs: calls.append(0) or prefill(*args, **kwargs))
    prompts = [request(tokens=(token,)).prompt for token in range(4, 4 + KEPT_PROMPTS + 1)]
    for prompt in [*prompts, *prompts[1:]]:
        engine.prefill(prompt)
    assert len(calls) == KEPT_PROMPTS + 1
    engine.prefill(prompts[0])
    assert len(calls) == KEPT_PROMPTS + 2


def test_a_device_failure_leaves_an_engine_that_can_be_reset(engine: Engine, alone: Drawn):
    insert(engine, OURS)
    row, engine._decode_row = engine._decode_row, lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.decode()
    engine._decode_row = row
    engine.reset()
    assert_same(draw(engine, [OURS])[0], alone)


def test_a_closed_engine_holds_no_memory():
    engine = Engine(CONFIG, {"encoder": jnp.zeros(3)})
    engine.close()
    assert (engine.params, engine._groups) == ({}, {})
