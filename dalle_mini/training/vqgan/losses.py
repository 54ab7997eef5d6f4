"""What a VQGAN in training is to lower, apart from its codebook's commitment and the discriminator's opinion.

Contract: pure functions of float pictures in [0, 1], latents and codes.

The consistency term is for drawings. A code should say what is in its own square of pixels, not what surrounds it: a
text-to-code model must otherwise learn every object again for every background. So the latents of identical squares,
anywhere in a batch, are pulled to their common mean.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dalle_mini.training.vqgan import perceptual
from dalle_mini.training.vqgan.config import DecoderTrainConfig, VQGANTrainConfig


def same_cells(pixels: np.ndarray, downscale: int) -> np.ndarray:
    """Number the squares of `downscale` pixels of uint8 pictures [B, H, W, C]: the same number for identical ones."""
    B, H, W, C = pixels.shape
    squares = pixels.reshape(B, H // downscale, downscale, W // downscale, downscale, C).swapaxes(2, 3)
    rows = np.ascontiguousarray(squares).reshape(-1, downscale * downscale * C)
    _, number = np.unique(rows.view(f"V{rows.shape[1]}").ravel(), return_inverse=True)
    return number.astype(np.int32)


def reconstruction_loss(
    pixels: jax.Array, target: jax.Array, config: VQGANTrainConfig | DecoderTrainConfig
) -> jax.Array:
    """Of pictures [B, H, W, 3] in [0, 1]: L1, L2, L1 of differences between neighbours, and the perceptual loss."""
    error = pixels - target
    loss = jnp.abs(error).mean() + config.l2_weight * jnp.square(error).mean()
    for axis in (1, 2):
        loss += config.gradient_weight * jnp.abs(jnp.diff(error, axis=axis)).mean()
    if config.perceptual_weight:
        loss += config.perceptual_weight * perceptual.perceptual_loss(pixels, target)
    return loss


def consistency_loss(
    z: jax.Array, codes: jax.Array, cells: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The consistency term of latents [M, D] and codes [M], how much each square counts [M], and metrics."""
    members = jax.ops.segment_sum(jnp.ones(len(z)), cells, len(z))
    means = jax.ops.segment_sum(z, cells, len(z)) / jnp.maximum(members, 1)[:, None]
    # A picture's background is many equal squares: they count as one, or the rest would hardly count.
    weights = 1 / members[cells]
    shared = weights * (members[cells] > 1)
    within = (shared * jnp.square(z - means[cells]).sum(-1)).sum() / jnp.maximum(shared.sum(), 1)
    # Relative to the variance of all latents: without this, one code for everything would satisfy the term.
    spread = within / (jnp.square(z - z.mean(0)[None]).sum(-1).mean() + 1e-3)
    # A square is consistent if it has the code that most often stands for squares like it: estimated by
    # agreement with the neighbouring member of its group.
    order = jnp.argsort(cells)
    sorted_cells, sorted_codes = cells[order], codes[order]
    alike = sorted_cells[1:] == sorted_cells[:-1]
    agree = (alike & (sorted_codes[1:] == sorted_codes[:-1])).sum() / jnp.maximum(alike.sum(), 1)
    return spread, weights, {"spread": spread, "agree": agree}
