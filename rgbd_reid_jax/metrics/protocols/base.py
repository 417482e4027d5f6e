"""What all protocols share: the task they get, the numbers they give, and draws that no order of the rows changes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.ranking import RULES, summary

STEP_AP = "mean over queries of step AP, (1/m) sum_k k / r_k: torchreid, fast-reid, scikit-learn >= 0.19"
TRAPEZOID_AP = (
    "mean over queries of trapezoid AP, the official Market-1501 code's and scikit-learn 0.15's: never higher"
)
MULTI_SHOT_CMC = "share of queries whose first correct gallery item has rank <= k"
DEFINITIONS = {
    "mAP": STEP_AP,
    "mAP_trapezoid": TRAPEZOID_AP,
    "mINP": "mean over queries of m / r_m, r_m the rank of the last correct item: AGW, fast-reid",
    "cmc": MULTI_SHOT_CMC,
    "tie_rate": "share of the correct items exactly as far as another person; each such tie counts as an error",
    "intervals": "95 % percentile bootstrap, identities resampled with all their queries",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a protocol evaluates.

    Attributes:
        query: the queries.
        gallery: what they are compared with; may be the same set.
        metric: "euclidean", "cosine" or "gated".
        seed: of draws and of the bootstrap.
        max_rank: length of the CMC curve.
        parameters: the protocol's, complete and of the right types.
        engine: arguments of the ranking engine that change no score: mesh, stage, block sizes.
        groups: break the numbers down by clothes, cameras and type of recording.
        query_expansion: nearest gallery items that are averaged into each query; 0 for none.
        rerank: (k1, k2, lambda) of k-reciprocal re-ranking; None for none.
    """

    query: Embeddings
    gallery: Embeddings
    metric: str
    seed: int
    max_rank: int
    parameters: Mapping[str, Any]
    engine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    groups: bool = False
    query_expansion: int = 0
    rerank: tuple[int, int, float] | None = None


def numbers(
    mean_ap: float,
    mean_ap_trapezoid: float,
    mean_inp: float,
    cmc: Sequence[float] | np.ndarray,
    *,
    tie_rate: float,
    intervals: Mapping[str, Sequence[float]],
    **counts: int,
) -> dict[str, Any]:
    """The numbers of one direction under their keys, for JSON; fractions of 1.

    Args:
        mean_ap: step.
        mean_ap_trapezoid: trapezoid.
        mean_inp: mean INP.
        cmc: float [max_rank].
        tie_rate: of the positives.
        intervals: {"mAP": (low, high), ...}, of the mean AP, mean INP and ranks shown.
        counts: num_query, num_query_skipped, num_query_absent and num_gallery.
    """
    cmc = np.asarray(cmc, np.float64)
    return {
        "mAP": float(mean_ap),
        "mAP_trapezoid": float(mean_ap_trapezoid),
        "mINP": float(mean_inp),
        "cmc": cmc.tolist(),
        **{name: value for name, value in summary(mean_ap, cmc).items() if name != "mAP"},
        **counts,
        "tie_rate": float(tie_rate),
        "intervals": {name: [float(low), float(high)] for name, (low, high) in intervals.items()},
    }


def rule_name(task: Task, protocol: str) -> str:
    """The parameter `rule`, one of `RULES`, whose columns both sets have."""
    rule = task.parameters["rule"]
    if rule not in RULES:
        raise InputError(f"protocol {protocol}: rule={rule!r} is unknown; choose one of {', '.join(RULES)}")
    for key in RULES[rule].columns:
        for items in (task.query, task.gallery):
            items.column(key, f"protocol {protocol} with rule={rule} (rule=market does without)")
    return rule


def canonical_order(items: Embeddings, *keys: str) -> np.ndarray:
    """int64 [N], rows ordered by person, then `keys`, then content: draws in this order depend on no order of the rows.

    Content is a 64-bit checksum of a row's bits; rows that are equal in everything may stand in any order.
    """
    others = ("camera_id", "recording_id", "frame_id")
    columns = [getattr(items, key) for key in ("person_id", *keys, *others) if getattr(items, key) is not None]
    return np.lexsort([_checksum(items), *columns[::-1]])


def _checksum(items: Embeddings) -> np.ndarray:
    """uint64 [N]: a sum of the row's bits, each number weighted with an odd random factor, modulo 2^64."""
    total = np.zeros(len(items), np.uint64)
    weights = np.random.default_rng(0).integers(0, 2**63, (2, items.embedding.shape[1]), np.uint64) * 2 + 1
    for matrix, factors in zip((items.embedding, items.gate), weights, strict=True):
        if matrix is None:
            continue
        for start in range(0, len(items), 4096):
            bits = np.ascontiguousarray(matrix[start : start + 4096]).view(np.uint32)
            total[start : start + 4096] += (bits * factors).sum(1, dtype=np.uint64)
    return total
