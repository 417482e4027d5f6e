"""Exclusion rules, and the scores of one direction under a rule.

A rule says which gallery items a query never sees. Ranks come from `ranks`, whose tie rule counts a tie between persons
against the positive; scores from `scores`. A query without a positive is skipped and counted, and so is the reason: its
person is not in the gallery, or the rule dropped all of its positives.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import bootstrap, dense, scores
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.ranks import Ranks, Side, positive_ranks

_TWO_CAMERAS = "record each person with at least two cameras, or rank with twin_excluded or recording_excluded"
SHOWN_RANKS = (1, 5, 10)
LEAST_MAX_RANK = SHOWN_RANKS[-1]
"""A CMC curve holds all shown ranks."""
_TYPES = {0: "unknown", 1: "standing", 2: "walking"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which gallery items a query never sees.

    Attributes:
        words: what is dropped, to print beside results.
        mend: what to change when nothing is left.
        columns: an item is dropped that equals the query in all of these columns of `Embeddings`.
    """

    words: str
    mend: str
    columns: tuple[str, ...]


RULES: dict[str, Rule] = {
    "market": Rule(
        "gallery items of the query's person seen by the query's camera are dropped",
        _TWO_CAMERAS,
        ("person_id", "camera_id"),
    ),
    "cross_camera": Rule("gallery items of the query's camera are dropped", _TWO_CAMERAS, ("camera_id",)),
    "twin_excluded": Rule(
        "the gallery item of the query's own instant (same recording and frame) is dropped",
        "give each person at least two frames",
        ("recording_id", "frame_id"),
    ),
    "recording_excluded": Rule(
        "gallery items of the query's recording are dropped",
        "give each person at least two recordings, or rank with twin_excluded",
        ("recording_id",),
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class RankingResult:
    """Scores of one direction; means are over the queries that have a positive.

    Attributes:
        mean_ap: mean of the step AP, in 0..1.
        mean_ap_trapezoid: mean of the trapezoid AP.
        mean_inp: mean of the inverse negative penalty.
        cmc: float64 [max_rank]; cmc[k - 1] is the share of queries whose first positive has rank <= k.
        ap: float64 [num_query], NaN where skipped.
        first_hit_rank: int64 [num_query], from 1; 0 where skipped.
        skipped: bool [num_query], no positive is left after the rule's exclusion.
        num_query: all queries, the skipped ones included.
        num_query_skipped: how many of them are skipped.
        num_query_absent: skipped, because their person is not in the gallery at all; the rule skipped the others.
        num_gallery: gallery items before exclusion.
        tie_rate: share of the (query, positive) pairs at exactly the distance of a valid item of another person.
        chance_mean_ap: exact expectation of mean_ap under a random order of each query's valid gallery.
        chance_cmc: float64 [max_rank], the same for cmc.
        protocol: the exclusion rule's name.
        ranks: what all of it was computed from.
    """

    mean_ap: float
    mean_ap_trapezoid: float
    mean_inp: float
    cmc: np.ndarray
    ap: np.ndarray
    first_hit_rank: np.ndarray
    skipped: np.ndarray
    num_query: int
    num_query_skipped: int
    num_query_absent: int
    num_gallery: int
    tie_rate: float
    chance_mean_ap: float
    chance_cmc: np.ndarray
    protocol: str
    ranks: Ranks


def rank(
    query: Embeddings,
    gallery: Embeddings,
    protocol: str,
    *,
    metric: str = "euclidean",
    max_rank: int = 20,
    **engine: Any,
) -> RankingResult:
    """Ranks the gallery for every query.

    Args:
        query: the queries.
        gallery: what they are compared with; may be the same set.
        protocol: a key of `RULES`.
        metric: "euclidean", "cosine" or "gated".
        max_rank: length of the CMC curve, at least 10.
        engine: block sizes, mesh and stage of `ranks.positive_ranks`; none of them changes a score.

    Raises:
        InputError: an unknown rule, an empty side, different widths, a key is missing, or no query has a positive.
    """
    check(query, gallery, protocol)
    if max_rank < LEAST_MAX_RANK:
        raise InputError(f"max_rank={max_rank} must be at least {LEAST_MAX_RANK}")
    found = positive_ranks(*sides(query, gallery, protocol, metric), metric=metric, **engine)
    return score(found, query, gallery, protocol, max_rank=max_rank)


def natural_metric(query: Embeddings, gallery: Embeddings) -> str:
    """Between sets of two modalities with gates, which are one's say in the other, "gated", else "euclidean"."""
    gated = query.gate is not None and gallery.gate is not None and query.modality != gallery.modality
    return "gated" if gated else "euclidean"


def score(found: Ranks, query: Embeddings, gallery: Embeddings, protocol: str, *, max_rank: int = 20) -> RankingResult:
    """Scores of ranks in which the rule's items have no part.

    Raises:
        InputError: no query has a positive; the message says what removed them.
    """
    skipped = found.num_positive == 0
    absent = ~np.isin(query.person_id, gallery.person_id)
    if skipped.all():
        raise InputError(_why_empty(len(query), int(absent.sum()), len(gallery), protocol))
    ap, first = scores.average_precision(found), scores.first_hit_rank(found)
    scored = ~skipped
    num_positive, num_valid = found.num_positive[scored], found.num_valid[scored]
    return RankingResult(
        mean_ap=float(ap[scored].mean()),
        mean_ap_trapezoid=float(scores.average_precision_trapezoid(found)[scored].mean()),
        mean_inp=float(scores.inverse_negative_penalty(found)[scored].mean()),
        cmc=scores.cmc(first, max_rank),
        ap=ap,
        first_hit_rank=first,
        skipped=skipped,
        num_query=len(query),
        num_query_skipped=int(skipped.sum()),
        num_query_absent=int(absent.sum()),
        num_gallery=len(gallery),
        tie_rate=scores.tie_rate(found),
        chance_mean_ap=float(scores.chance_average_precision(num_positive, num_valid).mean()),
        chance_cmc=scores.chance_cmc(num_positive, num_valid, max_rank),
        protocol=protocol,
        ranks=found,
    )


def check(query: Embeddings, gallery: Embeddings, protocol: str) -> None:
    """Raises InputError unless the two sets can be compared under a rule."""
    if protocol not in RULES:
        raise InputError(f"unknown protocol {protocol!r}; choose one of {', '.join(RULES)}")
    check_sides(query, gallery)
    for items in (query, gallery):
        for key in RULES[protocol].columns:
            items.column(key, f"protocol {protocol}")


def check_sides(query: Embeddings, gallery: Embeddings) -> None:
    """Raises InputError for an empty side or different widths."""
    for items, name in ((query, "queries"), (gallery, "gallery items")):
        if not len(items):
            raise InputError(f"{items.source} holds 0 {name}; both sides need at least one: add images")
    if query.embedding.shape[1] != gallery.embedding.shape[1]:
        raise InputError(
            f"query embeddings have width {query.embedding.shape[1]}, gallery embeddings {gallery.embedding.shape[1]}; "
            "embed both with models of the same embedding size"
        )


def sides(query: Embeddings, gallery: Embeddings, protocol: str, metric: str) -> tuple[Side, Side]:
    """Both sides as the engine takes them: items that the rule drops share the query's `drop` code."""
    columns = RULES[protocol].columns
    labels = [np.stack([getattr(items, key) for key in columns], 1) for items in (query, gallery)]
    code = np.unique(np.concatenate(labels), axis=0, return_inverse=True)[1].reshape(-1)
    return dense.side(query, metric, code[: len(query)]), dense.side(gallery, metric, code[len(query) :])


def valid_items(query: Embeddings, gallery: Embeddings, protocol: str, rows: np.ndarray | None = None) -> np.ndarray:
    """bool [len(rows), num_gallery]: the gallery items that a rule leaves to the queries `rows` (default: all).

    Raises:
        InputError: an unknown rule, or a missing key.
    """
    check(query, gallery, protocol)
    rows = np.arange(len(query)) if rows is None else rows
    equal = [getattr(query, key)[rows, None] == getattr(gallery, key)[None] for key in RULES[protocol].columns]
    return ~np.logical_and.reduce(equal)


def nearest(
    query: Embeddings, gallery: Embeddings, query_index: np.ndarray, protocol: str, k: int, *, metric: str = "euclidean"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest valid gallery items of some queries, for rank lists; ties are shown in gallery order.

    Args:
        query: the queries.
        gallery: what they are compared with.
        query_index: int [n], rows of `query`.
        protocol: a key of `RULES`.
        k: how many; where fewer are valid the index is -1 and the distance infinite.
        metric: as in `rank`.

    Returns:
        int64 [n, k] rows of `gallery` and float64 [n, k] distances, nearest first.
    """
    query_index = np.asarray(query_index, np.int64)
    index, distance = np.full((len(query_index), k), -1, np.int64), np.full((len(query_index), k), np.inf)
    valid = valid_items(query, gallery, protocol, query_index)
    distances = np.where(valid, dense.matrix(query.take(query_index), gallery, metric), np.inf)
    for row, values in enumerate(distances):
        order = np.argsort(values, kind="stable")[:k]
        order = order[np.isfinite(values[order])]
        index[row, : len(order)], distance[row, : len(order)] = order, values[order]
    return index, distance


def groups(result: RankingResult, query: Embeddings, gallery: Embeddings) -> dict[str, dict[str, dict[str, float]]]:
    """Scores apart for kinds of positives; other persons stay in the gallery, and each positive counts in one group.

    Args:
        result: of `rank(query, gallery, ...)`.
        query: the queries.
        gallery: the gallery.

    Returns:
        {"clothes": {"same_clothes", "changed_clothes"}, "camera_pair": {"<query's>_to_<gallery's>"}, "recording_type":
        {"standing", "walking", "unknown"; of the query}}, each with {"mAP", "rank1", "rank5", "rank10", "num_query"} as
        fractions of 1; breakdowns whose key is missing and groups without a query are left out.
    """
    rows, items = result.ranks.query, result.ranks.positive
    kinds: dict[str, tuple[np.ndarray, Callable[[int], str]]] = {}  # int [P] and the name of each number
    if query.clothes_id is not None and gallery.clothes_id is not None:
        changed = query.clothes_id[rows] != gallery.clothes_id[items]
        kinds["clothes"] = changed.astype(np.int64), lambda code: ("same_clothes", "changed_clothes")[code]
    seen_by, place = np.unique(query.camera_id, return_inverse=True)
    cameras, other_place = np.unique(gallery.camera_id, return_inverse=True)
    kinds["camera_pair"] = (
        place[rows] * len(cameras) + other_place[items],
        lambda code: f"{seen_by[code // len(cameras)]}_to_{cameras[code % len(cameras)]}",
    )
    if query.recording_type is not None:
        kinds["recording_type"] = query.recording_type[rows], lambda code: _TYPES.get(code, f"type_{code}")
    return {
        kind: {name(int(code)): _group(result.ranks.keep(codes == code), len(result.cmc)) for code in np.unique(codes)}
        for kind, (codes, name) in kinds.items()
    }


def as_results(result: RankingResult) -> dict[str, float]:
    """{"mAP", "rank1", "rank5", "rank10"} as fractions of 1."""
    return summary(result.mean_ap, result.cmc)


def as_chance(result: RankingResult) -> dict[str, float]:
    """`as_results` of a random order of the same gallery."""
    return summary(result.chance_mean_ap, result.chance_cmc)


def intervals(result: RankingResult, person_id: np.ndarray, *, seed: int = 0) -> dict[str, list[float]]:
    """95 % bootstrap intervals over persons, [low, high] of "mAP", "mAP_trapezoid", "mINP", "rank1", "rank5", "rank10".

    Args:
        result: of `rank`.
        person_id: int64 [num_query], of the queries.
        seed: of the resampling.
    """
    hits = {f"rank{k}": np.where(result.skipped, np.nan, result.first_hit_rank <= k) for k in SHOWN_RANKS}
    return bootstrap.intervals(multi_shot(result.ranks) | hits, person_id, seed=seed)


def multi_shot(ranks: Ranks) -> dict[str, np.ndarray]:
    """What "mAP", "mAP_trapezoid" and "mINP" are means of: float64 [Q], NaN where a query has no positive."""
    return {
        "mAP": scores.average_precision(ranks),
        "mAP_trapezoid": scores.average_precision_trapezoid(ranks),
        "mINP": scores.inverse_negative_penalty(ranks),
    }


def shown_hits(hits: np.ndarray) -> dict[str, np.ndarray]:
    """{"rank1", "rank5", "rank10"} of float [..., max_rank]."""
    return {f"rank{k}": hits[..., k - 1] for k in SHOWN_RANKS}


def summary(mean_ap: float, cmc: np.ndarray) -> dict[str, float]:
    """{"mAP", "rank1", "rank5", "rank10"} of a mean AP and a CMC curve [max_rank]."""
    return {"mAP": float(mean_ap)} | {name: float(value) for name, value in shown_hits(np.asarray(cmc)).items()}


def _group(ranks: Ranks, max_rank: int) -> dict[str, float]:
    first = scores.first_hit_rank(ranks)
    found = summary(float(np.nanmean(scores.average_precision(ranks))), scores.cmc(first, max_rank))
    return {**found, "num_query": int((first > 0).sum())}


def _why_empty(num_query: int, absent: int, num_gallery: int, protocol: str) -> str:
    """One line: which rule left no query a positive, and the mend."""
    if absent == num_query:
        return (
            f"none of the {num_query} queries' persons appears in the gallery ({num_gallery} items), whatever the "
            "protocol; query and gallery need the same person_id for the same person: mend the split"
        )
    rule = RULES[protocol]
    apart = f", besides {absent} whose person is not in the gallery" if absent else ""
    return (
        f"protocol {protocol} ({rule.words}) leaves none of the {num_query} queries a gallery item of its "
        f"person{apart}; {rule.mend}"
    )
