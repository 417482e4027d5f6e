"""The results of a run: every direction ranked, chance beside it, in a versioned schema."""

import platform
import resource
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from rgbd_reid_jax.evaluation.compare import Compared, Comparison
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS
from rgbd_reid_jax.metrics.ranking import as_chance, as_results, groups, intervals

SCHEMA = 1
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def rank_directions(sets: Mapping[str, Compared], comparison: Comparison, stage: str = "") -> dict[str, Any]:
    """Ranks each direction of `DIRECTIONS`.

    Args:
        sets: one split by modality.
        comparison: how both sides are compared.
        stage: names long work in progress lines; none are printed without.

    Returns:
        {"results": {direction: {"mAP", "rank1", "rank5", "rank10", "mAP_trapezoid", "mINP"}}, "intervals": {direction:
        {"mAP": [low, high], ...}}, 95 % over persons, "chance": {direction: {"mAP", "rank1", "rank5",
        "rank10"}} under a random order, "queries": {direction: {"num_query", "num_query_skipped", "num_gallery",
        "tie_rate"}}, and per kind of `groups`, such as "clothes", {direction: {group: scores}}; fractions of 1. With
        a gate in the middle also "without_gate": {direction: scores} before pairs were compared one by one.
    """
    sides = comparison.sides(sets)
    found: dict[str, Any] = {"results": {}, "intervals": {}, "chance": {}, "queries": {}}
    for direction, (query, gallery) in DIRECTIONS.items():
        result = comparison(sets, query, gallery, f"{stage} {direction}" if stage else "")
        if query != gallery and sets[query].maps is not None:
            plain = as_results(comparison(sets, query, gallery, pair_by_pair=False))
            found.setdefault("without_gate", {})[direction] = plain
        more = {"mAP_trapezoid": result.mean_ap_trapezoid, "mINP": result.mean_inp}
        found["results"][direction] = as_results(result) | more
        found["intervals"][direction] = intervals(result, sides[query].person_id)
        found["chance"][direction] = as_chance(result)
        counts = ("num_query", "num_query_skipped", "num_gallery", "tie_rate")
        found["queries"][direction] = {name: getattr(result, name) for name in counts}
        for kind, scores in groups(result, sides[query], sides[gallery]).items():
            found.setdefault(kind, {})[direction] = scores
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
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "peak_memory_mib": round(peak_memory_mib()),
    }


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB, macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
