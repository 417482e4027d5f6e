"""Ranks by distances that are there: small galleries that change with every query, drawn images, re-ranked distances.

`ranks.positive_ranks` counts without holding distances, so it serves every rule that it can express. What it cannot
goes through a block of distances and a mask here, by the same tie rule, in O(block x gallery) memory.
"""

from collections.abc import Iterable

import numpy as np

from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.pairwise import Pairwise
from rgbd_reid_jax.metrics.ranks import Ranks, Side

BLOCK_NUMBERS = 1 << 23  # distances held at once, 64 MiB


def side(items: Embeddings, metric: str, drop: np.ndarray | None = None) -> Side:
    """A set as the ranking engine takes it.

    Args:
        items: the set.
        metric: "gated" asks for gates.
        drop: int64 [N], items of the other side with the same code are invisible; default: zeros.

    Raises:
        InputError: gates are wanted and missing.
    """
    gate = items.column("gate", "metric gated") if metric == "gated" else None
    return Side(items.embedding, items.person_id, np.zeros(len(items), np.int64) if drop is None else drop, gate)


def pairwise(query: Embeddings, gallery: Embeddings, metric: str) -> Pairwise:
    """Distances between two sets."""
    return Pairwise(side(query, metric), side(gallery, metric), metric)


def matrix(query: Embeddings, gallery: Embeddings, metric: str) -> np.ndarray:
    """All distances, float64 [Q, G], of few queries."""
    distance = np.empty((len(query), len(gallery)))
    for rows, values in pairwise(query, gallery, metric).row_blocks(BLOCK_NUMBERS):
        distance[rows] = values
    return distance


def dense_ranks(
    blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], query_person: np.ndarray, gallery_person: np.ndarray
) -> Ranks:
    """What `ranks.positive_ranks` gives, from distances.

    Args:
        blocks: (rows, distance, visible): int [n], float64 [n, G], bool [n, G]; every query once, in any order.
        query_person: int64 [Q].
        gallery_person: int64 [G].
    """
    num_query = len(query_person)
    num_positive, num_valid = np.zeros(num_query, np.int64), np.zeros(num_query, np.int64)
    parts: list = [None] * num_query
    for queries, distance, visible in blocks:
        for query, values, seen in zip(queries, distance, visible, strict=True):
            same = gallery_person == query_person[query]
            rows = np.flatnonzero(seen & same)
            rows = rows[np.argsort(values[rows], kind="stable")]
            others = np.sort(values[seen & ~same])
            ahead = np.searchsorted(others, values[rows], "right")
            tied = ahead > np.searchsorted(others, values[rows], "left")
            num_positive[query], num_valid[query] = len(rows), seen.sum()
            parts[query] = rows, ahead, tied, values[rows]
    rows, ahead, tied, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    start = np.concatenate([[0], np.cumsum(num_positive)])
    return Ranks(start, rows, ahead, tied, distances, num_valid, len(gallery_person))
