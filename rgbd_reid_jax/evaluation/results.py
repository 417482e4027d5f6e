"""The results of a run: every direction ranked, chance beside it, in a versioned schema."""

import platform
import resource
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from rgbd_reid_jax.metrics.embeddings import DIRECTIONS, Embeddings
from rgbd_reid_jax.metrics.ranking import as_chance, as_results, by_clothes, rank

SCHEMA = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def rank_directions(sets: Mapping[str, Embeddings], protocol: str) -> dict[str, Any]:
    """Ranks each direction of `DIRECTIONS`.

    Args:
        sets: embeddings of one split by modality.
        protocol: exclusion rule.

    Returns:
        {"results": {direction: {"mAP", "rank1", "rank5", "rank10"}}, "chance": the same under a random order,
        "queries": {direction: {"num_query", "num_query_skipped", "num_gallery", "tie_rate"}},
        "clothes": {direction: {"same_clothes": ..., "changed_clothes": ...}}}; scores are fractions of 1.
    """
    found: dict[str, Any] = {"results": {}, "chance": {}, "queries": {}, "clothes": {}}
    for direction, (query, gallery) in DIRECTIONS.items():
        result = rank(sets[query], sets[gallery], protocol)
        found["results"][direction] = as_results(result)
        found["chance"][direction] = as_chance(result)
        counts = ("num_query", "num_query_skipped", "num_gallery", "tie_rate")
        found["queries"][direction] = {name: getattr(result, name) for name in counts}
        found["clothes"][direction] = by_clothes(sets[query], sets[gallery], protocol)
    return found


def environment() -> dict[str, Any]:
    """Versions, devices and peak memory of this process."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "backend": jax.default_backend(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "peak_memory_mib": round(peak_memory_mib()),
    }


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB, macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
