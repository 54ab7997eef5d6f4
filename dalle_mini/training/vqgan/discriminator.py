"""Which patches are photographs and which are painted? The critic that teaches the VQGAN's decoder crisp texture.

Contract: functions of (params, config, pixels), with no state and no I/O. Pixels are float in [0, 1]; every patch of a
picture gets one logit, above 0 for a real one. The network sees a patch of 70 pixels with the 3 layers of the paper.
Where the paper normalises over the batch, this one normalises over groups of channels (Wu & He 2018): a picture's
logits then do not depend on its neighbours, nor on how a batch is spread over devices.

Papers: Isola et al. 2017 (arXiv:1611.07004, section 3.2.2 and appendix 6.1.2: C64-C128-C256-C512), hinge loss of
Lim & Ye 2017 (arXiv:1705.02894), adaptive weight of Esser et al. 2021 (arXiv:2012.09841, equations 6 and 7).

Letters: B batch, H height, W width, h and w rows and columns of patches.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqgan.model import Params, fresh

GROUP = 8  # channels that are normalised together
DELTA = 1e-6  # of equation 6
LARGEST_WEIGHT = 1e4  # an adversarial gradient of nearly nothing would otherwise count without limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    channels: int = 64  # of the first layer; each further one has twice as many, at most eight times
    layers: int = 3  # that halve the picture
    learning_rate: float = 2e-4

    def __post_init__(self) -> None:
        if self.channels < GROUP or self.channels % GROUP:
            raise ValueError(
                f"discriminator.channels must be a multiple of {GROUP} and >= {GROUP}, got {self.channels}"
            )
        if self.layers < 1:
            raise ValueError(f"discriminator.layers must be >= 1, got {self.layers}")
        if not self.learning_rate > 0:
            raise ValueError(f"discriminator.learning_rate must be > 0, got {self.learning_rate}")

    @property
    def smallest_side(self) -> int:
        """Pixels along the side of the smallest picture that has a patch."""
        return 3 * 2**self.layers


class Discriminator(nn.Module):
    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        config = self.config
        x = 2 * pixels - 1  # [B, H, W, 3]
        for i in range(config.layers + 1):
            stride = 2 if i < config.layers else 1
            x = nn.Conv(config.channels * min(2**i, 8), (4, 4), strides=stride, padding=1, name=f"conv_{i}")(x)
            if i > 0:  # the first layer keeps what normalising would take away: brightness and contrast
                x = nn.GroupNorm(None, group_size=GROUP, name=f"norm_{i}")(x)
            x = nn.leaky_relu(x, 0.2)
        return nn.Conv(1, (4, 4), padding=1, name="conv_out")(x)[..., 0]  # [B, h, w]


def init_params(config: DiscriminatorConfig, rng: Array) -> dict[str, Any]:
    """Fresh parameters, float32; jit it."""
    pixels = jnp.zeros((1, config.smallest_side, config.smallest_side, 3))
    return fresh(jax.eval_shape(lambda: Discriminator(config).init(rng, pixels)["params"]), rng)


def logits(params: Params, config: DiscriminatorConfig, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w"]:
    """One logit a patch, float32 whatever the pixels and params are."""
    return Discriminator(config).apply({"params": params}, pixels).astype(jnp.float32)


def discriminator_loss(real: Float[Array, "B h w"], painted: Float[Array, "B h w"]) -> Float[Array, ""]:
    """Hinge: only logits on the wrong side of 1 (real) and -1 (painted) count. Lim & Ye 2017, equation 2, halved."""
    return (nn.relu(1 - real).mean() + nn.relu(1 + painted).mean()) / 2


def painter_loss(painted: Float[Array, "B h w"]) -> Float[Array, ""]:
    """What the VQGAN is to lower: painted patches that are taken for painted ones."""
    return -painted.mean()


def adaptive_weight(reconstruction: Float[Array, "*kernel"], adversarial: Float[Array, "*kernel"]) -> Float[Array, ""]:
    """The factor that makes both losses pull equally at the decoder's last kernel, given their gradients there.

    Esser et al. 2021, equation 6. No gradient flows through it.
    """
    weight = jnp.linalg.norm(reconstruction.ravel()) / (jnp.linalg.norm(adversarial.ravel()) + DELTA)
    return jax.lax.stop_gradient(jnp.clip(weight, 0, LARGEST_WEIGHT))
