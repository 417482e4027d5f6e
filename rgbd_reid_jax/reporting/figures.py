"""Plots of the report as PNG, each on light and on dark ground; no pyplot and no global state of matplotlib."""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.verification import Verification

_SIZE_INCHES = (5.4, 3.7)
_DOTS_PER_INCH = 150

Plot = tuple[bytes, bytes]
"""PNG files of one figure, on light and on dark ground."""


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of one ground; `lines` are told apart with the common colour blindnesses too."""

    ground: str
    text: str
    grid: str
    lines: tuple[str, ...]
    saturation: tuple[float, float]
    value: tuple[float, float]


LIGHT = Theme(
    "#ffffff", "#1d2129", "#d9dde3", ("#0072b2", "#c74600", "#00795a", "#a0508a", "#8a6d00"), (1.0, 0.7), (0.62, 0.85)
)
DARK = Theme(
    "#14171c", "#e6e9ee", "#343b46", ("#62b6f0", "#ff9955", "#43cfa0", "#e39bcb", "#e8c84a"), (0.75, 0.42), (0.85, 1.0)
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line: x and y float [K], its label, and whether it is drawn faintly (as a reference)."""

    label: str
    x: np.ndarray
    y: np.ndarray
    style: str = "-"
    reference: bool = False


def lines(
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
    from_zero: bool = False,
    ticks: Sequence[int] | None = None,
) -> Plot:
    """Lines over a common x: CMC curves, training curves.

    Args:
        curves: what to draw; those with `reference` are grey.
        percent: y is a fraction of 1, drawn in percent from 0 to 100.
        from_zero: y starts at 0.
        ticks: places on x; default: whole numbers.

    Returns:
        PNG files on light and on dark ground.
    """

    def draw(axes: Axes, theme: Theme) -> None:
        colours = iter(theme.lines * (1 + len(curves) // len(theme.lines)))
        for curve in curves:
            axes.plot(
                curve.x,
                100 * curve.y if percent else curve.y,
                curve.style,
                color=theme.text if curve.reference else next(colours),
                alpha=0.6 if curve.reference else 1.0,
                linewidth=1.2 if curve.reference else 1.8,
                marker="o" if len(curve.x) == 1 else None,
                label=_plain(curve.label),
            )
        if percent:
            axes.set_ylim(0, 102)
        if from_zero:
            axes.set_ylim(bottom=0)
        if ticks is None:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.set_xticks(ticks)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        _legend(axes, theme)

    return _both(draw)


def histogram(same: np.ndarray, different: np.ndarray, verification: Verification) -> Plot:
    """Distances of pairs of the same and of different persons, each summing to 100 %, with the threshold.

    Args:
        same: float [S], Euclidean distances.
        different: float [D].
        verification: whose threshold is drawn where it is finite.
    """
    low, high = min(same.min(), different.min()), max(same.max(), different.max())
    edges = np.linspace(low, high if high > low else low + 1.0, 61)

    def draw(axes: Axes, theme: Theme) -> None:
        for values, label, colour, hatch in (
            (different, "different persons", theme.lines[1], "///"),
            (same, "same person", theme.lines[0], None),
        ):
            share = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(
                share, edges, fill=True, alpha=0.35, facecolor=colour, edgecolor=colour, hatch=hatch, label=label
            )
            axes.stairs(share, edges, color=colour, linewidth=1.6)
        if np.isfinite(verification.threshold):
            axes.axvline(
                verification.threshold,
                color=theme.text,
                linestyle="--",
                label=f"threshold {verification.threshold:.3g}",
            )
        axes.set_xlabel("distance between an RGB and a depth embedding")
        axes.set_ylabel("share of pairs [%]")
        _legend(axes, theme)

    return _both(draw)


def embedding_map(rgb: Embeddings, depth: Embeddings) -> Plot:
    """The first two principal components of some persons' embeddings of both modalities."""
    points = np.concatenate([rgb.embedding, depth.embedding]).astype(np.float64)
    points = points - points.mean(0)
    left, singular, _ = np.linalg.svd(points, full_matrices=False)
    components = np.zeros((len(points), 2))
    components[:, : min(2, len(singular))] = (left * singular)[:, :2]
    variance = np.zeros(2)
    variance[: min(2, len(singular))] = (singular**2 / max(float((singular**2).sum()), 1e-300))[:2]
    persons = np.unique(np.concatenate([rgb.person_id, depth.person_id]))

    def draw(axes: Axes, theme: Theme) -> None:
        for place, person in enumerate(persons):
            colour = _person_colour(place, len(persons), theme)
            circles = components[: len(rgb)][rgb.person_id == person]
            triangles = components[len(rgb) :][depth.person_id == person]
            axes.scatter(*circles.T, s=20, marker="o", color=colour, alpha=0.75, linewidths=0, label=f"{person}")
            axes.scatter(*triangles.T, s=20, marker="^", facecolors="none", edgecolors=[colour], linewidths=1.0)
        axes.set_xlabel(f"component 1 ({100 * variance[0]:.0f} % of variance)")
        axes.set_ylabel(f"component 2 ({100 * variance[1]:.0f} %)")
        modalities = [
            Line2D([], [], linestyle="", marker="o", color=theme.text, label="RGB"),
            Line2D([], [], linestyle="", marker="^", markerfacecolor="none", color=theme.text, label="depth"),
        ]
        figure = axes.figure
        entries = [*modalities, *axes.get_legend_handles_labels()[0]]
        names = ["RGB", "depth", *(f"person {person}" for person in persons)]
        figure.legend(entries, names, loc="outside right center", fontsize=8, frameon=False, labelcolor=theme.text)

    return _both(draw)


def _both(draw: Callable[[Axes, Theme], None]) -> Plot:
    """The figure on light and on dark ground."""
    return _png(draw, LIGHT), _png(draw, DARK)


def _png(draw: Callable[[Axes, Theme], None], theme: Theme) -> bytes:
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained", facecolor=theme.ground)
    axes = figure.add_subplot(facecolor=theme.ground)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    draw(axes, theme)
    axes.tick_params(colors=theme.text, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.text)
    for side, spine in axes.spines.items():
        spine.set_color(theme.grid)
        spine.set_visible(side in ("left", "bottom"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _legend(axes: Axes, theme: Theme) -> None:
    axes.legend(fontsize=8.5, facecolor=theme.ground, edgecolor=theme.grid, labelcolor=theme.text, framealpha=0.85)


def _person_colour(place: int, count: int, theme: Theme) -> tuple[float, float, float]:
    """Hues around the wheel; neighbours differ in saturation and value as well."""
    red, green, blue = hsv_to_rgb([place / max(count, 1), theme.saturation[place % 2], theme.value[place % 2]]).tolist()
    return red, green, blue


def _plain(label: str) -> str:
    """Text without mathematics; a leading underscore would hide it from the legend."""
    return label.replace("$", r"\$").lstrip("_") or "-"


def depth_colours() -> np.ndarray:
    """uint8 [256, 3], RGB colours of the nearest to the farthest distance of a depth thumbnail."""
    return (255 * matplotlib.colormaps["viridis"](np.linspace(1, 0, 256))[:, :3]).round().astype(np.uint8)


def series(records: Sequence[Mapping], key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of one logged key, per stage in order of appearance; absent or not finite values are left out.

    Args:
        records: lines of metrics.jsonl.
        key: such as "loss" or "eval/rgb_to_depth/mAP".

    Returns:
        {stage: (step float [K], value float [K])} of the stages that logged it.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        value, step = record.get(key), record.get("step")
        if isinstance(value, (int, float)) and isinstance(step, (int, float)) and np.isfinite(value):
            found.setdefault(str(record.get("stage", "training")), []).append((float(step), float(value)))
    return {stage: tuple(np.array(sorted(pairs)).T) for stage, pairs in found.items()}  # type: ignore[misc]
