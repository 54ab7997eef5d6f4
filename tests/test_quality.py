"""FID, PSNR, SSIM and the use of a codebook against closed forms, and against the same formulas written out slowly."""

import numpy as np
import pytest

from dalle_mini.training.report.quality import codebook_use, frechet_distance, psnr, ssim

RNG = np.random.default_rng(0)


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 50) -> np.ndarray:
    """Points with exactly this mean and covariance."""
    points = np.random.default_rng(1).normal(size=(count, len(mean)))
    points -= points.mean(0)
    white = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def pictures(count: int = 2, height: int = 13, width: int = 12) -> np.ndarray:
    return RNG.integers(0, 256, (count, height, width, 3)).astype(np.uint8)


# FID


def test_fid_of_gaussians_with_a_common_basis_is_the_closed_form():
    one, two = np.array([4.0, 1.0, 9.0]), np.array([1.0, 16.0, 9.0])
    shift = np.array([3.0, 0.0, 4.0])
    got = frechet_distance(gaussian(np.zeros(3), np.diag(one)), gaussian(shift, np.diag(two)))
    assert got == pytest.approx(25 + np.square(np.sqrt(one) - np.sqrt(two)).sum(), abs=1e-9)


def test_fid_of_gaussians_without_a_common_basis_is_the_closed_form():
    c, d = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    # The trace of the square root of a 2 x 2 matrix, from its trace and determinant.
    root = np.sqrt(np.trace(c @ d) + 2 * np.sqrt(np.linalg.det(c @ d)))
    got = frechet_distance(gaussian(np.zeros(2), c), gaussian(np.ones(2), d))
    assert got == pytest.approx(2 + np.trace(c) + np.trace(d) - 2 * root, abs=1e-9)


def test_fid_of_equal_sets_is_zero_even_with_fewer_pictures_than_features():
    for shape in ((40, 8), (5, 64)):
        features = RNG.normal(size=shape).astype(np.float32)
        assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_fid_is_the_same_both_ways_and_grows_with_the_distance():
    one, two = RNG.normal(size=(30, 4)), RNG.normal(size=(20, 4)) * 2
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one))
    assert frechet_distance(one, two + 5) > frechet_distance(one, two + 1) > 0


def test_fid_of_a_single_picture_is_refused():
    with pytest.raises(ValueError, match="FID must have at least 2 pictures of each kind, got 5 and 1"):
        frechet_distance(np.zeros((5, 3)), np.zeros((1, 3)))


# Pairs of pictures


def test_psnr_of_a_known_error():
    picture = np.full((2, 8, 8, 3), 100, np.uint8)
    other = picture + np.array([1, 10], np.uint8)[:, None, None, None]
    np.testing.assert_allclose(psnr(picture, other), [20 * np.log10(255), 20 * np.log10(25.5)])
    np.testing.assert_allclose(psnr(other, picture), psnr(picture, other))  # no wrap-around of uint8


def test_psnr_of_equal_pictures_is_infinite():
    some = pictures()
    assert np.isinf(psnr(some, some)).all()


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004, window by window."""
    place = np.arange(11) - 5
    weights = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            for colour in range(3):
                a, b = (p[row : row + 11, column : column + 11, colour].astype(float) for p in (x, y))
                m, n = (weights * a).sum(), (weights * b).sum()
                v, w = (weights * (a - m) ** 2).sum(), (weights * (b - n) ** 2).sum()
                covariance = (weights * (a - m) * (b - n)).sum()
                values.append((2 * m * n + c1) * (2 * covariance + c2) / ((m * m + n * n + c1) * (v + w + c2)))
    return float(np.mean(values))


def test_ssim_equals_the_formula_written_out():
    one = pictures()
    other = (one.astype(int) + RNG.integers(-40, 40, one.shape)).clip(0, 255).astype(np.uint8)
    expected = [slow_ssim(x, y) for x, y in zip(one, other, strict=True)]
    np.testing.assert_allclose(ssim(one, other), expected, atol=1e-10)
    assert 0.5 < max(expected) < 1


def test_ssim_of_flat_pictures_is_the_closed_form():
    one, other = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 200, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(one, other)[0] == pytest.approx((2 * 100 * 200 + c1) / (100**2 + 200**2 + c1))


def test_ssim_is_one_for_equal_pictures_and_low_for_others():
    some = pictures(2, 32, 32)
    np.testing.assert_allclose(ssim(some, some), 1)
    assert (np.abs(ssim(some, pictures(2, 32, 32))) < 0.1).all()


def test_ssim_of_pictures_smaller_than_its_window_is_refused():
    with pytest.raises(ValueError, match=r"pictures must have sides >= 11 pixels for SSIM, got \(8, 12\)"):
        ssim(pictures(1, 8, 12), pictures(1, 8, 12))


# The codebook


def test_perplexity_is_the_number_of_equally_frequent_codes():
    use = codebook_use(np.repeat([0, 8, 0], [10, 5, 5]))
    assert use == {"size": 20, "used": 5, "share_used": 0.25, "perplexity": pytest.approx(5)}
    assert codebook_use(np.array([8, 0, 0]))["perplexity"] == 1
    assert codebook_use(np.array([3, 1]))["perplexity"] == pytest.approx(4 / 3**0.75)
