"""Means over runs, with 95 % intervals of the mean, and differences between methods on the same runs.

The interval is that of Student's t: mean +- t(0.975, n - 1) s / sqrt(n), where s is the standard deviation of n runs
(with n - 1). It holds for runs that are independent and about normal; runs that share their people are neither wholly.
A difference is paired: the interval is that of the differences run by run, so what both methods owe to the people or
to the seed of a run cancels.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rgbd_reid_jax.sweeps.plan import Run, Sweep
from rgbd_reid_jax.sweeps.rows import Row

# t(0.975, degrees of freedom) from 1 on.
_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_Z_975 = 1.959964

Rows = Mapping[tuple[str, Run], Row]
"""Rows by method and run."""
Interval = dict[str, float | None]
"""{"mean", "low", "high"}; low and high are None where there is one run."""


def t_975(freedom: int) -> float:
    """The quantile 0.975 of Student's t with `freedom` >= 1 degrees of freedom, to four decimals."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = _Z_975  # Cornish and Fisher's expansion about the normal quantile
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: Sequence[float]) -> Interval:
    """The mean of one or more values, and its 95 % interval."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None}
    half = t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def of_method(rows: Rows, method: str) -> dict[Run, Row]:
    """The rows of one method by run."""
    return {run: row for (name, run), row in rows.items() if name == method}


def reference(sweep: Sweep, rows: Rows) -> str | None:
    """The best baseline: highest mean mAP across modalities on validation people, over runs that all baselines have.

    Args:
        sweep: names the baselines; those without a row are passed over.
        rows: of the sweep.

    Returns:
        Its name; None where no baseline has validation scores, or they have no run in common. Of equals the first.
    """
    scored = {name: _validation(of_method(rows, name), sweep.cross) for name in sweep.baselines}
    scored = {name: scores for name, scores in scored.items() if scores}
    common = set.intersection(*(set(scores) for scores in scored.values())) if scored else set()
    if not common:
        return None
    return max(scored, key=lambda name: statistics.fmean(scored[name][run] for run in common))


def _validation(rows: Mapping[Run, Row], directions: Sequence[str]) -> dict[Run, float]:
    """Mean mAP over the directions on validation people, of the rows that have all of them."""
    whole = {
        run: row["validation"] for run, row in rows.items() if all(name in row["validation"] for name in directions)
    }
    return {run: statistics.fmean(scores[name]["mAP"] for name in directions) for run, scores in whole.items()}


def differences(rows: Rows, method: str, base: str, directions: Iterable[str]) -> tuple[dict[str, Interval], int]:
    """How much higher a method's mAP is than another's on test people, run by run.

    Args:
        rows: of the sweep.
        method: name of the one.
        base: name of the other.
        directions: those to compare.

    Returns:
        ({direction: interval of the difference, "mean": that of the mean over the directions}, number of common runs);
        the dict is empty where there is no common run.
    """
    mine, theirs = of_method(rows, method), of_method(rows, base)
    common = [run for run in mine if run in theirs]
    if not common:
        return {}, 0
    gains: dict[str, Any] = {
        name: [mine[run]["results"][name]["mAP"] - theirs[run]["results"][name]["mAP"] for run in common]
        for name in directions
    }
    gains["mean"] = [statistics.fmean(values) for values in zip(*gains.values(), strict=True)]
    return {name: interval(values) for name, values in gains.items()}, len(common)
