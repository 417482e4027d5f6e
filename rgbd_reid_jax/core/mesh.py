"""The device mesh: one global batch over all devices, and where parameters lie.

Rows of a batch are sharded over both axes, `data` and `fsdp`; jit then makes batch-norm statistics and losses
global, so a result does not depend on the number of devices beyond rounding. Parameters and optimizer slots are
sharded over `fsdp` alone (`PARAMETER_RULES`): each of its devices keeps a part, and a step gathers the whole where
it computes. With an `fsdp` of 1 every device keeps all.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rgbd_reid_jax.core.errors import InputError

DATA, FSDP = "data", "fsdp"
ROWS = (DATA, FSDP)
"""The axes that the rows of a batch are sharded over."""

PARAMETER_RULES: Sequence[tuple[str, tuple[int, ...]]] = (
    (r"(.*/)?kernel", (-1, -2)),  # the channels out, or where `fsdp` does not divide them, those in
    (r".*", ()),  # shifts, scales, statistics, counters: small
)
"""(regular expression over the whole path, dimensions of which the first that `fsdp` divides is cut).

The first rule that matches holds. An optimizer's slots have their parameter's path at the end of their own.
"""


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, with automatic sharding propagation.

    Process by process: rows k/P .. (k+1)/P of a batch then lie on the devices of process k, which reads them. (Where
    `jax.make_mesh` would lay the axes along a slice's wires, rows would change places; XLA lays its rings itself.)

    Args:
        fsdp: devices among which parameters are sharded; neighbours, so those of one host first.
        devices: some devices; None takes all.

    Raises:
        InputError: `fsdp` does not divide the devices.
    """
    found = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if not 1 <= fsdp <= len(found) or len(found) % fsdp:
        fitting = ", ".join(str(size) for size in range(1, len(found) + 1) if len(found) % size == 0)
        raise InputError(f"config.mesh.fsdp={fsdp} does not divide the {len(found)} devices; choose one of: {fitting}")
    return Mesh(np.array(found).reshape(-1, fsdp), ROWS, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of a training state, or of a part of one, by `PARAMETER_RULES`.

    Args:
        tree: pytree of arrays or of their shapes.
        mesh: all devices.
    """

    def of(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        dimensions = next(dimensions for pattern, dimensions in PARAMETER_RULES if re.fullmatch(pattern, name))
        shape = np.shape(leaf)
        for dimension in dimensions:
            if mesh.shape[FSDP] > 1 and shape[dimension] % mesh.shape[FSDP] == 0:
                axes: list[str | None] = [None] * len(shape)
                axes[dimension] = FSDP
                return NamedSharding(mesh, PartitionSpec(*axes))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, tree)


def check_batch(batch_size: int, mesh: Mesh, name: str, parts: int = 1) -> None:
    """Raises InputError unless the global batch divides among the devices.

    Args:
        batch_size: rows.
        mesh: all devices.
        name: the config's key, for the message.
        parts: micro-batches, each of which has to divide among the devices.
    """
    if batch_size < 1 or batch_size % (mesh.size * parts):
        times = f" x {parts} micro-batches" if parts > 1 else ""
        raise InputError(
            f"{name}={batch_size} is no positive multiple of the {mesh.size} devices{times}; choose one that is"
        )


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, [B / processes, ...] to [B, ...]."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
