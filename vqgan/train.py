"""Training a VQGAN on pictures: reconstruction, commitment, and one code for one cell.

Contract: `train(sizes, config, batches, ...)` takes a function step -> `Batch` and returns params in the published
tree. The codebook is kept at unit norm, so that the published Euclidean look-up is a cosine look-up.

The consistency term. A code should say what is in its own square of pixels, not what surrounds it: a text-to-code
model must otherwise learn every object again for every background. So the latents of squares that mean the same,
anywhere in a batch, are pulled to their common mean. Squares of identical pixels mean the same; a data set that knows
more may say so: at the edge of an object the code need not tell the background, since the bare squares around do.

Papers: van den Oord et al. 2017 (arXiv:1711.00937, codebook by moving averages: appendix A.1); Esser et al. 2021;
Yu et al. 2022 (arXiv:2110.04627, section 3.2: low-dimensional codes at unit norm); Dhariwal et al. 2020
(arXiv:2005.00341, section 3.1: restarting dead codes).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from vqgan import model
from vqgan.config import VQGANConfig
from vqgan.loop import LoopConfig, fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANTrainConfig:
    """The recipe. Losses are means over values of pixels in [0, 1]."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 8e-4
    warmup_steps: int = 50
    l2_weight: float = 2.0
    gradient_weight: float = 0.5  # L1 of horizontal and vertical differences: thin lines and edges
    commitment_weight: float = 0.1
    consistency_weight: float = 3.0
    consistency_steps: tuple[int, int] = (200, 1000)  # the weight rises from 0 between these steps
    continuous_steps: int = 120  # no quantisation at first: codes are drawn from a useful encoder
    restart_every: int = 20
    codebook_decay: float = 0.98
    dead_below: float = 0.02  # average uses per step under which a code is restarted
    seed: int = 0


class VQGANState(NamedTuple):
    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    uses: jax.Array  # [E] moving average of how often a code was chosen in a step
    sums: jax.Array  # [E, D] moving average of the latents that chose it


class Batch(NamedTuple):
    pixels: np.ndarray  # uint8 [B, H, W, 3]
    cells: np.ndarray  # int32 [B * h * w]: squares that should have the same code have the same number (`same_cells`)


def same_cells(content: np.ndarray, downscale: int) -> np.ndarray:
    """Number the squares of `downscale` pixels such that identical squares, and only those, share a number.

    `content` is uint8 [B, H, W, C]: the pictures themselves, or what their squares should mean (see the module).
    """
    B, H, W, C = content.shape
    squares = content.reshape(B, H // downscale, downscale, W // downscale, downscale, C).swapaxes(2, 3)
    rows = np.ascontiguousarray(squares).reshape(-1, downscale * downscale * C)
    _, number = np.unique(rows.view(f"V{rows.shape[1]}").ravel(), return_inverse=True)
    return number.astype(np.int32)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-8)


def _reconstruction_loss(pixels: jax.Array, target: jax.Array, config: VQGANTrainConfig) -> jax.Array:
    error = pixels - target
    loss = jnp.abs(error).mean() + config.l2_weight * jnp.square(error).mean()
    for axis in (1, 2):
        loss += config.gradient_weight * jnp.abs(jnp.diff(error, axis=axis)).mean()
    return loss


def _loss(params, target, cells, step, *, sizes: VQGANConfig, config: VQGANTrainConfig):
    codebook = params["quantize"]["embedding"]["embedding"]
    z = _unit(model.latents(params, sizes, target))  # [B, h, w, D]
    codes = model.nearest_codes(codebook, z)
    quantised = jax.lax.stop_gradient(codebook)[codes]
    continuous = step < config.continuous_steps
    commitment = jnp.square(z - quantised).sum(-1).mean()
    straight = jnp.where(continuous, z, z + jax.lax.stop_gradient(quantised - z))
    pixels = model.paint(params, sizes, straight)

    flat = z.reshape(-1, z.shape[-1])
    members = jax.ops.segment_sum(jnp.ones(len(flat)), cells, len(flat))
    means = jax.ops.segment_sum(flat, cells, len(flat)) / jnp.maximum(members, 1)[:, None]
    # A picture's background is many equal squares: they count as one, or the rest would hardly count.
    weights = 1 / members[cells]
    shared = weights * (members[cells] > 1)
    within = (shared * jnp.square(flat - means[cells]).sum(-1)).sum() / jnp.maximum(shared.sum(), 1)
    # Relative to the variance of all latents: without this, one code for everything would satisfy the term.
    spread = within / (jnp.square(flat - flat.mean(0)[None]).sum(-1).mean() + 1e-3)
    start, end = config.consistency_steps
    consistency_weight = config.consistency_weight * jnp.clip((step - start) / (end - start), 0, 1)

    loss = _reconstruction_loss(pixels, target, config)
    loss += jnp.where(continuous, 0, config.commitment_weight) * commitment + consistency_weight * spread
    mse = jnp.square(jnp.clip(pixels, 0, 1) - target).mean()
    # A square is consistent if it has the code that most often stands for squares like it: estimated by
    # agreement with the neighbouring member of its group.
    order = jnp.argsort(cells)
    sorted_cells, sorted_codes = cells[order], codes.reshape(-1)[order]
    alike = sorted_cells[1:] == sorted_cells[:-1]
    agree = (alike & (sorted_codes[1:] == sorted_codes[:-1])).sum() / jnp.maximum(alike.sum(), 1)
    metrics = {"loss": loss, "psnr": -10 * jnp.log10(mse), "spread": spread, "agree": agree}
    return loss, (z, codes, weights, metrics)


def make_step(sizes: VQGANConfig, config: VQGANTrainConfig, optimiser: optax.GradientTransformation):
    """The jitted `(state, batch) -> (state, metrics)`; the state is donated."""

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: VQGANState, batch: Batch) -> tuple[VQGANState, dict[str, jax.Array]]:
        target = jnp.asarray(batch.pixels, jnp.float32) / 255
        grads, (z, codes, weights, metrics) = jax.grad(_loss, has_aux=True)(
            state.params, target, batch.cells, state.step, sizes=sizes, config=config
        )
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        codebook, uses, sums = _update_codebook(state, z, codes, weights, config)
        params = {**params, "quantize": {"embedding": {"embedding": codebook}}}
        metrics["alive"] = (uses > config.dead_below).sum()
        return VQGANState(state.step + 1, params, opt_state, uses, sums), metrics

    return step_fn


def _update_codebook(state: VQGANState, z: jax.Array, codes: jax.Array, weights: jax.Array, config: VQGANTrainConfig):
    """Moving averages of uses and latents; dead codes restart from latents of this batch."""
    flat, chosen = z.reshape(-1, z.shape[-1]), codes.reshape(-1)
    size, decay = state.uses.shape[0], config.codebook_decay
    uses = decay * state.uses + (1 - decay) * jax.ops.segment_sum(weights, chosen, size)
    sums = decay * state.sums + (1 - decay) * jax.ops.segment_sum(flat * weights[:, None], chosen, size)

    rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
    fresh = flat[jax.random.choice(rng, len(flat), (size,), p=weights / weights.sum())]
    restart_all = state.step < config.continuous_steps
    dead = restart_all | ((uses < config.dead_below) & (state.step % config.restart_every == 0))
    uses = jnp.where(dead, 10 * config.dead_below, uses)
    sums = jnp.where(dead[:, None], fresh * uses[:, None], sums)
    return _unit(sums), uses, sums


def _schedule(config: VQGANTrainConfig) -> optax.Schedule:
    warmup = min(config.warmup_steps, config.steps // 2)
    return optax.warmup_cosine_decay_schedule(0, config.learning_rate, warmup, config.steps)


def train(
    sizes: VQGANConfig,
    config: VQGANTrainConfig,
    batches: Callable[[int], Batch],
    *,
    out: Path,
    held_out: np.ndarray,
) -> dict[str, Any]:
    """Train from scratch, or on from the newest checkpoint in `out`; returns params in the published tree.

    `batches(step)` gives pictures and which of their squares are alike; `held_out` uint8 pictures are redrawn on the
    sample sheets.
    """
    schedule = _schedule(config)
    # The codebook follows its moving averages, not the gradient.
    labels = {"quantize": "codebook"}
    optimiser = optax.multi_transform(
        {
            "network": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, 0.9, 0.99)),
            "codebook": optax.set_to_zero(),
        },
        lambda params: {name: labels.get(name, "network") for name in params},
    )

    def sheet(state: VQGANState) -> Image.Image:
        return comparison_sheet(state.params, sizes, held_out)

    params = jax.jit(partial(model.init_params, sizes))(jax.random.key(config.seed))
    codebook = _unit(jax.random.normal(jax.random.key(config.seed + 1), (sizes.n_embed, sizes.embed_dim)))
    params["quantize"]["embedding"]["embedding"] = codebook
    state = VQGANState(jnp.int32(0), params, optimiser.init(params), jnp.zeros(sizes.n_embed), jnp.zeros_like(codebook))
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    state = fit(state, make_step(sizes, config, optimiser), batches, config=loop, sheet=sheet)
    return state.params


class DecoderState(NamedTuple):
    trained: dict[str, Any]  # post_quant_conv and decoder
    opt_state: Any


def train_decoder(
    sizes: VQGANConfig,
    config: VQGANTrainConfig,
    params: dict[str, Any],
    pictures: Callable[[int], np.ndarray],
    *,
    out: Path,
    held_out: np.ndarray,
) -> dict[str, Any]:
    """Train the decoder of `params` on, for `config.steps` steps, while every picture keeps its codes.

    What was learned from the codes, a text-to-code model above all, stays valid. Returns whole params.
    """
    names = ("decoder", "post_quant_conv")
    fixed = {name: tree for name, tree in params.items() if name not in names}
    schedule = _schedule(config)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, 0.9, 0.99))

    def loss_of(trained: dict[str, Any], target: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = model.encode({**fixed, **trained}, sizes, target)
        pixels = model.decode({**fixed, **trained}, sizes, codes)
        return _reconstruction_loss(pixels, target, config), jnp.square(jnp.clip(pixels, 0, 1) - target).mean()

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: DecoderState, pixels: jax.Array) -> tuple[DecoderState, dict[str, jax.Array]]:
        target = jnp.asarray(pixels, jnp.float32) / 255
        (loss, mse), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trained, target)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return DecoderState(trained, opt_state), {"loss": loss, "psnr": -10 * jnp.log10(mse)}

    def sheet(state: DecoderState) -> Image.Image:
        return comparison_sheet({**fixed, **state.trained}, sizes, held_out)

    trained = jax.tree.map(jnp.copy, {name: params[name] for name in names})  # donated below
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    state = fit(DecoderState(trained, optimiser.init(trained)), step_fn, pictures, config=loop, sheet=sheet)
    return {**fixed, **state.trained}


def comparison_sheet(params: dict[str, Any], sizes: VQGANConfig, pixels: np.ndarray) -> Image.Image:
    """Pictures (upper of two rows) and what the codes keep of them (lower), eight to a row."""
    target = jnp.asarray(pixels, jnp.float32) / 255
    painted = jax.jit(lambda p, x: model.decode(p, sizes, model.encode(p, sizes, x)))(params, target)
    painted = np.asarray(jnp.clip(painted, 0, 1) * 255).astype(np.uint8)
    rows = []
    for i in range(0, len(pixels), 8):
        rows += [np.concatenate(list(x[i : i + 8]), axis=1) for x in (pixels, painted)]
    return Image.fromarray(np.concatenate(rows))
