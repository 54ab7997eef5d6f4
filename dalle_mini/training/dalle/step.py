"""One step of training a text-to-code transformer: the settings, the loss, the optimiser, the update.

Contract: pure functions. Teacher forcing with the mean cross entropy over all classes, as the original was trained.
Params, gradients and optimiser state are float32; matrix products run in `config.dtype`. A batch that is computed in
parts (`accumulation`) gives the gradient of the whole batch.

Optimisers, all from optax: AdamW (Loshchilov & Hutter 2019); Adafactor (Shazeer & Stern 2018), whose state is a row
and a column per matrix; Muon (Jordan et al. 2024) for matrices with Adam for tables, norms and the head: half the
examples of Adam alone for the same loss, measured on the emoji world.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Float, Int
from optax.contrib import MuonDimensionNumbers, muon

from dalle_mini import model
from dalle_mini.config import ModelConfig

OPTIMISERS = ("adamw", "adafactor", "muon")
DTYPES = ("float32", "bfloat16")
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DalleTrainConfig:
    """The recipe: steps are optimiser steps, `batch_size` is the examples of one, over all devices."""

    steps: int
    batch_size: int = 32
    accumulation: int = 1  # parts in which a batch is computed, one after another, to save memory
    optimiser: str = "muon"
    learning_rate: float = 2e-2  # at its peak; with Muon, Adam's share has a tenth of it
    warmup_steps: int = 50
    weight_decay: float = 0.0  # of matrices
    clip_norm: float = 1.0  # of the whole gradient
    caption_dropout: float = 0.1  # what super conditioning needs (Ho & Salimans 2022, section 3.2)
    ema_decay: float = 0.0  # of the moving average of params, which is then the result; 0: no average
    dtype: str = "float32"
    remat: bool = False  # compute a layer again in the backward pass rather than keep it
    model_devices: int = 1  # that share one copy of the model; the other axis of the mesh shares the batch
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "model_devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("caption_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 0 and < 1, got {getattr(self, name)}")
        for name, allowed in (("optimiser", OPTIMISERS), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be a multiple of accumulation {self.accumulation}, got {self.batch_size}"
            )


class Batch(NamedTuple):
    """Captions and codes, row by row; a dropped caption is already the empty prompt. On the host or on devices."""

    tokens: Any  # int [B, S]
    mask: Any  # int [B, S], 1 for a token
    codes: Any  # int [B, T]


class State(NamedTuple):
    step: Int[jax.Array, ""]
    params: Params
    opt_state: Any
    average: Any = ()  # of params; nothing where ema_decay is 0

    @property
    def result(self) -> Params:
        """What the run is for: the average where there is one."""
        return self.average or self.params


def schedule(config: DalleTrainConfig, peak: float) -> optax.Schedule:
    """Linear warm-up, then a cosine down to zero."""
    return optax.warmup_cosine_decay_schedule(0, peak, min(config.warmup_steps, config.steps // 2), config.steps)


def make_optimiser(config: DalleTrainConfig, params: Params) -> optax.GradientTransformation:
    """For params or their shapes."""
    flat = traverse_util.flatten_dict(params)
    matrix = {path: leaf.ndim == 2 and path[1].startswith("layers_") for path, leaf in flat.items()}
    matrices, rate = traverse_util.unflatten_dict(matrix), schedule(config, config.learning_rate)
    if config.optimiser == "adamw":
        rest = optax.adamw(rate, b2=0.95, weight_decay=config.weight_decay, mask=matrices)
    elif config.optimiser == "adafactor":
        # Without the parameters' own scale, so that learning_rate means what it means for AdamW.
        rest = optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,
            # optax adds the decay after the learning rate; AdamW multiplies one by the other.
            weight_decay_rate=lambda step: config.weight_decay * rate(step),
            weight_decay_mask=matrices,
        )
    else:
        rest = muon(
            rate,
            weight_decay=config.weight_decay,
            adam_learning_rate=schedule(config, config.learning_rate / 10),
            muon_weight_dimension_numbers=jax.tree.map(lambda yes: MuonDimensionNumbers() if yes else None, matrices),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rest)


def init_state(config: DalleTrainConfig, optimiser: optax.GradientTransformation, params: Params) -> State:
    """The state before the first step; nothing of it shares memory with `params`, since steps donate it."""
    average = jax.tree.map(jnp.copy, params) if config.ema_decay else ()
    return State(jnp.int32(0), jax.tree.map(jnp.copy, params), optimiser.init(params), average)


def row_losses(params: Params, sizes: ModelConfig, batch: Batch, *, remat: bool = False) -> Float[jax.Array, " B"]:
    """Cross entropy, in nats a code, of predicting every code of a row from those before it and the caption."""
    start = jnp.full((batch.codes.shape[0], 1), sizes.bos_code, batch.codes.dtype)
    codes_in = jnp.concatenate([start, batch.codes[:, :-1]], axis=1)
    logits = model.forward(params, sizes, batch.tokens, batch.mask, codes_in, remat=remat)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.codes).mean(1)


def computed_in(sizes: ModelConfig, config: DalleTrainConfig) -> ModelConfig:
    """The sizes with the dtypes of training."""
    return dataclasses.replace(sizes, dtype=config.dtype, param_dtype="float32")


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
            # Short at first: an average over steps that are yet to come would be one of the random start.
            decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update(params, average, 1 - decay)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return State(state.step + 1, params, opt_state, average), metrics

    return step_fn
