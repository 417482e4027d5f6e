"""Same person or not: error rates of a distance threshold.

A pair is accepted when its distance is at most the threshold; FPR is the accepted share of the pairs of different
persons, TPR that of the pairs of the same person. `verify` takes the distances; `verify_pairs` the embeddings of two
sets and holds any number of pairs in bounded memory: order statistics are found by counting, not by sorting.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.metrics.distances import Side
from rgbd_reid_jax.metrics.pairwise import Pairwise

MAX_VALUES = 1 << 22  # distances held at once: 32 MB, a few times that while they are sorted
_EDGES = 1 << 16  # at most, and no more than the distances held
_ROC_POINTS = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 121)])  # FPR of the curve's points: 20 per decade


@dataclasses.dataclass(frozen=True)
class Verification:
    """A pair is called the same person when its distance is at most `threshold`.

    Attributes:
        threshold: the largest distance of a pair at which the false positive rate is at most the wanted one; minus
            infinity when already the nearest distance exceeds it.
        fpr: share of pairs of different persons at or below it, in 0..1.
        tpr: share of pairs of the same person at or below it, in 0..1.
        eer: equal error rate: the smallest value of max(FPR, 1 - TPR) over all thresholds, in 0..1.
    """

    threshold: float
    fpr: float
    tpr: float
    eer: float


def verify(same: np.ndarray, different: np.ndarray, *, fpr: float = 1e-2) -> Verification:
    """Threshold at a wanted false positive rate, with the rates there.

    Args:
        same: float [S], distances of pairs of the same person.
        different: float [D], distances of pairs of different persons.
        fpr: wanted false positive rate, in 0..1.

    Raises:
        InputError: a side is empty.
    """
    if not len(same) or not len(different):
        raise InputError(_too_few(len(same), len(different)))
    same, different = np.sort(np.asarray(same, np.float64)), np.sort(np.asarray(different, np.float64))
    # Thresholds between the values: accepting nothing, then each distinct distance.
    threshold = np.concatenate([[-np.inf], np.unique(np.concatenate([same, different]))])
    false_positive = np.searchsorted(different, threshold, "right") / len(different)
    true_positive = np.searchsorted(same, threshold, "right") / len(same)
    chosen = int(np.searchsorted(false_positive, fpr, "right")) - 1
    return Verification(
        threshold=float(threshold[chosen]),
        fpr=float(false_positive[chosen]),
        tpr=float(true_positive[chosen]),
        eer=float(np.maximum(false_positive, 1.0 - true_positive).min()),
    )


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """The threshold at a wanted false positive rate, and what it does.

    Attributes:
        wanted_fpr: in 0..1.
        threshold: the largest distance of a pair at which the false positive rate is at most the wanted one; None
            where `reason` says why there is none.
        fpr: share of the pairs of different persons at or below it.
        tpr: share of the pairs of the same person at or below it.
        reason: one line, empty where there is a threshold.
    """

    wanted_fpr: float
    threshold: float | None
    fpr: float | None
    tpr: float | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class OpenSet:
    """Same person or not, over all visible pairs; a pair is accepted when its distance is at most a threshold.

    Attributes:
        num_same: pairs of the same person.
        num_different: pairs of different persons.
        eer: equal error rate: the smallest value of max(FPR, 1 - TPR) over all thresholds, in 0..1.
        eer_threshold: the smallest distance of a pair with that value; None if only accepting nothing has it.
        points: thresholds at wanted false positive rates.
        mean_same: mean distance of the pairs of the same person.
        mean_different: mean distance of the pairs of different persons.
        median_same: median of the former (of an even number: the mean of the middle two).
        median_different: median of the latter.
        roc: (FPR, TPR) of some thresholds, ascending; each is exact, only their choice depends on the size.
    """

    num_same: int
    num_different: int
    eer: float
    eer_threshold: float | None
    points: tuple[OperatingPoint, ...]
    mean_same: float
    mean_different: float
    median_same: float
    median_different: float
    roc: tuple[tuple[float, float], ...]


def verify_pairs(
    query: Side,
    gallery: Side,
    *,
    metric: str = "euclidean",
    wanted_fpr: tuple[float, ...] = (1e-2, 1e-3, 1e-4),
    stage: str = "",
    max_values: int = MAX_VALUES,
) -> OpenSet:
    """Open-set verification of all pairs that the exclusion leaves, as exact as sorting all their distances.

    Up to `max_values` pairs are kept. Of more, one pass counts distances in bins; for each quantity a further pass
    looks only at the bin that holds it, in finer bins first if even that holds too many distances.

    Args:
        query: the queries.
        gallery: what they are compared with; pairs of equal `drop` do not count.
        metric: "euclidean", "cosine" or "gated".
        wanted_fpr: false positive rates, each above 0 and below 1, to give thresholds for. One below 1 / num_different
            has none.
        stage: names the work in progress lines; none are printed without.
        max_values: how many distances are held at once (ties count once).

    Raises:
        InputError: no visible pair of the same or of different persons, or what `Pairwise` refuses.
    """
    search = _Search(_Pairs(query, gallery, metric, stage), max_values)
    same, different = search.num_same, search.num_different
    if not same or not different:
        raise InputError(_too_few(same, different))
    wanted = [fpr for fpr in wanted_fpr if fpr * different >= 1]
    middle = [((n + 1) // 2, n // 2 + 1) for n in (same, different)]  # the same one twice of an odd number
    crossing, *found = search(
        [
            lambda s, d: d / different >= 1.0 - s / same,
            *(lambda s, d, fpr=fpr: d / different > fpr for fpr in wanted),
            *(lambda s, d, k=k: s >= k for k in middle[0]),
            *(lambda s, d, k=k: d >= k for k in middle[1]),
        ]
    )
    at_fpr, medians = dict(zip(wanted, found, strict=False)), found[len(wanted) :]
    # The error rates at the crossing and just before it: elsewhere the larger of the two is larger.
    eer, _, eer_threshold = min(
        (max(d / different, 1.0 - s / same), value == -np.inf, value)
        for (s, d), value in ((crossing.below, crossing.before), (crossing.within, crossing.value))
    )
    mean_same, mean_different = search.sums / (same, different)
    return OpenSet(
        num_same=same,
        num_different=different,
        eer=float(eer),
        eer_threshold=float(eer_threshold) if np.isfinite(eer_threshold) else None,
        points=tuple(_point(fpr, at_fpr.get(fpr), same, different) for fpr in wanted_fpr),
        mean_same=float(mean_same),
        mean_different=float(mean_different),
        median_same=float(np.mean([one.value for one in medians[:2]])),
        median_different=float(np.mean([one.value for one in medians[2:]])),
        roc=_thinned(search.curve()),
    )


@dataclasses.dataclass(frozen=True)
class _Boundary:
    """The first distance `value` at which a condition on the numbers of pairs at or below it holds.

    `before` is the distance before it (minus infinity without one); `within` and `below`, int64 [2], count the pairs of
    the same and of different persons at or below `value`, and below it.
    """

    value: float
    before: float
    within: np.ndarray
    below: np.ndarray


class _Pairs:
    """Passes over the distances of all visible pairs."""

    def __init__(self, query: Side, gallery: Side, metric: str, stage: str):
        self._query, self._gallery, self._stage = query, gallery, stage
        self._pairwise = Pairwise(query, gallery, metric)
        self.count = len(query.embedding) * len(gallery.embedding)
        self._pass = 0

    def sample(self) -> np.ndarray:
        """float64 [n], distances of evenly spaced pairs, hidden ones included."""
        rows, columns = (
            np.unique(np.linspace(0, len(side.person) - 1, 512).astype(np.int64))
            for side in (self._query, self._gallery)
        )
        return self._pairwise.of(np.repeat(rows, len(columns)), np.tile(columns, len(rows)))

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """float64 [a] distances of pairs of the same and [b] of different persons, tile by tile."""
        self._pass += 1
        progress = Progress(self._stage, self.count, unit=f"pass {self._pass}: pair", items="pairs")
        done = 0
        for rows, columns, distance in self._pairwise.tiles():
            visible = self._query.drop[rows, None] != self._gallery.drop[columns][None]
            equal = self._query.person[rows, None] == self._gallery.person[columns][None]
            yield distance[visible & equal], distance[visible & ~equal]
            done += distance.size
            if self._stage:
                progress.update(done)


class _Search:
    """Exact boundaries of conditions on the number of pairs at or below a distance.

    Distances are counted between edges; the intervals that hold a boundary get finer edges until their distances are
    few enough to be collected. Few pairs are collected at once.
    """

    def __init__(self, pairs: _Pairs, max_values: int):
        self._pairs, self._max_values, self._num_edges = pairs, max_values, min(_EDGES, max_values)
        self._edges = np.array([0.0, np.inf])
        self._values = _Counter(max_values)
        self._wanted = np.array([True])
        if pairs.count > max_values:
            sample = np.quantile(pairs.sample(), np.linspace(0.0, 1.0, self._num_edges), method="nearest")
            self._edges = np.unique(np.concatenate([self._edges, sample])) + 0.0  # no minus zero: its bits are negative
            self._count()
        else:
            self._collect()
            self._inside = self._values.counts.sum(1, keepdims=True)  # int64 [2, intervals]: same, different
        self.num_same, self.num_different = (int(number) for number in self._inside.sum(1))

    def __call__(self, conditions: list[Callable]) -> list[_Boundary]:
        """The boundary of each condition(same, different) -> bool [n], monotone in the ascending counts."""
        if self._pairs.count > self._max_values:
            self._want(conditions)
            while self._inside[:, self._wanted].sum() > self._max_values and self._refine():
                self._count()
                self._want(conditions)
            self._collect()
        # Counts at or below each collected distance: those in the intervals below its own, and in its own.
        values, counts = self._values.values, self._values.counts
        interval = np.searchsorted(self._edges, values, "right") - 1
        below = np.cumsum(self._inside, axis=1) - self._inside
        collected = np.cumsum(np.where(self._wanted, self._inside, 0), axis=1) - np.where(self._wanted, self._inside, 0)
        up_to = np.cumsum(counts, axis=1) + (below - collected)[:, interval]
        found = []
        for condition in conditions:
            at = int(np.argmax(condition(*up_to)))
            found.append(
                _Boundary(
                    value=values[at],
                    before=values[at - 1] if at else -np.inf,
                    within=up_to[:, at],
                    below=up_to[:, at] - counts[:, at],
                )
            )
        return found

    def curve(self) -> np.ndarray:
        """int64 [2, n]: pairs of the same and of different persons at or below ascending distances."""
        finest = self._values.counts if self._pairs.count <= self._max_values else self._inside
        return np.cumsum(finest, axis=1)

    def _count(self) -> None:
        """How many distances lie between the edges, and their sums."""
        num = len(self._edges) - 1
        self._inside, self.sums = np.zeros((2, num), np.int64), np.zeros(2)
        for tile in self._pairs():
            for side, values in enumerate(tile):
                interval = np.searchsorted(self._edges, values, "right") - 1
                self._inside[side] += np.bincount(interval, minlength=num)
                self.sums[side] += values.sum()

    def _want(self, conditions: list[Callable]) -> None:
        """Marks the intervals that hold a boundary, and the distance before it."""
        up_to = np.cumsum(self._inside, axis=1)
        filled = np.flatnonzero(self._inside.sum(0))
        self._wanted = np.zeros(self._inside.shape[1], bool)
        for condition in conditions:
            at = int(np.argmax(condition(*up_to[:, filled])))
            self._wanted[filled[max(at - 1, 0) : at + 1]] = True

    def _refine(self) -> bool:
        """Finer edges in the wanted intervals, even in the bits of the numbers; False if none can be finer."""
        bits = self._edges.view(np.int64)  # ascending like the numbers, for these are not negative
        finer = [
            np.arange(bits[i], bits[i + 1], max(1, (bits[i + 1] - bits[i]) // self._num_edges))
            for i in np.flatnonzero(self._wanted)
        ]
        edges = np.unique(np.concatenate([bits, *finer])).view(np.float64)
        grown = len(edges) > len(self._edges)
        self._edges = edges
        return grown

    def _collect(self) -> None:
        """All distances in the wanted intervals."""
        first = self._pairs.count <= self._max_values
        bounds = np.unique(np.concatenate([self._edges[:-1][self._wanted], self._edges[1:][self._wanted]]))
        inside = self._wanted[np.searchsorted(self._edges, bounds[:-1], "right") - 1]
        if first:
            self.sums = np.zeros(2)
        for tile in self._pairs():
            picked = []
            for side, values in enumerate(tile):
                at = np.searchsorted(bounds, values, "right") - 1
                within = (at >= 0) & (at < len(inside))
                within[within] = inside[at[within]]
                picked.append(values[within])
                if first:
                    self.sums[side] += values.sum()
            self._values.add(*picked)
        self._values.merge()


class _Counter:
    """Distinct distances in ascending order and how often each occurs, int64 [2, n]: same and different persons."""

    def __init__(self, max_values: int):
        self.values, self.counts = np.zeros(0), np.zeros((2, 0), np.int64)
        self._new: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._held, self._max_values = 0, max_values

    def add(self, same: np.ndarray, different: np.ndarray) -> None:
        for new, values in zip(self._new, (same, different), strict=True):
            new.append(values)
        self._held += len(same) + len(different)
        if self._held > self._max_values:
            self.merge()

    def merge(self) -> None:
        new = [np.concatenate([np.zeros(0), *values]) for values in self._new]
        merged, place = np.unique(np.concatenate([self.values, *new]), return_inverse=True)
        old, same, different = np.split(place, np.cumsum([len(self.values), len(new[0])]))
        counts = np.stack([np.bincount(at, minlength=len(merged)) for at in (same, different)])
        counts[:, old] += self.counts
        self.values, self.counts = merged, counts
        self._new, self._held = ([], []), 0


def _point(wanted: float, found: _Boundary | None, same: int, different: int) -> OperatingPoint:
    """The threshold before the boundary where the false positive rate exceeds the wanted one."""
    if found is None:
        return OperatingPoint(
            wanted,
            None,
            None,
            None,
            f"needs {int(np.ceil(1 / wanted))} pairs of different persons, there are {different}",
        )
    if not np.isfinite(found.before):
        return OperatingPoint(
            wanted,
            None,
            None,
            None,
            "the nearest pairs are already too many of different persons (ties at one distance)",
        )
    return OperatingPoint(wanted, float(found.before), float(found.below[1] / different), float(found.below[0] / same))


def _thinned(curve: np.ndarray) -> tuple[tuple[float, float], ...]:
    """(FPR, TPR) at the largest threshold whose FPR is at most each of `_ROC_POINTS`, without repetitions."""
    curve = np.concatenate([[[0], [0]], curve], axis=1)
    true_positive, false_positive = curve / curve[:, -1:]
    at = np.unique(np.searchsorted(false_positive, _ROC_POINTS, "right") - 1)
    return tuple((float(false_positive[i]), float(true_positive[i])) for i in at)


def _too_few(num_same: int, num_different: int) -> str:
    return (
        f"{num_same} pairs of the same and {num_different} of different persons: a threshold needs both; "
        "evaluate at least two persons with two valid images each"
    )
