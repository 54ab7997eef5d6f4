"""What a training run will take, by arithmetic: sizes, memory of each device, FLOPs, time.

Contract: nothing of the model is allocated (`jax.eval_shape`), so that a plan of any size is made on any machine. The
same numbers are printed by a dry run and refuse a run that would not fit.

Params, optimiser state and gradients are exact. Activations are what the backward pass asks JAX to keep, with one
layer's worth more where layers are computed again; XLA may keep less, by fusing, or some more, for its own work.
"""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dalle_mini import environment, model
from dalle_mini.config import ModelConfig
from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.dalle.loss import Batch, computed_in, row_losses
from dalle_mini.training.dalle.optimiser import make_optimiser
from dalle_mini.training.dalle.sharding import DATA, MODEL, axes_for, specs_of
from dalle_mini.training.dalle.train_step import init_state

# bf16 FLOP/s of dense products, by a part of JAX's device_kind. NVIDIA's data sheets of A100, H100 and H200 ("BFLOAT16
# Tensor Core", without sparsity); Google Cloud's TPU pages ("Peak compute per chip").
PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,
}
ROWS = 1009  # a prime, so that an array with this many rows is one of activations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes are those of one device, FLOPs those of all of them for one optimiser step."""

    parameters: int
    axes: Mapping[str, int]
    params: int
    average: int
    optimiser: int
    gradients: int
    activations: int
    flops: float

    @property
    def total(self) -> int:
        return self.params + self.average + self.optimiser + self.gradients + self.activations

    @property
    def devices(self) -> int:
        return math.prod(self.axes.values())

    def table(self) -> str:
        """For people."""
        parts = ("params", "average", "optimiser", "gradients", "activations", "total")
        mesh = " x ".join(f"{size} {name}" for name, size in self.axes.items())
        lines = [f"parameters         {self.parameters:,}", f"mesh               {mesh}", "memory of each device"]
        lines += [f"  {name:<16} {getattr(self, name) / 2**30:10.3f} GiB" for name in parts if getattr(self, name)]
        return "\n".join([*lines, f"FLOPs of a step    {self.flops:.3e}"])

    def check(self, memory: int, name: str) -> None:
        """Raises ValueError, naming the numbers, if the run would not fit `memory` bytes on a device."""
        if self.total > memory:
            parts = ("params", "average", "optimiser", "gradients", "activations")
            named = ", ".join(f"{part} {getattr(self, part) / 2**30:.2f}" for part in parts if getattr(self, part))
            raise ValueError(
                f"the recipe must fit the {memory / 2**30:.2f} GiB of each device ({name}), got "
                f"{self.total / 2**30:.2f} GiB ({named}): remat = true, more accumulation or model_devices, "
                "or a lower batch_size would take less"
            )


def make_plan(sizes: ModelConfig, config: DalleTrainConfig, devices: int) -> Plan:
    """Raises ValueError where devices and batch cannot be divided, or no sharding rule matches a path."""
    axes = axes_for(config, devices)
    shapes = model.param_shapes(computed_in(sizes, config))
    state = jax.eval_shape(lambda params: init_state(config, make_optimiser(config, params), params), shapes)
    params = _bytes(state.params, axes, "params")
    rows = config.batch_size // config.accumulation // axes[DATA]
    return Plan(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        axes=axes,
        params=params,
        average=_bytes(state.average, axes, "average"),
        optimiser=_bytes(state.opt_state, axes, "opt_state"),
        gradients=params * (2 if config.accumulation > 1 else 1),  # a part's beside the sum
        activations=rows * activations_of_row(sizes, config, model_axis=axes[MODEL]),
        flops=config.batch_size * flops_of_row(sizes),
    )


def _bytes(tree: Any, axes: Mapping[str, int], name: str) -> int:
    specs = jax.tree.leaves(specs_of({name: tree}, axes), is_leaf=lambda x: isinstance(x, PartitionSpec))
    return sum(
        leaf.size * leaf.dtype.itemsize // math.prod(axes[axis] for axis in spec if axis)
        for leaf, spec in zip(jax.tree.leaves(tree), specs, strict=True)
    )


def activations_of_row(sizes: ModelConfig, config: DalleTrainConfig, *, model_axis: int) -> int:
    """Bytes that a device keeps of one example for the backward pass."""

    def kept(encoder_layers: int, decoder_layers: int, remat: bool) -> int:
        small = dataclasses.replace(sizes, encoder_layers=encoder_layers, decoder_layers=decoder_layers)
        return _kept(small, config, remat=remat, model_axis=model_axis)

    def whole(remat: bool) -> int:
        # Layers of a kind keep the same: three small networks tell what a deep one keeps.
        one = kept(1, 1, remat)
        encoder, decoder = kept(2, 1, remat) - one, kept(1, 2, remat) - one
        return one + (sizes.encoder_layers - 1) * encoder + (sizes.decoder_layers - 1) * decoder

    if not config.remat:
        return whole(False)
    once = kept(1, 2, False) - kept(1, 1, False)  # the layer that is being computed again
    return whole(True) + once


def _kept(sizes: ModelConfig, config: DalleTrainConfig, *, remat: bool, model_axis: int) -> int:
    sizes = computed_in(sizes, config)
    ids = [jax.ShapeDtypeStruct((ROWS, n), jnp.int32) for n in (sizes.max_text_length,) * 2 + (sizes.image_length,)]

    def backward(params: Any, batch: Batch) -> Any:
        # The function that jax.vjp gives back is a tree of what it keeps.
        return jax.vjp(lambda params: row_losses(params, sizes, batch, remat=remat), params)[1]

    total = 0
    for leaf in jax.tree.leaves(jax.eval_shape(backward, model.param_shapes(sizes), Batch(*ids))):
        if leaf.shape[:1] == (ROWS,):
            # The residual stream is whole on every device; heads, feed-forwards and logits are shared.
            whole = leaf.ndim <= 2 or (leaf.shape[-1] == sizes.d_model and leaf.ndim == 3)
            total += leaf.size // ROWS * leaf.dtype.itemsize // (1 if whole else model_axis)
    return total


def flops_of_row(sizes: ModelConfig) -> float:
    """FLOPs of one example, forward and backward: matrix products only, nothing that is computed again.

    A product of [m, k] and [k, n] is 2mkn, and its two gradients as much each (Kaplan et al. 2020, section 2.1).
    """
    D, S, T = sizes.d_model, sizes.max_text_length, sizes.image_length
    encoder = 4 * D * D * S + 3 * D * sizes.encoder_ffn_dim * S + 2 * D * S * S
    # Of the text's states: keys and values. Of the codes: four matrices, two of cross-attention, the feed-forward.
    decoder = 2 * D * D * S + 6 * D * D * T + 3 * D * sizes.decoder_ffn_dim * T + 2 * D * T * (T + S)
    products = sizes.encoder_layers * encoder + sizes.decoder_layers * decoder + D * sizes.vocab_size * T
    return 3 * 2.0 * products


def memory_of(device: jax.Device) -> int:
    """Bytes that JAX may use on a device; on a CPU, its share of the machine's memory."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    return environment.memory() // jax.local_device_count()


def peak_of(device_kind: str) -> float | None:
    """Peak bf16 FLOP/s of a device that is in the table, else None."""
    # Whole words: an "RTX A1000" is no A100.
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", device_kind)), None)


def dry_run(sizes: ModelConfig, config: DalleTrainConfig, devices: int | None = None) -> str:
    """What a run on so many devices like this machine's would take, for people."""
    plan, device = make_plan(sizes, config, devices or jax.device_count()), jax.local_devices()[0]
    memory, rate = memory_of(device), measured_rate(config.dtype)
    try:
        plan.check(memory, device.device_kind)
        verdict = f"fits the {memory / 2**30:.1f} GiB of a device of this machine ({device.device_kind})"
    except ValueError as error:
        verdict = f"refused on this machine: {error}"
    seconds = config.steps * plan.flops / (rate * plan.devices)
    return (
        f"{plan.table()}\n{verdict}\n"
        f"{config.steps} steps: at least {_duration(seconds)} on {plan.devices} such devices, "
        f"at the {rate / 1e12:.3g} TFLOP/s that products of matrices reach on one ({config.dtype}, just measured)"
    )


def measured_rate(dtype: str) -> float:
    """FLOP/s that a product of two large matrices reaches on the first device."""
    side = 512 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product, best = jax.jit(jnp.matmul), math.inf
    product(matrix, matrix).block_until_ready()
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _duration(seconds: float) -> str:
    units = (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60))
    name, size = next(((name, size) for name, size in units if seconds >= size), ("seconds", 1))
    return f"{seconds / size:.1f} {name}"
