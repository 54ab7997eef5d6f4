"""The VQGAN equals the reference on its golden data, and a picture is the same alone or among others."""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import vqgan
from vqgan import model
from vqgan.config import VQGANConfig

GOLDEN = Path(__file__).parent / "golden"
CASES = ["vqgan_a", "vqgan_b"]
ATOL = 2e-4  # given with the golden data, for pixels and states


class Case(NamedTuple):
    vqgan: vqgan.Codec
    arrays: dict[str, np.ndarray]

    def apply(self, function: Callable[..., Any], given: np.ndarray) -> Any:
        """A function of (params, config, array), compiled."""
        return jax.jit(function, static_argnums=1)(self.vqgan.params, self.vqgan.config, given)


@cache
def load(name: str) -> Case:
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        return Case(vqgan.load(GOLDEN / name), {key: arrays[key] for key in arrays.files})


def latents_and_codes(params: model.Params, config: VQGANConfig, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return model.latents(params, config, pixels), model.encode(params, config, pixels)


@cache
def many() -> tuple[np.ndarray, np.ndarray]:
    """33 grids of random codes and their pictures, each drawn alone."""
    codes = np.random.default_rng(0).integers(64, size=(33, 64), dtype=np.int32)
    return codes, np.concatenate([load("vqgan_b").vqgan.decode(one[None]) for one in codes])


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes as outside the tests: nobody checks them but our own code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", CASES)
def test_latents_and_codes_equal_the_reference(name: str):
    case = load(name)
    latents, codes = case.apply(latents_and_codes, case.arrays["pixel_values"])
    np.testing.assert_allclose(latents, case.arrays["pre_quant"], rtol=0, atol=ATOL)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, case.arrays["indices"])


@pytest.mark.parametrize("name", CASES)
def test_decoded_pixels_equal_the_reference(name: str):
    case = load(name)
    codes = np.concatenate([case.arrays["indices"], case.arrays["random_indices"]])
    expected = np.concatenate([case.arrays["decoded"], case.arrays["decoded_random"]])
    np.testing.assert_allclose(case.apply(model.decode, codes), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", CASES)
def test_uint8_pictures_equal_the_reference(name: str):
    case = load(name)
    pixels = np.concatenate([case.vqgan.decode(codes[None]) for codes in case.arrays["random_indices"]])
    assert pixels.dtype == np.uint8
    away = np.abs(pixels.astype(int) - case.arrays["decoded_random_uint8"])
    assert away.max() <= 1
    assert (away > 0).mean() <= 0.001  # truncated at a boundary


def test_encoding_uint8_pictures_is_encoding_their_pixels_from_0_to_1():
    case = load("vqgan_b")
    pixels = (case.arrays["pixel_values"] * 255).astype(np.uint8)
    _, exact = case.apply(latents_and_codes, pixels.astype(np.float32) / 255)
    codes = np.concatenate([case.vqgan.encode(picture[None]) for picture in pixels])
    np.testing.assert_array_equal(codes, exact)


def test_fresh_params_have_the_promised_shapes_and_keep_the_size_of_what_goes_through():
    config = load("vqgan_b").vqgan.config
    params = jax.jit(lambda rng: model.init_params(config, rng))(jax.random.key(0))
    assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params) == model.param_shapes(config)
    drawn = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "kernel":
            drawn.append(np.asarray(leaf * np.sqrt(leaf.size / leaf.shape[-1])).ravel())
            assert 0.8 < drawn[-1].std() < 1.2, path
        elif path[-1].key != "embedding":
            assert (leaf == (path[-1].key == "scale")).all(), path
    assert np.concatenate(drawn).std() == pytest.approx(1, abs=0.02)
    assert len({sample[:3].tobytes() for sample in drawn}) == len(drawn)  # none is drawn twice


def test_equally_near_codes_give_the_first():
    codebook = jnp.array([[4.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(model.nearest_codes(codebook, jnp.array([[0.0, 2.0], [0.9, 0.9]])), [1, 1])


@pytest.mark.parametrize("number", [3, 17])
def test_same_picture_alone_or_among_others(number: int):
    codes, alone = many()
    np.testing.assert_array_equal(load("vqgan_b").vqgan.decode(codes[:number]), alone[:number])


def test_same_codes_alone_or_among_others():
    painter, pixels = load("vqgan_b").vqgan, many()[1][:17]
    alone = np.concatenate([painter.encode(one[None]) for one in pixels])
    np.testing.assert_array_equal(painter.encode(pixels), alone)


def test_memory_does_not_grow_with_the_number_of_pictures():
    """64 pictures go through in calls of at most `BATCH`, and such a call works as one picture does."""
    painter = load("vqgan_b").vqgan

    def scratch(pictures: int) -> int:
        codes = jax.ShapeDtypeStruct((pictures, 64), jnp.int32)
        program = vqgan._decode.lower(painter.params, codes, pictures, config=painter.config).compile()
        return program.memory_analysis().temp_size_in_bytes

    of_one, of_a_full_batch = scratch(1), scratch(vqgan.BATCH)
    activations = 4 * 32 * 32 * painter.config.ch  # float32, of one layer at full resolution
    assert of_one >= activations  # the figure does count what a picture needs
    assert of_a_full_batch < of_one + activations


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 16, 16, 3), np.uint8),
        np.zeros((1, 32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
    ],
)
def test_pixels_of_a_wrong_shape_or_dtype_are_named(pixels: np.ndarray):
    with pytest.raises(ValueError, match=r"^pixels must be uint8 of shape \[B, 32, 32, 3\], got ") as error:
        load("vqgan_b").vqgan.encode(pixels)
    assert str(error.value).endswith(f"got {pixels.dtype} {pixels.shape}")


@pytest.mark.parametrize("code", [-1, 64])
def test_codes_outside_the_codebook_are_named(code: int):
    codes = np.zeros((2, 64), np.int32)
    codes[1, 5] = code
    got = f"{min(code, 0)}..{max(code, 0)}"
    with pytest.raises(ValueError, match=rf"^codes must be in \[0, 64\), got {got}$"):
        load("vqgan_b").vqgan.decode(codes)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("codes", [np.zeros((2, 63), np.int32), np.zeros(64, np.int32), np.zeros((2, 64), np.float32)])
def test_codes_of_a_wrong_shape_or_dtype_are_named(codes: np.ndarray):
    with pytest.raises(ValueError, match=r"^codes must be ") as error:
        load("vqgan_b").vqgan.decode(codes)
    assert str(error.value).endswith(f"got {codes.dtype} {codes.shape}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"double_z": True}, "double_z must be False for a VQGAN that paints, got True"),
        ({"in_channels": 1}, "in_channels must be 3 for a VQGAN that paints, got 1"),
        ({"n_embed": 0}, "n_embed must be a whole number >= 1, got 0"),
        ({"ch": 40}, "ch \\* ch_mult must be multiples of num_groups=32, got 40 "),
        ({"resolution": 100}, "resolution must be a multiple of 16, got 100"),
    ],
)
def test_sizes_that_do_not_fit_are_named(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        VQGANConfig.from_dict(values)


def test_the_published_vqgan_has_the_published_size():
    """`vqgan_imagenet_f16_16384`, whose sizes are the defaults; its file of float32 is 304 MB."""

    def conv(kernel: int, before: int, after: int) -> int:
        return kernel * kernel * before * after + after

    def block(before: int, after: int) -> int:  # two norms (scale, bias) and convs, and a shortcut where needed
        shortcut = conv(1, before, after) if before != after else 0
        return 2 * before + conv(3, before, after) + 2 * after + conv(3, after, after) + shortcut

    attention = 2 * 512 + 4 * conv(1, 512, 512)
    mid = 2 * block(512, 512) + attention
    encoder = conv(3, 3, 128)
    encoder += 2 * block(128, 128) + conv(3, 128, 128)  # 256 pixels
    encoder += 2 * block(128, 128) + conv(3, 128, 128)  # 128
    encoder += block(128, 256) + block(256, 256) + conv(3, 256, 256)  # 64
    encoder += 2 * block(256, 256) + conv(3, 256, 256)  # 32
    encoder += block(256, 512) + block(512, 512) + 2 * attention  # 16
    encoder += mid + 2 * 512 + conv(3, 512, 256)
    decoder = conv(3, 256, 512) + mid
    decoder += 3 * block(512, 512) + 3 * attention + conv(3, 512, 512)  # 16
    decoder += block(512, 256) + 2 * block(256, 256) + conv(3, 256, 256)  # 32
    decoder += 3 * block(256, 256) + conv(3, 256, 256)  # 64
    decoder += block(256, 128) + 2 * block(128, 128) + conv(3, 128, 128)  # 128
    decoder += 3 * block(128, 128) + 2 * 128 + conv(3, 128, 3)  # 256
    by_hand = encoder + decoder + 16384 * 256 + 2 * conv(1, 256, 256)

    config = VQGANConfig()
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(model.param_shapes(config)))
    assert count == by_hand
    assert round(4 * count / 1e6) == 304
    assert (config.side, config.downscale) == (16, 16)
