"""The device mesh: one global batch over all devices, parameters replicated.

Batches are sharded over the mesh's one axis, `data`; jit then makes batch-norm statistics and losses
global, so a result does not depend on the number of devices beyond rounding.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rgbd_reid_jax.core.errors import InputError

DATA = "data"


def make_mesh() -> Mesh:
    """All devices on one axis, with automatic sharding propagation.

    Process by process: rows k/P .. (k+1)/P of a batch then lie on the devices of process k, which reads them. (Where
    `jax.make_mesh` would lay the axis along a slice's wires, rows would change places; XLA lays its rings itself.)
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (DATA,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, name: str) -> None:
    """Raises InputError unless the global batch divides among the devices; `name` is the config's key."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(f"{name}={batch_size} is no positive multiple of the {mesh.size} devices; choose one that is")


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, [B / processes, ...] to [B, ...]."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
