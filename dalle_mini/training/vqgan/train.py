"""Training a VQGAN on pictures: reconstruction, commitment, and then what the pictures ask for.

Contract: `train(sizes, config, batches, ...)` takes a function step -> `Batch` and returns params in the published
tree. The codebook is kept at unit norm, so that the published Euclidean look-up is a cosine look-up. A term whose
weight is 0 is not computed at all.

For drawings, the consistency term. A code should say what is in its own square of pixels, not what surrounds it: a
text-to-code model must otherwise learn every object again for every background. So the latents of identical squares,
anywhere in a batch, are pulled to their common mean.

For photographs, in which no two squares are alike, the perceptual term (perceptual.py) and the discriminator
(discriminator.py), trained in turn on the same batches from `discriminator_start` on: texture that the codes cannot
hold is painted as likely texture and not as its mean, which is a blur.

Several devices share a batch, rows to each; the state is on all of them, and the sums are those of one device up to
their order.

Papers: van den Oord et al. 2017 (arXiv:1711.00937, codebook by moving averages: appendix A.1); Esser et al. 2021;
Yu et al. 2022 (arXiv:2110.04627, section 3.2: low-dimensional codes at unit norm); Dhariwal et al. 2020
(arXiv:2005.00341, section 3.1: restarting dead codes).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from dalle_mini.training.loop import LoopConfig, fit
from dalle_mini.training.vqgan import discriminator, perceptual
from dalle_mini.training.vqgan.discriminator import DiscriminatorConfig
from vqgan import model
from vqgan.config import VQGANConfig

DTYPES = ("float32", "bfloat16")


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
    consistency_weight: float = 1.0
    consistency_steps: tuple[int, int] = (500, 1500)  # the weight rises from 0 between these steps
    continuous_steps: int = 120  # no quantisation at first: codes are drawn from a useful encoder
    restart_every: int = 20
    codebook_decay: float = 0.98
    dead_below: float = 0.02  # average uses per step under which a code is restarted
    perceptual_weight: float = 0.0
    discriminator_weight: float = 0.0  # times the adaptive weight; Esser et al. 2021 took 0.8
    discriminator_start: int = 0  # steps for the rest to settle: a critic of noise teaches nothing
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    ema_decay: float = 0.0  # of the network's moving average, which is then the result; 0: no average
    dtype: str = "float32"  # what the networks compute in; losses, params and optimiser are float32 anyway
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "restart_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for field in dataclasses.fields(self):
            if field.name.endswith(("_weight", "_steps", "_start", "seed")) and np.min(getattr(self, field.name)) < 0:
                raise ValueError(f"{field.name} must be >= 0, got {getattr(self, field.name)}")
        for name in ("codebook_decay", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        if not self.consistency_steps[0] < self.consistency_steps[1]:
            raise ValueError(f"consistency_steps must be two rising steps, got {self.consistency_steps}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


class Critic(NamedTuple):
    """The discriminator in training."""

    params: dict[str, Any]
    opt_state: Any


class VQGANState(NamedTuple):
    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    uses: jax.Array  # [E] moving average of how often a code was chosen in a step
    sums: jax.Array  # [E, D] moving average of the latents that chose it
    critic: Any = ()  # Critic; nothing while discriminator_weight is 0
    average: Any = ()  # of params; nothing while ema_decay is 0


class Batch(NamedTuple):
    pixels: np.ndarray  # uint8 [B, H, W, 3]
    # int32 [B * h * w]: identical squares have the same number (`same_cells`). None where consistency_weight is 0.
    cells: np.ndarray | None = None


def same_cells(pixels: np.ndarray, downscale: int) -> np.ndarray:
    """Number the squares of `downscale` pixels of uint8 pictures [B, H, W, C]: the same number for identical ones."""
    B, H, W, C = pixels.shape
    squares = pixels.reshape(B, H // downscale, downscale, W // downscale, downscale, C).swapaxes(2, 3)
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
    if config.perceptual_weight:
        loss += config.perceptual_weight * perceptual.perceptual_loss(pixels, target)
    return loss


def _consistency(z: jax.Array, codes: jax.Array, cells: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
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


def _adversarial_loss(params, critic, straight, pixels, target, *, sizes: VQGANConfig, config: VQGANTrainConfig):
    """What the painter is to lower about the discriminator's opinion of `pixels`, and metrics."""
    judge = partial(discriminator.logits, _cast(critic.params, config), config.discriminator)

    def at_last_kernel(loss: Callable[[jax.Array], jax.Array]) -> jax.Array:
        # Paints again from the last kernel on; the compiler sees that all before it has been computed already.
        fixed, vectors = jax.lax.stop_gradient((params, straight))
        decoder, last = fixed["decoder"], fixed["decoder"]["conv_out"]

        def of_kernel(kernel: jax.Array) -> jax.Array:
            whole = {**fixed, "decoder": {**decoder, "conv_out": {**last, "kernel": kernel}}}
            return loss(_paint(whole, vectors, sizes, config))

        return jax.grad(of_kernel)(last["kernel"])

    def opinion(pixels: jax.Array) -> jax.Array:
        return discriminator.painter_loss(judge(pixels.astype(config.dtype)))

    weight = discriminator.adaptive_weight(
        at_last_kernel(lambda pixels: _reconstruction_loss(pixels, target, config)), at_last_kernel(opinion)
    )
    return weight * opinion(pixels), {"adaptive_weight": weight}


def _cast(params: Any, config: VQGANTrainConfig) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)


def _latents(params: Any, target: jax.Array, sizes: VQGANConfig, config: VQGANTrainConfig) -> jax.Array:
    return model.latents(_cast(params, config), sizes, target.astype(config.dtype)).astype(jnp.float32)


def _paint(params: Any, vectors: jax.Array, sizes: VQGANConfig, config: VQGANTrainConfig) -> jax.Array:
    return model.paint(_cast(params, config), sizes, vectors.astype(config.dtype)).astype(jnp.float32)


def _loss(params, state: VQGANState, batch: Batch, *, sizes: VQGANConfig, config: VQGANTrainConfig):
    target, step = jnp.asarray(batch.pixels, jnp.float32) / 255, state.step
    codebook = params["quantize"]["embedding"]["embedding"]
    z = _unit(_latents(params, target, sizes, config))  # [B, h, w, D]
    codes = model.nearest_codes(codebook, z)
    quantised = jax.lax.stop_gradient(codebook)[codes]
    continuous = step < config.continuous_steps
    commitment = jnp.square(z - quantised).sum(-1).mean()
    straight = jnp.where(continuous, z, z + jax.lax.stop_gradient(quantised - z))
    pixels = _paint(params, straight, sizes, config)
    others = jnp.where(continuous, 0, config.commitment_weight) * commitment
    mse = jnp.square(jnp.clip(pixels, 0, 1) - target).mean()
    metrics, weights = {"psnr": -10 * jnp.log10(mse)}, None
    if batch.cells is not None:
        spread, weights, more = _consistency(z.reshape(-1, z.shape[-1]), codes.reshape(-1), jnp.asarray(batch.cells))
        start, end = config.consistency_steps
        others += config.consistency_weight * jnp.clip((step - start) / (end - start), 0, 1) * spread
        metrics |= more
    if state.critic:
        adversarial, more = _adversarial_loss(
            params, state.critic, straight, pixels, target, sizes=sizes, config=config
        )
        others += config.discriminator_weight * (step >= config.discriminator_start) * adversarial
        metrics |= more
    loss = _reconstruction_loss(pixels, target, config) + others
    return loss, (z, codes, weights, pixels, {"loss": loss, **metrics})


def make_step(
    sizes: VQGANConfig,
    config: VQGANTrainConfig,
    optimiser: optax.GradientTransformation,
    *,
    state_sharding: NamedSharding | None = None,
):
    """The jitted `(state, batch) -> (state, metrics)`; the state is donated."""

    @partial(jax.jit, donate_argnums=0, out_shardings=state_sharding)
    def step_fn(state: VQGANState, batch: Batch) -> tuple[VQGANState, dict[str, jax.Array]]:
        grads, (z, codes, weights, pixels, metrics) = jax.grad(_loss, has_aux=True)(
            state.params, state, batch, sizes=sizes, config=config
        )
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        codebook, uses, sums = _update_codebook(state, z, codes, weights, config)
        params = {**params, "quantize": {"embedding": {"embedding": codebook}}}
        metrics["alive"] = (uses > config.dead_below).sum()
        critic, average = state.critic, state.average
        if critic:
            critic, metrics["discriminator"] = _update_critic(state, pixels, batch.pixels, config)
        if config.ema_decay:
            average = _update_average(state, params, config)
        return VQGANState(state.step + 1, params, opt_state, uses, sums, critic, average), metrics

    return step_fn


def _update_critic(
    state: VQGANState, painted: jax.Array, real: np.ndarray, config: VQGANTrainConfig
) -> tuple[Critic, jax.Array]:
    """The discriminator after a step, and its loss before; it stays as it is until `discriminator_start`."""
    params, opt_state = state.critic
    pictures = (jnp.asarray(real, config.dtype) / 255, jax.lax.stop_gradient(painted).astype(config.dtype))

    def loss_of(params: Any) -> jax.Array:
        judged = [discriminator.logits(_cast(params, config), config.discriminator, x) for x in pictures]
        return discriminator.discriminator_loss(*judged)

    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, opt_state = _critic_optimiser(config).update(grads, opt_state)
    updated = Critic(optax.apply_updates(params, updates), opt_state)
    started = state.step >= config.discriminator_start
    return jax.tree.map(lambda new, old: jnp.where(started, new, old), updated, state.critic), loss


def _update_average(state: VQGANState, params: dict[str, Any], config: VQGANTrainConfig) -> Any:
    # The average of the first steps would otherwise be that of the random start.
    decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda mean, leaf: decay * mean + (1 - decay) * leaf, state.average, params)


def _update_codebook(
    state: VQGANState, z: jax.Array, codes: jax.Array, weights: jax.Array | None, config: VQGANTrainConfig
):
    """Moving averages of uses and latents; dead codes restart from latents of this batch."""
    flat, chosen = z.reshape(-1, z.shape[-1]), codes.reshape(-1)
    size, decay = state.uses.shape[0], config.codebook_decay
    count = jnp.ones(len(flat)) if weights is None else weights
    uses = decay * state.uses + (1 - decay) * jax.ops.segment_sum(count, chosen, size)
    sums = decay * state.sums + (1 - decay) * jax.ops.segment_sum(flat * count[:, None], chosen, size)

    rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
    p = None if weights is None else weights / weights.sum()
    fresh = flat[jax.random.choice(rng, len(flat), (size,), p=p)]
    restart_all = state.step < config.continuous_steps
    dead = restart_all | ((uses < config.dead_below) & (state.step % config.restart_every == 0))
    uses = jnp.where(dead, 10 * config.dead_below, uses)
    sums = jnp.where(dead[:, None], fresh * uses[:, None], sums)
    return _unit(sums), uses, sums


def _schedule(config: VQGANTrainConfig) -> optax.Schedule:
    warmup = min(config.warmup_steps, config.steps // 2)
    return optax.warmup_cosine_decay_schedule(0, config.learning_rate, warmup, config.steps)


def _optimiser(config: VQGANTrainConfig) -> optax.GradientTransformation:
    # The codebook follows its moving averages, not the gradient.
    labels = {"quantize": "codebook"}
    return optax.multi_transform(
        {
            "network": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(_schedule(config), 0.9, 0.99)),
            "codebook": optax.set_to_zero(),
        },
        lambda params: {name: labels.get(name, "network") for name in params},
    )


def _critic_optimiser(config: VQGANTrainConfig) -> optax.GradientTransformation:
    """Adam as in Isola et al. 2017, section 3.3; its rate falls with the painter's, so that neither runs away."""
    schedule, peak = _schedule(config), config.discriminator.learning_rate
    # The critic's first update is that of step discriminator_start.
    return optax.adam(
        lambda count: peak / config.learning_rate * schedule(count + config.discriminator_start), 0.5, 0.999
    )


def _initial_state(sizes: VQGANConfig, config: VQGANTrainConfig, optimiser: optax.GradientTransformation) -> VQGANState:
    params = jax.jit(partial(model.init_params, sizes))(jax.random.key(config.seed))
    codebook = _unit(jax.random.normal(jax.random.key(config.seed + 1), (sizes.n_embed, sizes.embed_dim)))
    params["quantize"]["embedding"]["embedding"] = codebook
    state = VQGANState(jnp.int32(0), params, optimiser.init(params), jnp.zeros(sizes.n_embed), jnp.zeros_like(codebook))
    if config.discriminator_weight:
        init = jax.jit(partial(discriminator.init_params, config.discriminator))
        critic = init(jax.random.key(config.seed + 2))
        state = state._replace(critic=Critic(critic, _critic_optimiser(config).init(critic)))
    if config.ema_decay:
        state = state._replace(average=jax.tree.map(jnp.copy, params))  # not the same arrays: they are donated
    return state


def _result(state: VQGANState) -> dict[str, Any]:
    """The params to use: the moving average if there is one. The codebook is an average already."""
    return {**state.average, "quantize": state.params["quantize"]} if state.average else state.params


def check(sizes: VQGANConfig, config: VQGANTrainConfig, *, devices: int = 1) -> None:
    """Raise ValueError if settings do not go together, before anything is allocated."""
    smallest = config.discriminator.smallest_side
    if config.discriminator_weight and sizes.resolution < smallest:
        raise ValueError(
            f"resolution must be >= {smallest} for {config.discriminator.layers} discriminator.layers, "
            f"got {sizes.resolution}"
        )
    if config.perceptual_weight and not perceptual.scales(sizes.resolution, sizes.resolution):
        raise ValueError(f"resolution must be >= {perceptual.WINDOW} for perceptual_weight, got {sizes.resolution}")
    if config.batch_size % devices:
        raise ValueError(f"batch_size must be a multiple of the {devices} devices, got {config.batch_size}")


def train(
    sizes: VQGANConfig,
    config: VQGANTrainConfig,
    batches: Callable[[int], Batch],
    *,
    out: Path,
    held_out: np.ndarray,
    devices: Sequence[jax.Device] = (),
) -> dict[str, Any]:
    """Train from scratch, or on from the newest checkpoint in `out`; returns params in the published tree.

    `batches(step)` gives pictures and which of their squares are alike; `held_out` uint8 pictures are redrawn on the
    sample sheets. The batch is spread over `devices`, if several are given. Raises ValueError; see `check`.
    """
    check(sizes, config, devices=max(1, len(devices)))
    optimiser = _optimiser(config)
    state, everywhere, by_row = _initial_state(sizes, config, optimiser), None, None
    if len(devices) > 1:
        mesh = Mesh(np.array(devices), ("data",))
        everywhere, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        state = jax.device_put(state, everywhere)

    def spread(step: int) -> Batch:
        return jax.device_put(batches(step), by_row) if by_row else batches(step)

    def sheet(state: VQGANState) -> Image.Image:
        params = _result(state)
        codes = model.encode(params, sizes, jnp.asarray(held_out, jnp.float32) / 255)
        return comparison_sheet(params, sizes, codes, held_out)

    step_fn = make_step(sizes, config, optimiser, state_sharding=everywhere)
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    return _result(fit(state, step_fn, spread, config=loop, sheet=sheet))


class DecoderState(NamedTuple):
    trained: dict[str, Any]  # post_quant_conv and decoder
    opt_state: Any


def train_decoder(
    sizes: VQGANConfig,
    config: VQGANTrainConfig,
    params: dict[str, Any],
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]],
    *,
    out: Path,
    held_out: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Train the decoder of `params` on, for `config.steps` steps, while every picture keeps its codes.

    `batches(step)` gives codes, int [B, N], and the uint8 pictures [B, H, W, 3] to paint from them; so does `held_out`.
    What was learned from the codes, a text-to-code model above all, stays valid. Returns whole params.
    """
    names = ("decoder", "post_quant_conv")
    fixed = {name: tree for name, tree in params.items() if name not in names}
    schedule = _schedule(config)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, 0.9, 0.99))

    def loss_of(trained: dict[str, Any], codes: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        pixels = model.decode({**fixed, **trained}, sizes, codes)
        return _reconstruction_loss(pixels, target, config), jnp.square(jnp.clip(pixels, 0, 1) - target).mean()

    @partial(jax.jit, donate_argnums=0)
    def step_fn(state: DecoderState, batch: tuple[jax.Array, jax.Array]) -> tuple[DecoderState, dict[str, jax.Array]]:
        codes, target = batch[0], jnp.asarray(batch[1], jnp.float32) / 255
        (loss, mse), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trained, codes, target)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return DecoderState(trained, opt_state), {"loss": loss, "psnr": -10 * jnp.log10(mse)}

    def sheet(state: DecoderState) -> Image.Image:
        return comparison_sheet({**fixed, **state.trained}, sizes, *held_out)

    trained = jax.tree.map(jnp.copy, {name: params[name] for name in names})  # donated below
    loop = LoopConfig(out=out, steps=config.steps, examples_per_step=config.batch_size)
    state = fit(DecoderState(trained, optimiser.init(trained)), step_fn, batches, config=loop, sheet=sheet)
    return {**fixed, **state.trained}


def comparison_sheet(params: dict[str, Any], sizes: VQGANConfig, codes: Any, pixels: np.ndarray) -> Image.Image:
    """Pictures (upper of two rows) and what is painted from their codes (lower), eight to a row."""
    painted = jax.jit(lambda p, codes: model.decode(p, sizes, codes))(params, codes)
    painted = np.asarray(jnp.clip(painted, 0, 1) * 255).astype(np.uint8)
    rows = []
    for i in range(0, len(pixels), 8):
        rows += [np.concatenate(list(x[i : i + 8]), axis=1) for x in (pixels, painted)]
    return Image.fromarray(np.concatenate(rows))
