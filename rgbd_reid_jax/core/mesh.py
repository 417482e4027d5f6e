"""The device mesh: one global batch over all devices, parameters replicated.

Batches are sharded over both axes of a mesh `(data, fsdp)`; jit then makes batch-norm statistics and
losses global, so a result does not depend on the number of devices.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rgbd_reid_jax.core.errors import InputError

DATA, FSDP = "data", "fsdp"


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices as `(data, fsdp)` with automatic sharding propagation.

    Args:
        fsdp: size of the second axis; it must divide the number of devices.

    Raises:
        InputError: `fsdp` does not divide the number of devices.
    """
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        raise InputError(f"mesh.fsdp={fsdp} does not divide the {count} devices; choose a divisor of {count}")
    return jax.make_mesh((count // fsdp, fsdp), (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


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
