"""Ranking metrics: which gallery items count, the rank of each positive, AP, CMC and their values by chance.

For one query with valid gallery items (those the protocol keeps) and positives (valid items of its person):

    rank of the k-th nearest positive = k + #{valid items of other persons at the same distance or closer}
    AP = (1/m) sum_k k / rank_k      (step AP; its trapezoid twin is never higher)

Tie rule: a tie between persons counts against the positive, and tied positives take consecutive ranks. So no order of
the gallery changes a score, and a collapsed model scores the worst its ranking allows instead of a lucky order.
Ranks are counted, not sorted: a block of queries costs one matrix product and one pass, O(block x gallery) memory.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.embeddings import Embeddings


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which gallery items a query never sees.

    Attributes:
        words: what is dropped, to print beside results.
        mend: what to change when nothing is left.
        drops: maps (query, rows, gallery) to bool [len(rows), num_gallery], True where the item is dropped.
    """

    words: str
    mend: str
    drops: Callable[[Embeddings, np.ndarray, Embeddings], np.ndarray]


def _same(field: str, query: Embeddings, rows: np.ndarray, gallery: Embeddings) -> np.ndarray:
    """bool [len(rows), num_gallery]: the query's `field` equals the gallery item's."""
    return getattr(query, field)[rows, None] == getattr(gallery, field)[None]


PROTOCOLS: dict[str, Protocol] = {
    "cross_camera": Protocol(
        "gallery items of the query's camera are dropped",
        "record each person with at least two cameras, or rank with twin_excluded or recording_excluded",
        lambda *args: _same("camera_id", *args),
    ),
    "market": Protocol(
        "gallery items of the query's person seen by the query's camera are dropped",
        "record each person with at least two cameras, or rank with twin_excluded or recording_excluded",
        lambda *args: _same("person_id", *args) & _same("camera_id", *args),
    ),
    "twin_excluded": Protocol(
        "the gallery item of the query's own instant (same recording and frame) is dropped",
        "give each person at least two frames",
        lambda *args: _same("recording_id", *args) & _same("frame_id", *args),
    ),
    "recording_excluded": Protocol(
        "gallery items of the query's recording are dropped",
        "give each person at least two recordings, or rank with twin_excluded",
        lambda *args: _same("recording_id", *args),
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class RankingResult:
    """Scores of one direction; means are over the queries that have a positive.

    Attributes:
        mean_ap: mean of the step AP, in 0..1.
        cmc: float64 [max_rank]; cmc[k - 1] is the share of queries whose first positive has rank <= k.
        ap: float64 [num_query], NaN where skipped.
        first_hit_rank: int64 [num_query], from 1; 0 where skipped.
        skipped: bool [num_query], no positive is left after the protocol's exclusion.
        num_query: all queries, the skipped ones included.
        num_query_skipped: how many of them are skipped.
        num_gallery: gallery items before exclusion.
        tie_rate: share of the (query, positive) pairs at exactly the distance of a valid item of another person.
        chance_mean_ap: exact expectation of mean_ap under a random order of each query's valid gallery.
        chance_cmc: float64 [max_rank], the same for cmc.
        protocol: the exclusion rule's name.
    """

    mean_ap: float
    cmc: np.ndarray
    ap: np.ndarray
    first_hit_rank: np.ndarray
    skipped: np.ndarray
    num_query: int
    num_query_skipped: int
    num_gallery: int
    tie_rate: float
    chance_mean_ap: float
    chance_cmc: np.ndarray
    protocol: str


def squared_distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 [Q, G] >= 0, of embeddings [Q, D] and [G, D].

    |q|^2 + |g|^2 - 2 qg falls below zero for near-duplicates; it is clamped.
    """
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    distance = query @ gallery.T
    distance *= -2.0
    distance += np.einsum("qd,qd->q", query, query)[:, None]
    distance += np.einsum("gd,gd->g", gallery, gallery)[None]
    return np.maximum(distance, 0.0, out=distance)


def valid_items(query: Embeddings, gallery: Embeddings, protocol: str, rows: np.ndarray | None = None) -> np.ndarray:
    """bool [len(rows), num_gallery]: the gallery items that `protocol` leaves to the queries `rows` (default: all).

    Raises:
        InputError: an unknown protocol.
    """
    rows = np.arange(len(query)) if rows is None else rows
    return ~_protocol(protocol).drops(query, rows, gallery)


def rank(
    query: Embeddings, gallery: Embeddings, protocol: str, *, max_rank: int = 20, block: int = 512
) -> RankingResult:
    """Ranks the gallery for every query by Euclidean distance.

    Args:
        query: the queries.
        gallery: what they are compared with; may be the same set.
        protocol: a key of `PROTOCOLS`.
        max_rank: length of the CMC curve.
        block: queries per matrix product; memory grows with block x num_gallery, scores change by rounding at most.

    Raises:
        InputError: an unknown protocol, an empty side, different widths, or no query has a positive.
    """
    return _rank(query, gallery, protocol, max_rank, block, lambda rows: np.True_)


def by_clothes(
    query: Embeddings, gallery: Embeddings, protocol: str, *, max_rank: int = 20, block: int = 512
) -> dict[str, dict[str, float]]:
    """Scores for positives in the same clothes as the query and, apart, in changed clothes.

    For either group the other group's positives are dropped from the gallery; other persons stay.

    Returns:
        {"same_clothes": {"mAP", "rank1", "rank5", "rank10", "num_query"}, "changed_clothes": {...}} as fractions of 1;
        a group without any query that has such a positive is left out.
    """
    groups = {}
    for name, wanted in (("same_clothes", True), ("changed_clothes", False)):

        def keep(rows: np.ndarray, wanted: bool = wanted) -> np.ndarray:
            return ~_same("person_id", query, rows, gallery) | (_same("clothes_id", query, rows, gallery) == wanted)

        try:
            result = _rank(query, gallery, protocol, max_rank, block, keep)
        except _NoPositive:
            continue
        groups[name] = {**as_results(result), "num_query": result.num_query - result.num_query_skipped}
    return groups


def nearest(
    query: Embeddings, gallery: Embeddings, query_index: np.ndarray, protocol: str, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest valid gallery items of some queries, for rank lists; ties are shown in gallery order.

    Args:
        query_index: int [n], rows of `query`.
        k: how many; where fewer are valid the index is -1 and the distance infinite.

    Returns:
        int64 [n, k] rows of `gallery` and float64 [n, k] Euclidean distances, nearest first.
    """
    _check_sides(query, gallery)
    query_index = np.asarray(query_index, np.int64)
    index, distance = np.full((len(query_index), k), -1, np.int64), np.full((len(query_index), k), np.inf)
    distances = _Distances(query.embedding[query_index], gallery.embedding)(slice(None))
    distances[~valid_items(query, gallery, protocol, query_index)] = np.inf
    for row, values in enumerate(distances):
        order = np.argsort(values, kind="stable")[:k]
        order = order[np.isfinite(values[order])]
        index[row, : len(order)], distance[row, : len(order)] = order, np.sqrt(values[order])
    return index, distance


def as_results(result: RankingResult) -> dict[str, float]:
    """{"mAP", "rank1", "rank5", "rank10"} as fractions of 1; a CMC shorter than k gives its last value."""
    return _summary(result.mean_ap, result.cmc)


def as_chance(result: RankingResult) -> dict[str, float]:
    """`as_results` of a random order of the same gallery."""
    return _summary(result.chance_mean_ap, result.chance_cmc)


def chance_average_precision(num_positive: np.ndarray, num_valid: np.ndarray) -> np.ndarray:
    """E[AP] of m positives in a random order of n items: (m - 1)/(n - 1) + (n - m)/(n (n - 1)) H_n; 1 for n = 1.

    Args:
        num_positive: int [Q], 1 <= m <= n.
        num_valid: int [Q].

    Returns:
        float64 [Q].
    """
    m, n = np.asarray(num_positive, np.float64), np.asarray(num_valid, np.float64)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(n.max()) + 1))])[n.astype(np.int64)]
    others = np.maximum(n - 1.0, 1.0)
    return np.where(n == 1, 1.0, (m - 1.0) / others + (n - m) / (n * others) * harmonic)


def chance_hit_rate(num_positive: np.ndarray, num_valid: np.ndarray, max_rank: int) -> np.ndarray:
    """P(a positive within the first k) of a random order: 1 - C(n - m, k) / C(n, k), float64 [Q, max_rank], k >= 1."""
    m, n = np.asarray(num_positive, np.float64)[:, None], np.asarray(num_valid, np.float64)[:, None]
    drawn = np.arange(max_rank)[None]
    miss = np.maximum(n - m - drawn, 0.0) / np.maximum(n - drawn, 1.0)
    return 1.0 - np.cumprod(miss, axis=1)


class _NoPositive(InputError):
    """No query has a positive."""


class _Distances:
    """Squared distances of query blocks to the whole gallery, equal for equal gallery rows wherever they stand.

    A matrix product may round equal columns differently by their place; so each distinct row is multiplied once, in an
    order that depends on the rows alone. Without it a permuted gallery could break ties.
    """

    def __init__(self, query: np.ndarray, gallery: np.ndarray):
        rows = np.ascontiguousarray(gallery + np.float32(0.0))  # -0.0 becomes 0.0: equal rows are equal bytes
        if rows.shape[1] == 0:
            raise InputError("the embeddings have width 0; evaluate again with a model that has an output")
        keys = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
        _, first, self._inverse = np.unique(keys, return_index=True, return_inverse=True)
        self._query, self._gallery = query, rows[first].astype(np.float64)

    def __call__(self, rows: slice | np.ndarray) -> np.ndarray:
        """float64 [len(rows), num_gallery]."""
        return squared_distances(self._query[rows], self._gallery)[:, self._inverse]


def _rank(query, gallery, protocol, max_rank, block, keep) -> RankingResult:
    """`rank` where `keep(rows)`, bool [len(rows), num_gallery], drops more items than the protocol does."""
    _check_sides(query, gallery)
    if max_rank < 1 or block < 1:
        raise InputError(f"max_rank={max_rank} and block={block} must be at least 1")
    rule, num_query = _protocol(protocol), len(query)
    num_valid, num_positive, num_tied = (np.zeros(num_query, np.int64) for _ in range(3))
    first_hit_rank, ap = np.zeros(num_query, np.int64), np.full(num_query, np.nan)
    distances = _Distances(query.embedding, gallery.embedding)
    for rows in _blocks(num_query, block):
        same = _same("person_id", query, rows, gallery)
        valid = ~rule.drops(query, rows, gallery) & keep(rows)
        num_valid[rows], num_positive[rows] = valid.sum(1), (valid & same).sum(1)
        if not num_positive[rows].any():
            continue
        for row, distance, positive, other in zip(rows, distances(rows), valid & same, valid & ~same, strict=True):
            if num_positive[row]:
                ranks, num_tied[row] = _positive_ranks(distance[positive], distance[other])
                ap[row] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
                first_hit_rank[row] = ranks[0]
    skipped = num_positive == 0
    if skipped.all():
        raise _NoPositive(_why_empty(query, gallery, protocol))
    scored = ~skipped
    hits = np.bincount(np.minimum(first_hit_rank[scored], max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    return RankingResult(
        mean_ap=float(ap[scored].mean()),
        cmc=np.cumsum(hits) / scored.sum(),
        ap=ap,
        first_hit_rank=first_hit_rank,
        skipped=skipped,
        num_query=num_query,
        num_query_skipped=int(skipped.sum()),
        num_gallery=len(gallery),
        tie_rate=float(num_tied.sum() / num_positive.sum()),
        chance_mean_ap=float(chance_average_precision(num_positive[scored], num_valid[scored]).mean()),
        chance_cmc=chance_hit_rate(num_positive[scored], num_valid[scored], max_rank).mean(0),
        protocol=protocol,
    )


def _positive_ranks(positive: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, int]:
    """Ranks, int64 [m] ascending from 1, of the positives among `other`, and how many positives tie with an other.

    Args:
        positive: float64 [m], distances of the query's positives, m >= 1.
        other: float64 [n - m], distances of the valid items of other persons.
    """
    positive = np.sort(positive)
    m = len(positive)
    ahead_or_tied = np.bincount(np.searchsorted(positive, other, "left"), minlength=m + 1)[:m].cumsum()
    ahead = np.bincount(np.searchsorted(positive, other, "right"), minlength=m + 1)[:m].cumsum()
    return ahead_or_tied + np.arange(1, m + 1), int((ahead_or_tied > ahead).sum())


def _summary(mean_ap: float, cmc: np.ndarray) -> dict[str, float]:
    at = {k: float(cmc[min(k, len(cmc)) - 1]) for k in (1, 5, 10)}
    return {"mAP": float(mean_ap), "rank1": at[1], "rank5": at[5], "rank10": at[10]}


def _blocks(num_query: int, block: int) -> Iterator[np.ndarray]:
    for start in range(0, num_query, block):
        yield np.arange(start, min(start + block, num_query))


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _check_sides(query: Embeddings, gallery: Embeddings) -> None:
    if not len(query) or not len(gallery):
        raise InputError(f"{len(query)} queries and {len(gallery)} gallery items: both need at least one; add images")
    if query.embedding.shape[1] != gallery.embedding.shape[1]:
        raise InputError(
            f"query embeddings have width {query.embedding.shape[1]}, gallery embeddings {gallery.embedding.shape[1]}; "
            "embed both with models of the same embedding size"
        )


def _why_empty(query: Embeddings, gallery: Embeddings, protocol: str) -> str:
    """One line: which rule left no query a positive, and the mend."""
    rule = PROTOCOLS[protocol]
    absent = int((~np.isin(query.person_id, gallery.person_id)).sum())
    if absent == len(query):
        return (
            f"none of the {len(query)} queries' persons appears in the gallery ({len(gallery)} items), whatever the "
            "protocol; query and gallery need the same person_id for the same person: mend the split"
        )
    apart = f", besides {absent} whose person is not in the gallery" if absent else ""
    return (
        f"protocol {protocol} ({rule.words}) leaves none of the {len(query)} queries a gallery item of its person"
        f"{apart}; {rule.mend}"
    )
