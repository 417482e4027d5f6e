"""Peaks of devices that have none published: short measurements on the devices themselves, all at once.

Fake CPU devices share the same cores, so each gets its share.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rgbd_reid_jax.core import distributed
from rgbd_reid_jax.core.mesh import batch_sharding, make_mesh, replicated
from rgbd_reid_jax.planning.topology import Chip

_PRODUCT = 512  # rows and columns of the matrices
_BLOCK = 8 * 2**20  # float32 values of one device that are read and written
_SUMMED = 2**20  # float32 values of one device that are summed
_REPEATS = 8
_LARGER = 16  # times on an accelerator, which would spend its time on starting the small ones, in caches


def measured_chip(devices: Sequence[Any], dtype: str) -> Chip:
    """What each of `devices` does now, beside whatever else the machine is doing.

    Args:
        devices: of this process.
        dtype: of the matrix product.
    """
    mesh = make_mesh(1, devices)
    rows, count = batch_sharding(mesh), len(devices)
    larger = 1 if devices[0].platform == "cpu" else _LARGER
    side, length = _PRODUCT * larger, _BLOCK * larger

    def block(*shape: int, dtype: str = "float32") -> jax.Array:
        return jax.jit(lambda: jnp.ones((count, *shape), dtype), out_shardings=rows)()

    matrices, values = block(side, side, dtype=dtype), block(length)
    product = _seconds(jax.jit(lambda x: x @ x, out_shardings=rows), matrices)
    copy = _seconds(jax.jit(lambda x: x + 1.0, out_shardings=rows, donate_argnums=0), values, chained=True)
    link, hop = 0.0, 0.0
    if count > 1:
        total = jax.jit(lambda x: x.sum(axis=0), out_shardings=replicated(mesh))
        hop = _seconds(total, block(1)) / 2  # an all-reduce has two phases of one hop
        link = 2 * 4 * _SUMMED * (count - 1) / count / _seconds(total, block(_SUMMED))
    return Chip(
        devices[0].device_kind,
        memory_of(devices),
        {dtype: 2 * side**3 / product},
        2 * 4 * length / copy,
        link,
        hop,
        0,
        f"measured now: product of {side}x{side} {dtype} matrices, copy of {4 * length // 10**6} MB, sum",
    )


def _seconds(function: Callable[[Any], Any], argument: Any, *, chained: bool = False) -> float:
    """The shortest of some calls, after a first one; `chained` ones get what the one before gave."""
    found = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        result = jax.block_until_ready(function(argument))
        found.append(time.perf_counter() - began)
        argument = result if chained else argument
    return max(min(found[1:]), 1e-9)


def memory_of(devices: Sequence[Any]) -> float | None:
    """Bytes of one device; of a CPU, its share of the machine's, on which all processes of the run may be."""
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return float(limit)
    if devices[0].platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices) / distributed.count()
    return None
