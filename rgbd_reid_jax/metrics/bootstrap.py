"""Percentile bootstrap intervals of a mean over queries, resampled by identity.

Queries of one person are alike, so they are drawn together: a resample draws as many identities as there are, with
replacement, and takes the mean over all of their queries. Its quantiles bound the interval. Drawing queries singly
would call a score that rests on few people far too certain.

Efron, Bootstrap methods: another look at the jackknife, 1979, doi:10.1214/aos/1176344552; by clusters: Field and Welsh,
Bootstrapping clustered data, 2007, doi:10.1111/j.1467-9868.2007.00593.x.
"""

from collections.abc import Mapping

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
        values: float64 [Q], a score per query, NaN where the query was skipped; or [Q, S], the scores in S scenarios,
            whose means are averaged (a resample without a score in a scenario: those of the others).
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
    values = values[:, None] if values.ndim == 1 else values
    kept = ~np.isnan(values).all(1)
    if not kept.any():
        return float("nan"), float("nan")
    sums = [_sums(column, person[kept]) for column in values[kept].T]
    persons = len(sums[0][0])
    if persons == 1:
        mean = float(np.nanmean([total[0] / count[0] if count[0] else np.nan for total, count in sums]))
        return mean, mean
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, _BLOCK // persons)
    for start in range(0, resamples, block):
        drawn = rng.integers(0, persons, (min(block, resamples - start), persons))
        with np.errstate(invalid="ignore"):  # 0 / 0 in a scenario that a resample misses
            of_scenario = [total[drawn].sum(1) / count[drawn].sum(1) for total, count in sums]
        means[start : start + block] = np.nanmean(of_scenario, axis=0)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def intervals(values: Mapping[str, np.ndarray], person: np.ndarray, *, seed: int = 0) -> dict[str, list[float]]:
    """{name: [low, high]}: the `interval` of each score of the same queries."""
    return {name: list(interval(column, person, seed=seed)) for name, column in values.items()}


def _sums(values: np.ndarray, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [persons]: sum and number of each person's scores, in an order that no order of the queries changes."""
    scored = ~np.isnan(values)
    values = np.where(scored, values, 0.0)
    order = np.lexsort((values, person))
    first = np.flatnonzero(np.concatenate([[True], np.diff(person[order]) != 0]))
    return np.add.reduceat(values[order], first), np.add.reduceat(scored[order].astype(np.float64), first)
