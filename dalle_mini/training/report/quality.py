"""FID, PSNR, SSIM and the use of a codebook: how alike pictures are, how alike two sets of them, as plain functions.

Contract: everything is computed in float64 from what is given, nothing is loaded, and nothing is rounded.
"""

import numpy as np
from jaxtyping import Float, Float64, Int, UInt8

WHITE = 255  # the largest value of a pixel, L in the formulas
WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels


def psnr(pictures: UInt8[np.ndarray, "M H W 3"], others: UInt8[np.ndarray, "M H W 3"]) -> Float64[np.ndarray, " M"]:
    """Peak signal-to-noise ratio of each pair in decibels, 10 log10(L² / mean squared error); infinite if equal."""
    error = np.square(pictures.astype(np.float64) - others).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(WHITE**2 / error)


def ssim(pictures: UInt8[np.ndarray, "M H W 3"], others: UInt8[np.ndarray, "M H W 3"]) -> Float64[np.ndarray, " M"]:
    """Structural similarity of each pair, 1 if equal: the mean over pixels and over red, green and blue.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section III.B and C:
    a Gaussian window of 11 x 11 pixels and sigma 1.5, wholly inside the picture; K1 = 0.01 and K2 = 0.03. Raises
    ValueError for pictures smaller than the window.
    """
    if min(pictures.shape[1:3]) < WINDOW:
        raise ValueError(f"pictures must have sides >= {WINDOW} pixels for SSIM, got {pictures.shape[1:3]}")
    pairs = zip(pictures, others, strict=True)  # one at a time: a picture's statistics are five times its size
    return np.array([_ssim(one.astype(np.float64), other.astype(np.float64)) for one, other in pairs])


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * WHITE) ** 2, (0.03 * WHITE) ** 2
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)  # equation 13
    return float((alike / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _blur(x: np.ndarray) -> np.ndarray:
    """The Gaussian mean around every pixel that has a whole window around it, [H, W, 3] -> [H - 10, W - 10, 3]."""
    weights = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SIGMA**2)
    weights /= weights.sum()
    for axis in (0, 1):  # the window is a product of two, so the rows' means are taken first
        x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis=axis) @ weights
    return x


def frechet_distance(features: Float[np.ndarray, "M D"], others: Float[np.ndarray, "N D"]) -> float:
    """FID: the squared Fréchet distance of two Gaussians with the means and covariances of the two sets of features.

    |m - n|² + Tr(C + D - 2 (C D)^½), Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a
    Local Nash Equilibrium", equation 6. Raises ValueError for a set of fewer than two, which has no covariance.
    """
    if min(len(features), len(others)) < 2:
        raise ValueError(f"FID must have at least 2 pictures of each kind, got {len(features)} and {len(others)}")
    means = [rows.mean(0, dtype=np.float64) for rows in (features, others)]
    # C = RᵀR and D = SᵀS. Then CD has the squares of the singular values of RSᵀ as its eigenvalues besides zeros: no
    # square root of a product that small sets make singular, and no complex numbers.
    r, s = (
        np.linalg.qr(rows - mean, mode="r") / np.sqrt(len(rows) - 1)
        for rows, mean in zip((features, others), means, strict=True)
    )
    mixed = np.linalg.svd(r @ s.T, compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + np.square(r).sum() + np.square(s).sum() - 2 * mixed)


def codebook_use(uses: Int[np.ndarray, " K"]) -> dict[str, float]:
    """Of the uses of each code: how many are used at all, and how many equally frequent ones would be as hard to guess.

    The latter is the perplexity, exp of the entropy in nats, as van den Oord et al. 2017 (arXiv:1711.00937) watched it.
    """
    shares = uses[uses > 0] / uses.sum()
    return {
        "size": len(uses),
        "used": len(shares),
        "share_used": len(shares) / len(uses),
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
    }
