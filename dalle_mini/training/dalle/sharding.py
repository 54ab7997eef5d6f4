"""Where the arrays of a run live: `Mesh("data", "model")` and one list of rules.

Contract: the axis "data" shares the rows of a batch, the axis "model" the matrices. `RULES` says, by the path of an
array in the training state, which of its dimensions are split; a path that no rule matches is an error that names it.
The rules are for params, gradients, optimiser state and averages alike, whose paths end in those of the params. The
split is that of Shoeybi et al. 2019 (section 3): by columns, then by rows, so that a sublayer needs one sum over the
axis. A dimension that the axis does not divide is left whole, on all its devices.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dalle_mini.training.dalle.config import DalleTrainConfig
from dalle_mini.training.dalle.loss import Batch

DATA, MODEL = "data", "model"
RULES = (
    (r"(^|/)(step|count|ns_coeffs)(/|$)", PartitionSpec()),
    (r"/v_(row|col)/", PartitionSpec()),  # Adafactor's: a number per row or column
    (r"norm/(scale|bias)$", PartitionSpec()),
    (r"/embed/(ids|positions)/embedding$", PartitionSpec(None, MODEL)),
    (r"/(q|k|v|gate|up)_proj/kernel$", PartitionSpec(None, MODEL)),
    (r"/(out|down)_proj/kernel$", PartitionSpec(MODEL, None)),
    (r"/lm_head/kernel$", PartitionSpec(None, MODEL)),
)


def spec_of(path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> PartitionSpec:
    """How the array at `path` is split over axes of these sizes. Raises ValueError if no rule matches."""
    for pattern, spec in RULES:
        if re.search(pattern, path):
            pairs = zip(shape, spec, strict=False)  # Adafactor keeps a (1,) in the place of a matrix it factors
            return PartitionSpec(*(axis if axis and size % axes[axis] == 0 else None for size, axis in pairs))
    raise ValueError(f"a sharding rule must match every path of the training state, got none for {path}")


def specs_of(tree: Any, axes: Mapping[str, int]) -> Any:
    """`spec_of` for every array (or shape) of a tree."""

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        return spec_of(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, axes)

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings_of(tree: Any, mesh: Mesh) -> Any:
    """`specs_of` on the devices of `mesh`."""
    specs = specs_of(tree, mesh.shape)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def axes_for(config: DalleTrainConfig, devices: int) -> dict[str, int]:
    """The sizes of the mesh's axes. Raises ValueError where devices and batch cannot be divided."""
    if devices % config.model_devices:
        raise ValueError(f"model_devices must divide the number of devices {devices}, got {config.model_devices}")
    data = devices // config.model_devices
    if config.batch_size % (data * config.accumulation):
        raise ValueError(
            f"batch_size must be a multiple of {data * config.accumulation} "
            f"(data axis {data} * accumulation {config.accumulation}), got {config.batch_size}"
        )
    return {DATA: data, MODEL: config.model_devices}


def make_mesh(config: DalleTrainConfig) -> Mesh:
    """All devices of all hosts. The devices of one copy of the model are neighbours, on one host if they can be."""
    axes = axes_for(config, jax.device_count())
    return Mesh(np.array(jax.devices()).reshape(tuple(axes.values())), tuple(axes))


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """The whole batch, of which every process gives its own devices their rows."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA))

    def place(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    return jax.tree.map(place, batch)


def start_processes(where: str) -> None:
    """Join the other hosts of a run, before JAX is used: "auto" or ADDRESS:PORT,PROCESSES,PROCESS.

    "auto" finds them where the cluster tells (Slurm, Cloud TPU, Kubernetes). Raises ValueError for anything else.
    """
    if where == "auto":
        jax.distributed.initialize()
        return
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", where)
    if not match or not int(match[3]) < int(match[2]):
        raise ValueError(f"distributed must be auto or ADDRESS:PORT,PROCESSES,PROCESS (from 0 on), got {where!r}")
    jax.distributed.initialize(match[1], num_processes=int(match[2]), process_id=int(match[3]))
