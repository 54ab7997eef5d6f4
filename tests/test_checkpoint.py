"""Published layouts become one layout and go back to the bit; what does not fit is named by its path."""

import json
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from dalle_mini.checkpoint import from_published, load_params, published_path, save_model, to_published
from dalle_mini.config import MEGA, MINI, ModelConfig
from dalle_mini.model import param_shapes
from vqgan.files import CheckpointError

GOLDEN = Path(__file__).parent / "golden"


def config_of(name: str) -> ModelConfig:
    return ModelConfig.from_json(GOLDEN / name / "config.json")


def tree_of(name: str) -> dict:
    return flax.serialization.msgpack_restore((GOLDEN / name / "flax_model.msgpack").read_bytes())


def assert_same_to_the_bit(left: dict, right: dict) -> None:
    left, right = flatten_dict(left, sep="/"), flatten_dict(right, sep="/")
    assert left.keys() == right.keys()
    for path in left:
        assert left[path].dtype == right[path].dtype, path
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


def write_folder(folder: Path, tree: dict) -> Path:
    (folder / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    return folder


def test_both_published_layouts_give_the_same_params():
    per_layer = load_params(GOLDEN / "mini", config_of("mini"), dtype="float32")
    stacked = load_params(GOLDEN / "mini_scan", config_of("mini_scan"), dtype="float32")
    assert_same_to_the_bit(per_layer, stacked)


@pytest.mark.parametrize("name", ["mini", "mini_scan", "mega", "mega_fp16", "force_ln_scale"])
def test_published_tree_survives_the_round_trip(name):
    config, tree = config_of(name), tree_of(name)
    stacked = json.loads((GOLDEN / name / "config.json").read_text())["use_scan"]
    assert_same_to_the_bit(to_published(from_published(tree, config), stacked=stacked), tree)


def test_per_layer_tree_exports_to_the_stacked_one():
    params = from_published(tree_of("mini"), config_of("mini"))
    assert_same_to_the_bit(to_published(params, stacked=True), tree_of("mini_scan"))


def test_more_than_ten_layers_keep_their_order():
    config = ModelConfig.from_dict(config_of("mini").to_dict() | {"decoder_layers": 12})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(config))
    assert_same_to_the_bit(from_published(to_published(params, stacked=True), config), params)


@pytest.mark.parametrize("config", [MINI, MEGA])
def test_every_param_of_the_published_sizes_has_a_published_name_of_its_own(config):
    paths = list(flatten_dict(param_shapes(config), sep="/"))
    names = {published_path(path) for path in paths}
    assert len(names) == len(paths)
    assert all(name.startswith(("model/encoder/", "model/decoder/", "lm_head/")) for name in names)
    known = {"FlaxBartAttention_0", "FlaxBartAttention_1", "GLU_0"} | {f"LayerNorm_{i}" for i in range(4)}
    assert {name.split("/")[4] for name in names if "/layers/" in name} == known


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_our_folder_survives_the_round_trip(tmp_path, dtype):
    config = config_of("mini")
    params = load_params(GOLDEN / "mini", config, dtype="float32")
    save_model(tmp_path / "saved", config, params, dtype=dtype)
    assert ModelConfig.from_json(tmp_path / "saved" / "config.json") == config
    rounded = jax.tree.map(lambda x: x.astype(dtype), params)
    assert_same_to_the_bit(load_params(tmp_path / "saved", config, dtype=dtype), rounded)
    wide = load_params(tmp_path / "saved", config, dtype="float32")
    assert_same_to_the_bit(wide, jax.tree.map(lambda x: x.astype(jnp.float32), rounded))


@pytest.mark.parametrize("name", ["mini", "mini_scan"])
def test_wrong_shape_is_named(tmp_path, name):
    flat = flatten_dict(tree_of(name), sep="/")
    path = next(p for p in flat if p.startswith("model/decoder/layers/") and p.endswith("GLU_0/Dense_1/kernel"))
    flat[path] = flat[path][..., :-1]
    with pytest.raises(CheckpointError, match=r"FlaxBartDecoderLayer_0/GLU_0/Dense_1/kernel.*48.*47"):
        load_params(write_folder(tmp_path, unflatten_dict(flat, sep="/")), config_of(name), dtype="float32")


def test_missing_and_unexpected_paths_are_named(tmp_path):
    flat = flatten_dict(tree_of("mini"), sep="/")
    flat["lm_head/bias"] = np.zeros(97, np.float32)
    del flat["model/encoder/final_ln/bias"]
    with pytest.raises(CheckpointError) as error:
        load_params(write_folder(tmp_path, unflatten_dict(flat, sep="/")), config_of("mini"), dtype="float32")
    assert "model/encoder/final_ln/bias" in str(error.value)
    assert "lm_head/bias" in str(error.value)


@pytest.mark.parametrize(("name", "layers"), [("mini", 2), ("mini", 4), ("mini_scan", 2), ("mini_scan", 4)])
def test_a_config_with_another_number_of_layers_is_refused(name, layers):
    config = ModelConfig.from_dict(config_of(name).to_dict() | {"decoder_layers": layers})
    with pytest.raises(CheckpointError, match=f"FlaxBartDecoderLayer_{min(layers, 3)}/"):
        load_params(GOLDEN / name, config, dtype="float32")


@pytest.mark.parametrize("tree", [{}, {"model": np.zeros(3)}, {"model": {"encoder": 3}}, {"a": {"b": np.zeros(2)}}])
def test_a_foreign_tree_is_a_checkpoint_error(tmp_path, tree):
    with pytest.raises(CheckpointError):
        load_params(write_folder(tmp_path, tree), config_of("mini"), dtype="float32")
