"""The network equals the reference on its golden data, and rows and positions see only what they may."""

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini import model
from dalle_mini.checkpoint import load_params
from dalle_mini.config import MEGA, MINI, ModelConfig
from dalle_mini.sampling import guide

GOLDEN = Path(__file__).parent / "golden"
CASES = ["mini", "mini_scan", "mega", "mega_fp16", "force_ln_scale"]
# The reference's own cached and full paths differ by up to 3e-5.
ATOL = 1e-4


class Case(NamedTuple):
    config: ModelConfig
    params: model.Params
    arrays: dict[str, jax.Array]

    def text(self, prefix: str = "") -> tuple[jax.Array, jax.Array]:
        return self.arrays[f"{prefix}input_ids"], self.arrays[f"{prefix}attention_mask"]


@cache
def load(name: str) -> Case:
    config = ModelConfig.from_json(GOLDEN / name / "config.json")
    params = load_params(GOLDEN / name, config, dtype="float32")
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        return Case(config, params, {key: jnp.asarray(arrays[key]) for key in arrays.files})


encode = jax.jit(model.encode, static_argnums=1)
forward = jax.jit(model.forward, static_argnums=1)
cross_kv = jax.jit(model.cross_kv, static_argnums=1)
decode_step = jax.jit(model.decode_step, static_argnums=1)


def prefill(case: Case, prefix: str = "") -> model.CrossKV:
    tokens, mask = case.text(prefix)
    return cross_kv(case.params, case.config, encode(case.params, case.config, tokens, mask), mask)


def cached_logits(case: Case, prefix: str = "") -> jax.Array:
    """The logits of every position along the golden codes, one decode_step at a time."""
    cross = prefill(case, prefix)
    codes = case.arrays["decoder_input_ids"]
    kv = model.init_cache(case.config, codes.shape[0])
    steps = []
    for t in range(codes.shape[1]):
        positions = jnp.full(codes.shape[0], t)
        logits, kv = decode_step(case.params, case.config, cross, kv, codes[:, t], positions)
        steps.append(logits)
    return jnp.stack(steps, axis=1)


@pytest.mark.parametrize("name", CASES)
def test_encoder_states_equal_the_reference(name):
    case = load(name)
    states = encode(case.params, case.config, *case.text())
    np.testing.assert_allclose(states, case.arrays["encoder_last_hidden_state"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", CASES)
def test_teacher_forced_logits_equal_the_reference(name):
    case = load(name)
    for prefix in ["", "uncond_"]:
        if f"{prefix}input_ids" in case.arrays:
            logits = forward(case.params, case.config, *case.text(prefix), case.arrays["decoder_input_ids"])
            np.testing.assert_allclose(logits, case.arrays[f"{prefix}logits"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", ["mini", "mega"])
def test_cached_logits_equal_the_reference_with_and_without_guidance(name):
    case = load(name)
    cond, uncond = cached_logits(case), cached_logits(case, "uncond_")
    np.testing.assert_allclose(cond, case.arrays["step_logits_cond"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(uncond, case.arrays["step_logits_uncond"], rtol=0, atol=ATOL)
    for scale, atol in [(1, ATOL), (3, 3 * ATOL), (10, 2e-3)]:  # guidance multiplies the error
        rows = [guide(cond[b], uncond[b], jnp.full(cond.shape[1], float(scale))) for b in range(cond.shape[0])]
        np.testing.assert_allclose(jnp.stack(rows), case.arrays[f"step_logits_scale{scale}"], rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["mini", "mini_scan", "mega", "force_ln_scale"])
def test_greedy_codes_equal_the_reference(name):
    # The reference stops at an eos, but none of these paths meets one.
    case = load(name)
    expected = case.arrays["greedy_sequences"]
    cross, kv = prefill(case), model.init_cache(case.config, expected.shape[0])
    codes = jnp.full(expected.shape[0], case.config.bos_code)
    for t in range(case.config.image_length):
        logits, kv = decode_step(case.params, case.config, cross, kv, codes, jnp.full(len(codes), t))
        codes = jnp.argmax(logits, axis=-1)
        np.testing.assert_array_equal(codes, expected[:, t + 1])


def test_cached_decode_equals_full_forward():
    case = load("mega")
    full = forward(case.params, case.config, *case.text(), case.arrays["decoder_input_ids"])
    np.testing.assert_allclose(cached_logits(case), full, rtol=0, atol=ATOL)


def test_future_codes_do_not_change_logits():
    case = load("mini")
    codes = case.arrays["decoder_input_ids"]
    changed = codes.at[:, 9:].set((codes[:, 9:] + 1) % 96)
    before, after = (forward(case.params, case.config, *case.text(), x) for x in (codes, changed))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert not np.array_equal(before[:, 9:], after[:, 9:])


def test_padding_tokens_do_not_change_logits():
    case = load("mini")
    tokens, mask = case.text()
    assert (mask == 0).any()
    changed = jnp.where(mask == 0, 57, tokens)
    before, after = (
        forward(case.params, case.config, x, mask, case.arrays["decoder_input_ids"]) for x in (tokens, changed)
    )
    np.testing.assert_array_equal(before, after)


def test_rows_at_different_positions_do_not_disturb_each_other():
    """Row 1 starts five steps after row 0 and row 2 nine: each gets the logits it gets in step with the others."""
    case = load("mini")
    codes, length = case.arrays["decoder_input_ids"], case.config.image_length
    cross, kv = prefill(case), model.init_cache(case.config, 3)
    expected = cached_logits(case)
    late = jnp.array([0, 5, 9])
    for t in range(length + 9):
        positions = t - late
        inside = (positions >= 0) & (positions < length)
        fed = jnp.where(inside, codes[jnp.arange(3), jnp.clip(positions, 0, length - 1)], 0)
        # A row that waits or is done stands outside the cache, where it writes nothing.
        logits, kv = decode_step(case.params, case.config, cross, kv, fed, jnp.where(inside, positions, length))
        for row in np.flatnonzero(inside):
            np.testing.assert_allclose(logits[row], expected[row, positions[row]], rtol=0, atol=1e-5)


def test_a_cache_that_was_used_before_is_as_good_as_new():
    case = load("mini")
    cross = prefill(case)
    dirty = jax.tree.map(lambda x: x + 100, model.init_cache(case.config, 3))
    start = (jnp.full(3, case.config.bos_code), jnp.zeros(3, jnp.int32))
    fresh, _ = decode_step(case.params, case.config, cross, model.init_cache(case.config, 3), *start)
    reused, _ = decode_step(case.params, case.config, cross, dirty, *start)
    np.testing.assert_array_equal(fresh, reused)


def test_a_slot_without_a_text_gives_numbers():
    case = load("mini")
    cross = prefill(case)
    cross = cross._replace(mask=cross.mask.at[1].set(0))
    start = (jnp.full(3, case.config.bos_code), jnp.zeros(3, jnp.int32))
    logits, _ = decode_step(case.params, case.config, cross, model.init_cache(case.config, 3), *start)
    assert jnp.isfinite(logits).all()


def test_a_donated_cache_is_updated_in_place():
    """The compiled step needs less scratch memory than one layer's keys: it copies none of them."""
    config = dataclasses.replace(load("mini").config, image_length=256)
    params = model.param_shapes(config)
    cache_, tokens = jax.eval_shape(lambda: model.init_cache(config, 3)), jax.ShapeDtypeStruct((3,), jnp.int32)
    cross = jax.eval_shape(
        lambda p: model.cross_kv(p, config, jnp.zeros((3, 12, 32)), jnp.ones((3, 12), jnp.int32)), params
    )
    step = jax.jit(model.decode_step, static_argnums=1, donate_argnums=3)
    compiled = step.lower(params, config, cross, cache_, tokens, tokens).compile()
    donated = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(cache_))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == donated
    assert memory.temp_size_in_bytes < donated / config.decoder_layers / 2


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 0.1), ("bfloat16", 0.5)])
def test_sixteen_bit_compute_stays_near_the_reference_and_gives_float32_logits(dtype, atol):
    case = load("mega_fp16")
    config = dataclasses.replace(case.config, dtype=dtype, param_dtype=dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), case.params)
    logits = forward(params, config, *case.text(), case.arrays["decoder_input_ids"])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, case.arrays["logits_fp16_compute"], rtol=0, atol=atol)


def count(config: ModelConfig) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(model.param_shapes(config)))


def test_mini_and_mega_have_the_published_sizes():
    """Published as 0.4 and 2.6 billion params. By hand, with d = d_model, f = ffn_dim and L layers a side:

    encoder layer  4 d^2 attention + 3 d f GLU + 3 d + (d + f) norms    (pre: bias; post: scale, bias; GLU: d and f)
    decoder layer  8 d^2           + 3 d f     + 6 d + (d + f)
    a side         + tables and their norm (scale, bias) + final norm (bias); the decoder + lm_head
    """

    def by_hand(d: int, f: int, layers: int, text_vocab: int, image_vocab: int) -> int:
        encoder = layers * (4 * d * d + 3 * d * f + 4 * d + f) + (text_vocab + 64) * d + 3 * d
        decoder = layers * (8 * d * d + 3 * d * f + 7 * d + f) + (image_vocab + 256) * d + 3 * d
        return encoder + decoder + d * image_vocab

    assert count(MINI) == by_hand(1024, 2730, 12, 50264, 16385) == 437_833_712
    assert count(MEGA) == by_hand(2048, 4096, 24, 50272, 16416) == 2_587_521_024


@pytest.mark.parametrize("name", ["mini", "mega"])
def test_the_promised_shapes_are_those_of_all_layers(name: str):
    config = load(name).config
    assert min(config.encoder_layers, config.decoder_layers) > 1
    assert jax.eval_shape(lambda: model.init_params(config, jax.random.key(0))) == model.param_shapes(config)


def test_fresh_params_have_the_promised_shapes_and_give_finite_logits():
    small = {"encoder_layers": 1, "decoder_layers": 1, "param_dtype": "bfloat16"}
    config = dataclasses.replace(load("mini").config, **small)
    params = jax.jit(lambda rng: model.init_params(config, rng))(jax.random.key(0))
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert described == model.param_shapes(config)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    text = jnp.ones((2, 12), jnp.int32)
    assert jnp.isfinite(forward(params, config, text, text, jnp.zeros((2, 16), jnp.int32))).all()
