"""Filters and draws equal the reference's, row by row, and obey their definitions on logits with ties."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_mini import sampling
from dalle_mini.checkpoint import load_params
from dalle_mini.config import ModelConfig
from dalle_mini.model import forward
from dalle_mini.sampling import guide

GOLDEN = Path(__file__).parent / "golden"

choose, sample, warp = (
    jax.jit(function, static_argnames="codebook_size") for function in (sampling.choose, sampling.sample, sampling.warp)
)


def rows(batch: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> dict[str, jax.Array]:
    """The same settings for every row of a batch."""
    return {
        "temperature": jnp.full(batch, temperature, jnp.float32),
        "top_k": jnp.full(batch, top_k, jnp.int32),
        "top_p": jnp.full(batch, top_p, jnp.float32),
    }


def warp_by_sorting(
    logits: np.ndarray, *, temperature: float, top_k: int, top_p: float, codebook_size: int
) -> np.ndarray:
    """The definition, for one row: sort, keep the first k, then those with less than p before them."""
    logits = np.where(np.arange(logits.size) < codebook_size, logits, -np.inf) / np.float32(temperature)
    order = np.argsort(-logits, kind="stable")
    if top_k:
        logits[order[top_k:]] = -np.inf
    if top_p < 1:
        masses = np.exp((logits - logits.max()).astype(np.float64))[order]
        before = np.cumsum(masses / masses.sum()) - masses / masses.sum()
        logits[order[before >= top_p]] = -np.inf
    return logits


def kept(logits: list[float], **settings: float) -> list[int]:
    """The codes that the filters leave of one row."""
    logits_ = jnp.array([logits], jnp.float32)
    return np.flatnonzero(np.isfinite(warp(logits_, **rows(1, **settings), codebook_size=len(logits))[0])).tolist()


@pytest.mark.parametrize("name", ["mini", "mega"])
def test_sampling_runs_with_saved_noise_equal_the_reference(name):
    """Each step of four runs, from the reference's codes so far: its filtered logits and its next code.

    The reference draws from all V classes, so codebook_size is V here. None of its runs meets an eos.
    """
    config = ModelConfig.from_json(GOLDEN / name / "config.json")
    params = load_params(GOLDEN / name, config, dtype="float32")
    logits_of = jax.jit(forward, static_argnums=1)
    with np.load(GOLDEN / name / "golden.npz") as file:
        arrays = {key: jnp.asarray(file[key]) for key in file.files}
    for run, settings in enumerate(json.loads((GOLDEN / name / "samples.json").read_text())):
        assert not settings["hits_eos"]
        sequences, noise, expected = (arrays[f"sample{run}_{key}"] for key in ("sequences", "gumbel", "warped_logits"))
        cond, uncond = (
            logits_of(
                params, config, arrays[f"{text}input_ids"], arrays[f"{text}attention_mask"], sequences[:, :-1]
            ).reshape(-1, config.vocab_size)  # [B, T, V] -> [B T, V]
            for text in ("", "uncond_")
        )
        guided = guide(cond, uncond, jnp.full(cond.shape[0], settings["condition_scale"]))
        knobs = rows(
            cond.shape[0],
            temperature=settings["temperature"] or 1.0,
            top_k=50 if settings["top_k"] is None else settings["top_k"],  # null is top-50 in the reference
            top_p=settings["top_p"] or 1.0,
        )
        warped = warp(guided, **knobs, codebook_size=config.vocab_size)
        np.testing.assert_allclose(warped, expected.reshape(warped.shape), rtol=0, atol=2e-3)
        codes = choose(guided, noise.reshape(warped.shape), **knobs, codebook_size=config.vocab_size)
        np.testing.assert_array_equal(codes, sequences[:, 1:].reshape(-1))


@pytest.mark.parametrize("decimals", [None, 0])  # 0: most logits are tied
def test_filters_equal_their_definition_by_sorting(decimals):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(40, 700)).astype(np.float32)
    if decimals is not None:
        logits = logits.round(decimals)
    temperature = rng.uniform(0.3, 2, 40).astype(np.float32)
    top_k = rng.integers(0, 80, 40).astype(np.int32)
    top_p = np.where(rng.random(40) < 0.3, 1, rng.uniform(0.01, 1, 40)).astype(np.float32)
    knobs = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    mine = warp(jnp.asarray(logits), **jax.tree.map(jnp.asarray, knobs), codebook_size=690)
    for row in range(40):
        settings = {name: values[row] for name, values in knobs.items()}
        expected = warp_by_sorting(logits[row], **settings, codebook_size=690)
        np.testing.assert_allclose(mine[row], expected, rtol=1e-6)


def test_top_k_keeps_exactly_k_and_the_lower_codes_of_a_tie():
    assert kept([1, 3, 3, 3, 0, 3], top_k=3) == [1, 2, 3]
    assert kept([1, 3, 3, 3, 0, 3], top_k=5) == [0, 1, 2, 3, 5]
    assert kept([0.0, -0.0, 0.0, -0.0], top_k=2) == [0, 1]
    assert kept([-5, -4, -6], top_k=1) == [1]
    assert kept([1, 2, 3], top_k=100) == [0, 1, 2]


def test_top_p_keeps_the_code_that_crosses_p_and_at_least_one():
    halves = np.log([0.5, 0.25, 0.125, 0.125]).tolist()
    assert kept(halves, top_p=0.01) == [0]
    assert kept(halves, top_p=0.51) == [0, 1]
    assert kept(halves, top_p=0.74) == [0, 1]
    assert kept(halves, top_p=0.8) == [0, 1, 2]
    assert kept(halves, top_p=0.9) == [0, 1, 2, 3]


def test_settings_too_small_for_float32_draw_the_best_code():
    logits = jnp.array([[1.0, 3e4, 2.0, -3e4]])
    for settings in ({"temperature": 1e-40}, {"top_p": 1e-46}, {"temperature": 1e-45, "top_p": 1e-46}):
        noise = jax.random.gumbel(jax.random.key(0), logits.shape)
        assert choose(logits, noise, **rows(1, **settings), codebook_size=4).tolist() == [1], settings
        assert jnp.isfinite(warp(logits, **rows(1, **settings), codebook_size=4)[0, 1]), settings


def test_top_p_counts_only_what_top_k_left():
    even = np.log([0.25, 0.25, 0.25, 0.25]).tolist()
    assert kept(even, top_p=0.6) == [0, 1, 2]
    assert kept(even, top_p=0.6, top_k=2) == [0, 1]
    assert kept(even, top_p=0.4, top_k=2) == [0]


def test_codes_outside_the_codebook_are_never_drawn():
    logits = jnp.zeros((64, 20)).at[:, 12:].set(50.0)
    rngs = jax.random.split(jax.random.key(0), 64)
    for top_k in (0, 5):
        codes = sample(logits, rngs, **rows(64, top_k=top_k), codebook_size=12)
        assert codes.max() < 12
    assert len(set(sample(logits, rngs, **rows(64), codebook_size=12).tolist())) > 6


def test_a_row_gives_the_same_code_alone_or_among_others():
    logits = jax.random.normal(jax.random.key(1), (9, 1024)) * 3
    rngs = jax.random.split(jax.random.key(2), 9)
    knobs = {
        "temperature": jnp.linspace(0.5, 2, 9),
        "top_k": jnp.array([0, 50, 1, 7, 0, 200, 3, 0, 50], jnp.int32),
        "top_p": jnp.array([1, 1, 0.5, 0.9, 0.7, 1, 1, 0.99, 0.1]),
    }
    together = sample(logits, rngs, **knobs, codebook_size=1000)
    for row in range(9):
        one = slice(row, row + 1)
        alone = sample(logits[one], rngs[one], **{k: v[one] for k, v in knobs.items()}, codebook_size=1000)
        assert alone[0] == together[row]


def test_changing_a_setting_compiles_nothing():
    rngs = jax.random.split(jax.random.key(0), 2)
    compiled = 0
    for settings in [{}, {"top_k": 5}, {"top_p": 0.5, "temperature": 0.1}, {"top_k": 50, "top_p": 0.9}]:
        sample(jnp.zeros((2, 31)), rngs, **rows(2, **settings), codebook_size=30)
        compiled = compiled or sample._cache_size()
    assert sample._cache_size() == compiled


def test_draws_follow_the_softmax_of_the_logits_over_the_temperature():
    logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    rngs = jax.random.split(jax.random.key(3), 4000)
    for temperature in (1.0, 0.5):
        codes = sample(
            jnp.broadcast_to(logits, (4000, 4)), rngs, **rows(4000, temperature=temperature), codebook_size=4
        )
        found = np.bincount(codes, minlength=4) / 4000
        np.testing.assert_allclose(found, jax.nn.softmax(logits / temperature), atol=0.03)


def test_guidance_of_each_row_has_its_own_scale_and_scale_one_is_the_prompt_alone():
    cond, uncond = jnp.array([[1.0, 2.5]] * 3), jnp.array([[0.5, 3.1]] * 3)
    guided = guide(cond, uncond, jnp.array([0.0, 1.0, 10.0]))
    np.testing.assert_allclose(guided[0], uncond[0], rtol=1e-6)
    np.testing.assert_array_equal(guided[1], cond[1])
    np.testing.assert_allclose(guided[2], [5.5, -2.9], rtol=1e-6)
