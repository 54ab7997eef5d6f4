"""One step of training a text-to-code network: the gradient of a batch, the update, the moving average.

Contract: pure functions. Params, gradients and optimiser state are float32; matrix products run in `config.dtype`. A
batch that is computed in parts (`accumulation`) gives the gradient of the whole batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from dalle_mini.config import ModelConfig
from dalle_mini.model import Params
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.dalle.loss import Batch, computed_in, row_losses
from dalle_mini.training.schedule import moving_average


class State(NamedTuple):
    step: Int[jax.Array, ""]
    params: Params
    opt_state: Any
    average: Any = ()  # of params; nothing where ema_decay is 0

    @property
    def result(self) -> Params:
        """What the run is for: the average where there is one."""
        return self.average or self.params


def init_state(config: DalleTrainConfig, optimiser: optax.GradientTransformation, params: Params) -> State:
    """The state before the first step; nothing of it shares memory with `params`, since steps donate it."""
    average = jax.tree.map(jnp.copy, params) if config.ema_decay else ()
    return State(jnp.int32(0), jax.tree.map(jnp.copy, params), optimiser.init(params), average)


def make_gradient(
    sizes: ModelConfig, config: DalleTrainConfig
) -> Callable[[Params, Batch], tuple[Float[jax.Array, ""], Params]]:
    """(params, batch) -> loss and gradient, both of the mean over the batch."""
    sizes, parts = computed_in(sizes, config), config.accumulation
    one = jax.value_and_grad(lambda params, batch: row_losses(params, sizes, batch, remat=config.remat).mean())
    if parts == 1:
        return one

    def gradient(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        # Part i is the rows i, i + parts, ...: each device finds some of every part among the rows it has.
        split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(params, part)), None

        nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, nothing, split)
        return jax.tree.map(lambda x: x / parts, total)

    return gradient


def make_step(
    sizes: ModelConfig, config: DalleTrainConfig, optimiser: optax.GradientTransformation
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """`(state, batch) -> (state, metrics)`; jit it with the state donated."""
    gradient = make_gradient(sizes, config)

    def step_fn(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        loss, grads = gradient(state.params, batch)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params, average = optax.apply_updates(state.params, updates), state.average
        if config.ema_decay:
            average = moving_average(average, params, step=state.step, decay=config.ema_decay)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return State(state.step + 1, params, opt_state, average), metrics

    return step_fn
