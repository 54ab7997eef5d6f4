"""How different do two pictures look? Structural similarity at several scales: no network, nothing to download.

Contract: a differentiable function of two batches of pixels in [0, 1]; 0 for equal pictures, about 1 for unrelated
ones. Colours are compared channel by channel.

Wang, Simoncelli & Bovik 2003, "Multi-scale structural similarity for image quality assessment": windows (Gaussian,
11 pixels, sigma 1.5) are compared by their contrast and structure at every scale, each half as large as the one
before, and by their luminance at the coarsest; `WEIGHTS` are how much each scale counted for the paper's observers. As
a loss it goes together with L1, which sees the colour that it overlooks (Zhao et al. 2017, arXiv:1511.08861).

Two things differ from the paper. Its product of powers becomes a weighted sum, the first order of the product around
equality: a power of a similarity at 0 has no gradient that a step could use, and unrelated pictures are at 0. And
pictures too small for five scales are compared at as many as fit, the weights divided by their sum.

Letters: B batch, H height, W width, C channels, I and J places of a window.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2  # for pixels in [0, 1]; section 2


def scales(height: int, width: int) -> int:
    """How many of the paper's scales fit: 5 from 176 pixels on, 3 at 64, none below a window."""
    side, count = min(height, width), 0
    while count < len(WEIGHTS) and side >= WINDOW:
        side, count = side // 2, count + 1
    return count


def perceptual_loss(a: Float[Array, "B H W C"], b: Float[Array, "B H W C"]) -> Float[Array, ""]:
    """1 - multi-scale structural similarity, the mean over pictures.

    Raises ValueError for pictures that are smaller than a window.
    """
    count = scales(*a.shape[1:3])
    if not count:
        raise ValueError(f"pictures must be at least {WINDOW} pixels high and wide, got {a.shape[1]} x {a.shape[2]}")
    similarity = jnp.float32(0)
    for scale, weight in enumerate(WEIGHTS[:count]):
        luminance, structure = _compare(a, b)
        last = scale == count - 1
        similarity += weight * (luminance * structure if last else structure).mean()
        if not last:
            a, b = _halve(a), _halve(b)
    return 1 - similarity / sum(WEIGHTS[:count])


def _compare(a: Float[Array, "B H W C"], b: Float[Array, "B H W C"]) -> tuple[Array, Array]:
    """Luminance, and contrast with structure, of every window: [B, I, J, C]."""
    mean_a, mean_b = _windows(a), _windows(b)
    variance_a = _windows(a * a) - mean_a * mean_a
    variance_b = _windows(b * b) - mean_b * mean_b
    covariance = _windows(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)
    return luminance, (2 * covariance + C2) / (variance_a + variance_b + C2)


def _windows(x: Float[Array, "B H W C"]) -> Float[Array, "B I J C"]:
    """Gaussian means of all whole windows.

    Differences of their squares are taken: in the short floats that accelerators multiply with, nothing would be left.
    """
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("IH,BHWC->BIWC", _filter(x.shape[1]), x, precision=exact)
    return jnp.einsum("JW,BIWC->BIJC", _filter(x.shape[2]), x, precision=exact)


def _filter(side: int) -> np.ndarray:
    """float32 [side - WINDOW + 1, side]: the window along one side, at every place."""
    window = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    rows = [np.pad(window / window.sum(), (place, side - WINDOW - place)) for place in range(side - WINDOW + 1)]
    return np.stack(rows).astype(np.float32)


def _halve(x: Float[Array, "B H W C"]) -> Float[Array, "B I J C"]:
    """Means of squares of 2 pixels; an odd last row or column is left out."""
    B, H, W, C = x.shape
    return x[:, : H // 2 * 2, : W // 2 * 2].reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))
