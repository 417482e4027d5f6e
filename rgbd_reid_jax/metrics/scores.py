"""Scores of ranked positives: average precision (two definitions), mINP, CMC, tie rate, and their values by chance.

For one query with positives at ranks r_1 < ... < r_m among n visible items:

    AP (step)      = (1/m) sum_k k / r_k
    AP (trapezoid) = (1/m) sum_k (k / r_k + (k - 1) / (r_k - 1)) / 2, where the second term is 1 at r_k = 1
    INP            = m / r_m

Step AP is that of torchreid, fast-reid and scikit-learn >= 0.19; trapezoid AP, never higher, that of Market-1501's code
(Zheng et al. 2015, doi:10.1109/ICCV.2015.133) and scikit-learn 0.15. INP: Ye et al. 2020, arXiv:2001.04193.
The step AP of ranks 1, 2, 4, 7 is 0.8304, the trapezoid AP 0.8110. A query without positives has NaN (first hit: 0).
"""

import numpy as np

from rgbd_reid_jax.metrics.ranks import Ranks

_BLOCK = 1 << 20  # numbers at once


def average_precision(ranks: Ranks) -> np.ndarray:
    """Step AP, float64 [Q] in 0..1; NaN without a positive."""
    return _mean_of_positives(ranks, ranks.order / ranks.rank)


def average_precision_trapezoid(ranks: Ranks) -> np.ndarray:
    """Trapezoid AP, float64 [Q] in 0..1; NaN without a positive."""
    order, rank = ranks.order, ranks.rank
    before = np.where(rank == 1, 1.0, (order - 1) / np.maximum(rank - 1, 1))
    return _mean_of_positives(ranks, (order / rank + before) / 2)


def inverse_negative_penalty(ranks: Ranks) -> np.ndarray:
    """INP, float64 [Q] in 0..1: the share of positives among the items down to the last positive; NaN without one."""
    found = ranks.num_positive > 0
    penalty = np.full(len(found), np.nan)
    penalty[found] = ranks.num_positive[found] / ranks.rank[ranks.start[1:][found] - 1]
    return penalty


def first_hit_rank(ranks: Ranks) -> np.ndarray:
    """Rank of the nearest positive, int64 [Q], from 1; 0 without a positive."""
    found = ranks.num_positive > 0
    first = np.zeros(len(found), np.int64)
    first[found] = ranks.rank[ranks.start[:-1][found]]
    return first


def cmc(first_hit: np.ndarray, max_rank: int) -> np.ndarray:
    """float64 [max_rank]: entry k - 1 is the share of queries whose first hit has rank <= k.

    Args:
        first_hit: int [Q], from 1; queries with 0 (no positive) do not count. At least one must count.
        max_rank: length of the curve.
    """
    scored = first_hit[first_hit > 0]
    hits = np.bincount(np.minimum(scored, max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    return np.cumsum(hits) / len(scored)


def tie_rate(ranks: Ranks) -> float:
    """Share of the positives, in 0..1, at exactly the distance of a visible item of another person; NaN without any."""
    return float(ranks.tied.mean()) if len(ranks.tied) else float("nan")


def chance_average_precision(num_positive: np.ndarray, num_valid: np.ndarray) -> np.ndarray:
    """E[step AP] of m positives in a random order of n items: (m - 1)/(n - 1) + (n - m)/(n (n - 1)) H_n; 1 for n = 1.

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


def chance_cmc(num_positive: np.ndarray, num_valid: np.ndarray, max_rank: int) -> np.ndarray:
    """Mean of `chance_hit_rate` over the queries, float64 [max_rank], in memory that few queries take."""
    step = max(1, _BLOCK // max_rank)
    total = np.zeros(max_rank)
    for start in range(0, len(num_positive), step):
        some = slice(start, start + step)
        total += chance_hit_rate(num_positive[some], num_valid[some], max_rank).sum(0)
    return total / len(num_positive)


def _mean_of_positives(ranks: Ranks, value: np.ndarray) -> np.ndarray:
    """float64 [Q]: mean of float64 [P] over each query's positives; NaN without one."""
    num_positive = ranks.num_positive
    total = np.bincount(ranks.query, weights=value, minlength=len(num_positive))
    return np.where(num_positive > 0, total / np.maximum(num_positive, 1), np.nan)
