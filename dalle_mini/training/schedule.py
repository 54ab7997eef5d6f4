"""What the learning rate and the moving average are at a step: one rule for all networks.

Contract: pure functions of the recipe and the step.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax


class Scheduled(Protocol):
    """The settings of a recipe that say how its learning rate moves."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...


def learning_rate(config: Scheduled, *, peak: float | None = None) -> optax.Schedule:
    """A linear rise to `peak` (the recipe's own learning rate), then a cosine down to zero after the last step."""
    highest = config.learning_rate if peak is None else peak
    return optax.warmup_cosine_decay_schedule(0, highest, min(config.warmup_steps, config.steps // 2), config.steps)


def half_cosine(step: jax.Array, *, first: float, last: float, end: float) -> jax.Array:
    """From `first` at step 0 to `last` at step `end`, where it stays; slow at both ends."""
    return last + (first - last) * (1 + jnp.cos(jnp.pi * jnp.minimum(step / end, 1))) / 2


def moving_average(average: Any, params: Any, *, step: jax.Array, decay: float) -> Any:
    """The exponential moving average after the step number `step`, counted from 0.

    Short at first: an average over steps that are yet to come would be one of the random start.
    """
    return optax.incremental_update(params, average, 1 - jnp.minimum(decay, (1 + step) / (10 + step)))
