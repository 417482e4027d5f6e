"""Percentile bootstrap intervals of a mean over queries, resampled by identity.

Queries of one person are alike, so they are drawn together: a resample draws as many identities as there are, with
replacement, and takes the mean over all of their queries. Its quantiles bound the interval. Drawing queries singly
would call a score that rests on few people far too certain.

Efron, Bootstrap methods: another look at the jackknife, 1979, doi:10.1214/aos/1176344552; by clusters: Field and Welsh,
Bootstrapping clustered data, 2007, doi:10.1111/j.1467-9868.2007.00593.x.
"""

import numpy as np

from rgbd_reid_jax.core.errors import InputError

_BLOCK = 1 << 20  # identities drawn at once, over all resamples of a block: 8 MB each for them and for what they weigh


def interval(
    values: np.ndarray, person: np.ndarray, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Bounds of the mean of `values`; the order of the queries does not change them.

    Identities whose queries were all skipped are never drawn, for no mean counts them. A single identity has no
    spread to resample: both bounds are its mean.

    Args:
        values: float64 [Q], a score per query; NaN where the query was skipped.
        person: int64 [Q], the identity of each query.
        seed: of the draws.
        resamples: how many means the quantiles are taken of.
        level: share of the resamples within the bounds, in 0..1.

    Returns:
        The (1 - level) / 2 and (1 + level) / 2 quantiles, interpolated linearly; NaN, NaN without any value.

    Raises:
        InputError: no resamples, or a level outside 0..1.
    """
    if resamples < 1 or not 0.0 < level < 1.0:
        raise InputError(f"resamples={resamples} has to be at least 1 and level={level} between 0 and 1")
    values, person = np.asarray(values, np.float64), np.asarray(person)
    scored = ~np.isnan(values)
    if not scored.any():
        return float("nan"), float("nan")
    values, person = values[scored], person[scored]
    order = np.lexsort((values, person))  # sums in an order that the order of the queries does not change
    first = np.flatnonzero(np.concatenate([[True], np.diff(person[order]) != 0]))
    total = np.add.reduceat(values[order], first)
    count = np.diff(np.append(first, len(order)))
    if len(first) == 1:
        mean = float(total[0] / count[0])
        return mean, mean
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, _BLOCK // len(first))
    for start in range(0, resamples, block):
        drawn = rng.integers(0, len(first), (min(block, resamples - start), len(first)))
        means[start : start + block] = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
