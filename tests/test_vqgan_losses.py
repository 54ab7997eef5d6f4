"""What the perceptual loss and the discriminator compute, against hand-made numbers and other people's code."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dalle_mini.training.vqgan import discriminator
from dalle_mini.training.vqgan.discriminator import (
    DiscriminatorConfig,
    adaptive_weight,
    discriminator_loss,
    painter_loss,
)
from dalle_mini.training.vqgan.perceptual import C1, C2, WEIGHTS, perceptual_loss, scales

pytestmark = pytest.mark.usefixtures("unoptimised")
SMALL = DiscriminatorConfig(channels=8, layers=2)
distance = jax.jit(perceptual_loss)


def pictures(count: int = 2, side: int = 48) -> np.ndarray:
    """float32 in [0, 1]: overlapping rectangles with a fine stripe in each."""
    rng = np.random.default_rng(0)
    pixels = np.empty((count, side, side, 3), np.float32)
    for picture in pixels:
        picture[:] = rng.random(3)
        for _ in range(12):
            top, left = rng.integers(0, side - 8, 2)
            height, width = rng.integers(4, side // 2, 2)
            picture[top : top + height, left : left + width] = rng.random(3)
            picture[top : top + height : 3, left : left + width] *= 0.6
    return pixels


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(pixels, (0, sigma, sigma, 0))


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return (pixels + np.random.default_rng(1).normal(0, sigma, pixels.shape)).clip(0, 1).astype(np.float32)


def ssim_by_scipy(a: np.ndarray, b: np.ndarray, *, structure_only: bool) -> float:
    """Wang et al. 2004, equation 13, of float64 planes, at the places where a window of 11 pixels is whole."""

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b = mean(a**2) - mu_a**2, mean(b**2) - mu_b**2
    structure = (2 * (mean(a * b) - mu_a * mu_b) + C2) / (var_a + var_b + C2)
    luminance = (2 * mu_a * mu_b + C1) / (mu_a**2 + mu_b**2 + C1)
    return (structure if structure_only else luminance * structure).mean()


def halved(x: np.ndarray) -> np.ndarray:
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def test_perceptual_loss_is_one_minus_the_weighted_similarities_of_the_scales():
    """48 pixels have three scales: 48, 24 and 12."""
    a = pictures()
    b = noisy(blurred(a, 1), 0.03)
    expected = []
    for i in np.ndindex(2, 3):  # picture, channel
        x, y, similarity = a[i[0], ..., i[1]].astype(float), b[i[0], ..., i[1]].astype(float), 0.0
        for scale in range(3):
            similarity += WEIGHTS[scale] * ssim_by_scipy(x, y, structure_only=scale < 2)
            x, y = halved(x), halved(y)
        expected.append(1 - similarity / sum(WEIGHTS[:3]))
    np.testing.assert_allclose(distance(a, b), np.mean(expected), atol=1e-5)


def test_equal_pictures_have_no_perceptual_loss_and_others_have_one_below_two():
    a = pictures()
    assert abs(distance(a, a)) < 1e-6
    assert 0.5 < distance(a, np.random.default_rng(0).random(a.shape, np.float32)) < 2
    assert distance(a, 1 - a) > 1  # a negative has the structure upside down


@pytest.mark.parametrize(("side", "count"), [(10, 0), (11, 1), (22, 2), (64, 3), (175, 4), (176, 5), (2048, 5)])
def test_pictures_have_as_many_scales_as_windows_fit(side: int, count: int):
    assert scales(side, side) == scales(side, 2 * side) == count


def test_more_blur_noise_or_shift_is_a_larger_loss():
    a = pictures()
    for series in (
        [blurred(a, sigma) for sigma in (0.5, 1, 2, 4)],
        [noisy(a, sigma) for sigma in (0.02, 0.05, 0.1, 0.2)],
        [np.roll(a, shift, axis=2) for shift in (1, 2, 4)],
    ):
        losses = [float(distance(a, b)) for b in series]
        assert losses == sorted(losses)
        assert losses[0] > 1e-3


def test_blur_looks_worse_than_another_brightness_of_the_same_squared_error():
    """What squared error cannot tell (Wang et al. 2004, figure 2)."""
    a = 0.25 + pictures() / 2
    blur = blurred(a, 1.5)
    brighter = a + np.sqrt(np.square(blur - a).mean())
    np.testing.assert_allclose(np.square(brighter - a).mean(), np.square(blur - a).mean(), rtol=1e-4)
    assert distance(a, blur) > 5 * distance(a, brighter)


def test_a_step_along_the_perceptual_gradient_improves_even_a_grey_picture():
    """Where similarity is 0, the powers of the paper's product would have no use of a gradient."""
    a = pictures()
    grey = np.full_like(a, a.mean())
    gradient = jax.jit(jax.grad(perceptual_loss))(grey, a)
    assert np.isfinite(gradient).all()
    assert distance(grey - 0.01 * gradient / jnp.abs(gradient).max(), a) < distance(grey, a)


def test_pictures_smaller_than_a_window_are_named():
    with pytest.raises(ValueError, match="at least 11 pixels high and wide, got 10 x 16"):
        perceptual_loss(jnp.zeros((1, 10, 16, 3)), jnp.zeros((1, 10, 16, 3)))


@pytest.mark.parametrize(
    ("config", "side", "patches"),
    [(SMALL, 12, 1), (SMALL, 16, 2), (DiscriminatorConfig(), 24, 1), (DiscriminatorConfig(), 256, 30)],
)
def test_every_patch_has_a_logit(config: DiscriminatorConfig, side: int, patches: int):
    """30 x 30 of 256 pixels, as in the paper; the smallest picture has one."""
    assert config.smallest_side <= side

    def judge(pixels: jax.Array) -> jax.Array:
        return discriminator.logits(discriminator.init_params(config, jax.random.key(0)), config, pixels)

    shape = jax.eval_shape(judge, jnp.zeros((2, side, side, 3)))
    assert shape.shape == (2, patches, patches)


def test_the_discriminator_has_the_layers_of_the_paper():
    params = jax.eval_shape(lambda: discriminator.init_params(DiscriminatorConfig(), jax.random.key(0)))
    kernels = {name: layer["kernel"].shape for name, layer in params.items() if "conv" in name}
    assert kernels == {
        "conv_0": (4, 4, 3, 64),
        "conv_1": (4, 4, 64, 128),
        "conv_2": (4, 4, 128, 256),
        "conv_3": (4, 4, 256, 512),
        "conv_out": (4, 4, 512, 1),
    }


@pytest.fixture(scope="module")
def critic() -> dict[str, Any]:
    return jax.jit(partial(discriminator.init_params, SMALL))(jax.random.key(0))


def test_every_parameter_of_the_discriminator_and_every_pixel_has_a_gradient(critic: dict[str, Any]):
    pixels = jnp.asarray(pictures(2, 16))
    gradient = jax.jit(jax.grad(lambda p, x: jnp.square(discriminator.logits(p, SMALL, x)).mean(), (0, 1)))
    of_params, of_pixels = gradient(critic, pixels)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_params))
    assert (jnp.abs(of_pixels) > 0).all()


def test_a_pictures_logits_do_not_depend_on_the_others_of_the_batch(critic: dict[str, Any]):
    pixels = jnp.asarray(pictures(3, 16))
    together = discriminator.logits(critic, SMALL, pixels)
    np.testing.assert_allclose(discriminator.logits(critic, SMALL, pixels[1:2])[0], together[1], atol=1e-6)


def test_hinge_losses_by_hand():
    real, painted = jnp.array([[[2.0, 0.5]]]), jnp.array([[[-3.0, 0.0]]])
    # Real: 0 beyond 1, and 1 - 0.5. Painted: 0 beyond -1, and 1 + 0.
    assert discriminator_loss(real, painted) == ((0 + 0.5) / 2 + (0 + 1) / 2) / 2
    assert discriminator_loss(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 2))) == 1  # no opinion
    assert painter_loss(painted) == 1.5


def test_adaptive_weight_by_hand():
    three_four, five_twelve = jnp.array([[3.0], [4.0]]), jnp.array([[5.0], [12.0]])
    assert adaptive_weight(three_four, five_twelve) == pytest.approx(5 / 13)
    assert adaptive_weight(jnp.zeros(2), five_twelve[:, 0]) == 0
    assert adaptive_weight(three_four, jnp.zeros((2, 1))) == 1e4
    assert jax.grad(lambda x: adaptive_weight(x, five_twelve))(three_four).sum() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 12}, "discriminator.channels must be a multiple of 8 and >= 8, got 12"),
        ({"channels": 0}, "discriminator.channels must be a multiple of 8 and >= 8, got 0"),
        ({"layers": 0}, "discriminator.layers must be >= 1, got 0"),
        ({"learning_rate": 0}, "discriminator.learning_rate must be > 0, got 0"),
    ],
)
def test_wrong_settings_of_the_discriminator_are_named(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**values)
