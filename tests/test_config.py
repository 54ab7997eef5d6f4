"""Configs of the family are read, everything else is refused by name; a bad setting names itself."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dalle_mini.config import MEGA, MINI, ModelConfig
from dalle_mini.sampling_params import FIRST, SamplingParams

OUTSIDE_THE_FAMILY = {
    "ln_positions": ["preln", "postln", "deepnet", "subln", "cogview", "swinv2"],
    "ln_type": ["rmsnorm"],
    "activation_function": ["gelu_new", "relu", "smelu"],
    "use_glu": [False],
    "use_bias": [True],
    "use_absolute_position_embeddings": [False],
    "use_final_ln_encoder": [False],
    "use_final_ln_decoder": [False],
    "use_swin_position_embeddings": [True],
    "use_cosine_attention": [True],
    "use_head_scale": [True],
    "use_alibi": [True],
    "use_deepnet_scaling": [True],
    "use_subln_init": [True],
    "scale_embedding": [True],
    "tie_word_embeddings": [True],
    "sinkhorn_iters": [3],
}


def published(golden: Callable[[str], Path], case: str = "mini") -> dict:
    return json.loads((golden(case) / "config.json").read_text())


def test_published_config_is_read(golden):
    config = ModelConfig.from_json(golden("mega") / "config.json")
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (32, 2, 3)
    assert (config.image_vocab_size, config.vocab_size, config.bos_code, config.side) == (127, 128, 96, 4)
    assert config.normalize_text
    assert not config.force_ln_scale
    assert config.sampling == SamplingParams(top_k=50, condition_scale=10.0, temperature=1.0, top_p=1.0)


def test_absent_keys_mean_the_published_defaults(golden):
    optional = {"image_length", "max_text_length", "decoder_start_token_id", "normalize_text", "init_std"}
    sizes = {field.name for field in dataclasses.fields(ModelConfig)} & published(golden).keys() - optional
    config = ModelConfig.from_dict({name: published(golden)[name] for name in sizes})
    assert (config.image_length, config.max_text_length, config.bos_code) == (256, 64, 96)
    assert not config.normalize_text


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in OUTSIDE_THE_FAMILY.items() for v in values])
def test_a_config_outside_the_family_is_refused_by_key_and_value(golden, key, value):
    with pytest.raises(ValueError, match=rf"^{key} must be .*got {value!r}$"):
        ModelConfig.from_dict(published(golden) | {key: value})


def test_force_ln_scale_is_in_the_family(golden):
    assert ModelConfig.from_dict(published(golden) | {"force_ln_scale": True}).force_ln_scale


def test_keys_of_the_saver_are_ignored(golden):
    raw = published(golden)
    noise = {"architectures": ["anything"], "transformers_version": "9", "_name_or_path": "x", "use_scan": None}
    assert ModelConfig.from_dict(raw | noise) == ModelConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 30}, "encoder_attention_heads must divide d_model 30, got 4"),
        ({"d_model": 0}, "d_model must be a whole number >= 1, got 0"),
        ({"decoder_layers": "3"}, "decoder_layers must be a whole number >= 1, got '3'"),
        ({"image_length": 15}, "image_length must be a square number, got 15"),
        ({"decoder_start_token_id": 97}, "decoder_start_token_id must be <= image_vocab_size 96, got 97"),
        ({"codebook_size": 97}, "codebook_size must be <= image_vocab_size 96, got 97"),
        ({"normalize_text": "yes"}, "normalize_text must be true or false, got 'yes'"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"init_std": 0}, "init_std must be a number > 0, got 0"),
        ({"top_k": -1}, "top_k must be a whole number >= 0, got -1"),
        ({"d_model": None}, "the config must have d_model, got none"),
    ],
)
def test_a_wrong_value_is_named(golden, change, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is compared)
        ModelConfig.from_dict(published(golden) | change)
    assert str(error.value) == message


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]"])
def test_a_file_that_is_no_config_is_one_value_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json must (be|hold) a JSON"):
        ModelConfig.from_json(tmp_path / "config.json")


def test_sampling_defaults_of_a_model_come_from_its_config(golden):
    knobs = {"condition_scale": 3.0, "temperature": 0.5, "top_k": 0, "top_p": 0.9}
    config = ModelConfig.from_dict(published(golden) | knobs)
    assert config.sampling == SamplingParams(**knobs)
    assert ModelConfig.from_dict(published(golden) | {"top_k": None}).sampling.top_k == 50


def test_a_config_survives_its_own_json(golden):
    config = dataclasses.replace(
        ModelConfig.from_dict(published(golden)),
        codebook_size=64,
        dtype="bfloat16",
        force_ln_scale=True,
        sampling=SamplingParams(top_k=7),
    )
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_published_constants_have_the_published_classes():
    assert (MINI.vocab_size, MEGA.vocab_size) == (16385, 16416)
    assert MINI.bos_code == MEGA.bos_code == MINI.codebook_size == MEGA.codebook_size == 16384
    assert MINI.side == MEGA.side == 16


WHOLE = [2.5, math.nan, math.inf, "3", True, None, [3]]
NUMBER = [math.nan, math.inf, -math.inf, "1", True, None, -0.5, 10**400]


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_candidates", v) for v in [0, 17, -1, *WHOLE]]
    + [("seed", v) for v in [-1, 2**32, 2.5, math.nan, "7", False]]
    + [("top_k", v) for v in [-1, 2**31, *WHOLE]]
    + [("condition_scale", v) for v in [100.5, *NUMBER]]
    + [("temperature", v) for v in [0, 10.5, *NUMBER]]
    + [("top_p", v) for v in [0, 1.5, *NUMBER]],
)
def test_a_bad_setting_names_itself_the_rule_and_the_value(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a ") as error:
        SamplingParams(**{name: value})
    assert str(error.value).endswith(f", got {value!r}")


def test_numbers_of_sliders_are_accepted_as_what_they_mean():
    params = SamplingParams(
        num_candidates=9.0, seed=np.uint32(7), condition_scale=10, temperature=1, top_k=50.0, top_p=1
    )
    assert params == SamplingParams(seed=7)
    assert [type(getattr(params, name)) for name in FIRST] == [int, int, float, float, int, float]


def test_the_edges_of_every_range_are_allowed():
    SamplingParams(num_candidates=1, seed=0, condition_scale=0, temperature=1e-3, top_k=0, top_p=1e-6)
    SamplingParams(num_candidates=16, seed=2**32 - 1, condition_scale=100, temperature=10, top_k=10**6, top_p=1)


def test_a_negative_prompt_is_a_text_and_one_without_anything_to_see_is_none():
    with pytest.raises(ValueError, match=r"^negative_prompt must be a text, got 7$"):
        SamplingParams(negative_prompt=7)
    assert SamplingParams(negative_prompt=" \u200b\n") == SamplingParams()


def test_what_is_left_at_its_default_is_not_told_of_newer_settings():
    """So the files of a plain drawing are what they always were."""
    assert list(SamplingParams(seed=7).to_dict()) == list(FIRST)
    params = SamplingParams(seed=7, negative_prompt="blue")
    assert list(params.to_dict()) == [*FIRST, "negative_prompt"]
    assert SamplingParams(**params.to_dict()) == params
