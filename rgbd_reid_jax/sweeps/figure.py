"""A sweep as a picture: each run's mAP, the mean of each method and its interval; no pyplot, no global state."""

import io
import statistics

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgbd_reid_jax.reporting.figures import LIGHT
from rgbd_reid_jax.reporting.table import DIRECTION_WORDS
from rgbd_reid_jax.sweeps.plan import Sweep
from rgbd_reid_jax.sweeps.statistics import Rows, interval, of_method

_DOTS_PER_INCH = 150
_WIDTH_INCHES, _HEAD_INCHES, _METHOD_INCHES = 9.0, 1.3, 0.36
_SPREAD = 0.32  # of the points of one method, in rows


def draw(sweep: Sweep, rows: Rows) -> bytes:
    """A panel for each direction across modalities, methods as rows, the best mean on top.

    Args:
        sweep: with one such direction at least.
        rows: those of the sweep, one at least.

    Returns:
        A PNG file.
    """
    names = [method.name for method in sweep.methods if of_method(rows, method.name)]
    names.sort(key=lambda name: _mean(sweep, rows, name))
    size = (_WIDTH_INCHES, _HEAD_INCHES + _METHOD_INCHES * len(names))
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained", facecolor=LIGHT.ground)
    panels = figure.subplots(1, len(sweep.cross), sharey=True, squeeze=False)[0]
    for axes, direction in zip(panels, sweep.cross, strict=True):
        _panel(axes, direction, names, rows, sweep)
    panels[0].set_yticks(range(len(names)), names, color=LIGHT.text)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, labelcolor=LIGHT.text)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _mean(sweep: Sweep, rows: Rows, name: str) -> float:
    scores = [row["results"] for row in of_method(rows, name).values()]
    return statistics.fmean(one[direction]["mAP"] for one in scores for direction in sweep.cross)


def _panel(axes: Axes, direction: str, names: list[str], rows: Rows, sweep: Sweep) -> None:
    points, means = LIGHT.lines[0], LIGHT.lines[1]
    chance = statistics.fmean(row["chance"][direction]["mAP"] for row in rows.values())
    axes.axvline(100 * chance, color=LIGHT.text, linestyle="--", linewidth=1.2, alpha=0.7, label="chance")
    for place, name in enumerate(names):
        mine = of_method(rows, name)
        order = sorted(mine, key=sweep.runs.index)
        values = [mine[run]["results"][direction]["mAP"] for run in order]
        offsets = np.linspace(_SPREAD, -_SPREAD, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(
            [100 * value for value in values],
            place + offsets,
            s=16,
            color=points,
            alpha=0.6,
            linewidths=0,
            label="one run" if not place else None,
        )
        found = interval(values)
        bounds = [found[side] if found[side] is not None else found["mean"] for side in ("low", "mean", "high")]
        low, mean, high = (100 * float(bound or 0.0) for bound in bounds)
        axes.errorbar(
            mean,
            place,
            xerr=[[mean - low], [high - mean]],
            fmt="D",
            markersize=5,
            capsize=4,
            linewidth=1.6,
            color=means,
            label="mean, 95 % interval" if not place else None,
        )
    axes.set_title(DIRECTION_WORDS[direction], color=LIGHT.text, fontsize=11)
    axes.set_xlabel(f"mAP, {sweep.split} people [%]", color=LIGHT.text)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color=LIGHT.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT.text, which="both", length=0)
    for side, spine in axes.spines.items():
        spine.set_color(LIGHT.grid)
        spine.set_visible(side in ("left", "bottom"))
