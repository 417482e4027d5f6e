"""k-reciprocal re-ranking and average query expansion, in memory that grows with N k and not with N^2.

For item i of queries and gallery together, with d its squared distances divided by the largest of them:

    N(i, k)   i's k + 1 nearest items, itself included       R(i, k) = {j in N(i, k): i in N(j, k)}
    R*(i)     R(i, k1), with R(j, k1/2) of each j in R(i, k1) of which more than 2/3 lie in R(i, k1)
    V(i, j)   exp(-d(i, j)) / sum over R*(i) for j in R*(i), 0 elsewhere; then the mean of V over i's k2 nearest items
    d*(q, g)  (1 - lambda) (1 - s / (2 - s)) + lambda d(q, g)  with s = sum_j min(V(q, j), V(g, j))

Zhong, Zheng, Cao, Li, Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017, arXiv:1701.08398.
Query expansion: Chum et al., Total Recall, ICCV 2007, doi:10.1109/ICCV.2007.4408891.

Only the neighbour lists, the sparse V (tens of entries per item) and one block of distances are held. Neighbours at
equal distance stand in the order of the items, queries first; the protocols sort the items by content before. What the
rule hides from a query (`drop`) is no neighbour of it, and the query none of the hidden item's, so that a twin cannot
vote for its query.

Deviation: "more than 2/3", and k1/2 rounded half to even, are those of the authors' code and of all that copied it; the
paper writes "at least".
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.metrics.dense import dense_ranks
from rgbd_reid_jax.metrics.pairwise import Pairwise
from rgbd_reid_jax.metrics.ranks import Ranks, Side

_BLOCK = 1 << 21  # distances at once, 16 MB; sorting out neighbours takes a few times that
_METRICS = ("euclidean", "cosine")


def reranked_ranks(
    query: Side,
    gallery: Side,
    *,
    metric: str = "euclidean",
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    hide: bool = True,
    block: int = _BLOCK,
    stage: str = "",
) -> Ranks:
    """The ranks of all positives by re-ranked distances.

    Args:
        query: the queries.
        gallery: what they are compared with.
        metric: "euclidean" or "cosine".
        k1: neighbours of a k-reciprocal set.
        k2: items whose encodings are averaged; 1 for none.
        weight: lambda, of the original distance, in 0..1.
        hide: what `drop` hides from a query is no neighbour of it. False is the authors' way, who encode all items and
            drop afterwards: for comparison with numbers of a rule that hides nothing of use, such as market.
        block: distances held at once; changes no rank but by rounding.
        stage: names the work in progress lines; none are printed without.

    Raises:
        InputError: the metric is gated (queries have no distance to each other), a value is out of range, or what
            `Pairwise` refuses.
    """
    _check(metric, weight=weight, k1=k1, k2=k2, block=block)
    items = _All(query, gallery, metric, hide, block, stage)
    near, largest = items.neighbours(min(max(k1 + 1, k2), items.count))
    encoding = _mean_rows(_encode(items, near, largest, k1), near[:, :k2])
    blocks = _reranked(items, encoding, largest, weight)
    return dense_ranks(blocks, query.person, gallery.person)


def expand_queries(
    query: Side, gallery: Side, k: int = 5, *, metric: str = "euclidean", block: int = _BLOCK
) -> np.ndarray:
    """Queries that are the mean of themselves and of their k nearest visible gallery items (of all, if fewer).

    Args:
        query: the queries.
        gallery: what they are compared with; items of equal `drop` are invisible and never enter the mean.
        k: how many items; ties go to the first in gallery order.
        metric: "euclidean", or "cosine", for which every row is scaled to length 1 before the mean.
        block: distances held at once.

    Returns:
        float32 [Q, D].

    Raises:
        InputError: the metric is gated (a mean has no gate), k < 1, or what `Pairwise` refuses.
    """
    _check(metric, k=k, block=block)
    k = min(k, len(gallery.person))
    expanded = np.empty(query.embedding.shape, np.float32)
    for rows, distance in Pairwise(query, gallery, metric).row_blocks(block):
        distance[query.drop[rows, None] == gallery.drop[None]] = np.inf
        for row, columns in zip(rows, _nearest(distance, k), strict=True):
            one = np.concatenate([query.embedding[row : row + 1], gallery.embedding[columns[columns >= 0]]])
            one = one.astype(np.float64)
            if metric == "cosine":
                length = np.linalg.norm(one, axis=1, keepdims=True)
                np.divide(one, length, out=one, where=length > 0)
            expanded[row] = one.mean(0)
    return expanded


@dataclasses.dataclass(frozen=True, eq=False)
class _Sparse:
    """Rows of a matrix: row i has the values value[start[i]:start[i + 1]] in the ascending columns column[...]."""

    start: np.ndarray
    column: np.ndarray
    value: np.ndarray

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns and values."""
        return self.column[self.start[i] : self.start[i + 1]], self.value[self.start[i] : self.start[i + 1]]


class _All:
    """Queries and gallery as one list of N items, queries first, and their distances."""

    def __init__(self, query: Side, gallery: Side, metric: str, hide: bool, block: int, stage: str):
        self._between = Pairwise(query, gallery, metric)
        self.num_query, self.count = len(query.person), len(query.person) + len(gallery.person)
        self._drop = np.concatenate([query.drop, gallery.drop])
        both = Side(np.concatenate([query.embedding, gallery.embedding]), self._drop, self._drop)
        self._among = Pairwise(both, both, metric)
        self._squared = metric == "euclidean"
        self._hide, self._block, self._stage = hide, block, stage

    def hidden(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """bool of the shape that rows and columns have together: one is a query, the other is hidden from it."""
        between = (rows < self.num_query) != (columns < self.num_query)
        return between & (self._drop[rows] == self._drop[columns]) & self._hide

    def visible(self, rows: np.ndarray) -> np.ndarray:
        """bool [n, G]: what the rule leaves of the gallery to the queries `rows`."""
        return self._drop[rows, None] != self._drop[None, self.num_query :]

    def blocks(self, pairwise: Pairwise, count: int, words: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Items int64 [n] and their distances float64 [n, ...], squared if Euclidean."""
        progress, done = Progress(self._stage, count, unit=f"{words}: item", items="items"), 0
        for rows, distance in pairwise.row_blocks(self._block):
            yield rows, distance**2 if self._squared else distance
            done += len(rows)
            if self._stage:
                progress.update(done)

    def of_queries(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Queries int64 [n] and their distances float64 [n, G] to the gallery."""
        return self.blocks(self._between, self.num_query, "re-ranking")

    def neighbours(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """int32 [N, number], the nearest items with itself, -1 beyond; float64 [N], the largest distance (0 made 1)."""
        near, largest = np.full((self.count, number), -1, np.int32), np.zeros(self.count)
        for rows, distance in self.blocks(self._among, self.count, "neighbours"):
            distance[self.hidden(rows[:, None], np.arange(self.count)[None])] = -1.0
            largest[rows] = distance.max(1)
            distance[distance < 0] = np.inf
            near[rows] = _nearest(distance, number)
        return near, np.where(largest > 0, largest, 1.0)

    def distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float64 [n], those of single pairs."""
        distance = self._among.of(rows, columns)
        return distance**2 if self._squared else distance


def _nearest(distance: np.ndarray, number: int) -> np.ndarray:
    """int64 [n, number]: columns of the smallest finite values of each row, equal ones in column order; -1 beyond."""
    near = np.full((len(distance), number), -1, np.int64)
    last = min(number, distance.shape[1]) - 1
    bound = np.partition(distance, last, axis=1)[:, last]
    rows, columns = np.nonzero((distance <= bound[:, None]) & np.isfinite(distance))
    order = np.lexsort((columns, distance[rows, columns], rows))
    place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(distance)))[rows]
    kept = order[place < number]
    near[rows[kept], place[place < number]] = columns[kept]
    return near


def _encode(items: _All, near: np.ndarray, largest: np.ndarray, k1: int) -> _Sparse:
    """V before the mean."""
    full, half = near[:, : k1 + 1], near[:, : int(np.around(k1 / 2)) + 1]
    mutual = [_mutual(lists) for lists in (full, half)]
    width = full.shape[1] * (1 + half.shape[1])
    step = max(1, _BLOCK // (width * full.shape[1]))
    counts, columns, values = [], [], []
    for start in range(0, items.count, step):
        rows = np.arange(start, min(start + step, items.count))
        chosen = _expanded(rows, full, half, *mutual)
        chosen[items.hidden(rows[:, None], chosen) & (chosen >= 0)] = -1
        chosen.sort(axis=1)
        chosen[:, 1:][chosen[:, 1:] == chosen[:, :-1]] = -1
        at, place = np.nonzero(chosen >= 0)
        column = chosen[at, place]
        value = np.exp(-items.distances(rows[at], column) / largest[rows[at]])
        total = np.bincount(at, weights=value, minlength=len(rows))
        counts.append(np.bincount(at, minlength=len(rows)))
        columns.append(column)
        values.append(value / total[at])
    return _Sparse(_starts(np.concatenate(counts)), np.concatenate(columns), np.concatenate(values))


def _mutual(lists: np.ndarray) -> np.ndarray:
    """bool like `lists`, int [N, k]: the neighbour has the item among its own."""
    mutual = np.zeros(lists.shape, bool)
    step = max(1, _BLOCK // lists.shape[1] ** 2)
    for start in range(0, len(lists), step):
        some = lists[start : start + step]
        own = np.arange(start, start + len(some))[:, None, None]
        mutual[start : start + step] = (lists[some] == own).any(2) & (some >= 0)
    return mutual


def _expanded(
    rows: np.ndarray, full: np.ndarray, half: np.ndarray, full_mutual: np.ndarray, half_mutual: np.ndarray
) -> np.ndarray:
    """int64 [n, K]: the members of R*(i) of each row, some twice, -1 elsewhere."""
    own = np.where(full_mutual[rows], full[rows], -1)  # R(i, k1)
    theirs = np.where(half_mutual[own] & (own >= 0)[..., None], half[own], -1)  # [n, k1 + 1, k1/2 + 1]: R(j, k1/2)
    members = theirs >= 0
    shared = np.zeros_like(members)
    for place in range(own.shape[1]):
        shared |= members & (theirs == own[:, place, None, None])
    joins = 3 * shared.sum(2) > 2 * members.sum(2)
    theirs[~joins] = -1
    return np.concatenate([own, theirs.reshape(len(rows), -1)], axis=1).astype(np.int64)


def _mean_rows(sparse: _Sparse, near: np.ndarray) -> _Sparse:
    """Row i: the mean of the rows `near[i]` (those that are not -1)."""
    num = len(near)
    size = np.diff(sparse.start)
    step = max(1, _BLOCK // max(1, near.shape[1] * int(size.mean()) * 4))
    counts, columns, values = [], [], []
    for start in range(0, num, step):
        some = near[start : start + step]
        at, place = np.nonzero(some >= 0)
        taken = some[at, place]
        share = 1.0 / (some >= 0).sum(1)
        length = size[taken]
        entry = np.repeat(sparse.start[taken] - _starts(length)[:-1], length) + np.arange(length.sum())
        row = np.repeat(at, length)
        key = row * np.int64(num) + sparse.column[entry]
        order = np.argsort(key, kind="stable")
        first = np.flatnonzero(np.diff(key[order], prepend=-1))
        total = np.add.reduceat((sparse.value[entry] * share[row])[order], first)
        key = key[order][first]
        counts.append(np.bincount(key // num, minlength=len(some)))
        columns.append(key % num)
        values.append(total)
    return _Sparse(_starts(np.concatenate(counts)), np.concatenate(columns), np.concatenate(values))


def _reranked(
    items: _All, encoding: _Sparse, largest: np.ndarray, weight: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows, re-ranked distance, visible) of all queries for `dense_ranks`."""
    num_gallery = items.count - items.num_query
    by_column = _transposed(encoding, items.num_query, items.count)
    for rows, distance in items.of_queries():
        distance *= weight / largest[rows, None]
        for row, original in zip(rows, distance, strict=True):
            columns, values = encoding.row(row)
            length = np.diff(by_column.start)[columns]
            entry = np.repeat(by_column.start[columns] - _starts(length)[:-1], length) + np.arange(length.sum())
            least = np.minimum(np.repeat(values, length), by_column.value[entry])
            shared = np.bincount(by_column.column[entry], weights=least, minlength=num_gallery)
            original += (1.0 - weight) * (1.0 - shared / (2.0 - shared))
        yield rows, distance, items.visible(rows)


def _transposed(sparse: _Sparse, first: int, num: int) -> _Sparse:
    """Row j: the rows from `first` on, counted from there, whose column j is not zero, and its values."""
    entries = slice(sparse.start[first], None)
    row = np.repeat(np.arange(num - first), np.diff(sparse.start[first:]))
    order = np.argsort(sparse.column[entries], kind="stable")
    start = _starts(np.bincount(sparse.column[entries], minlength=num))
    return _Sparse(start, row[order], sparse.value[entries][order])


def _starts(counts: np.ndarray) -> np.ndarray:
    """int64 [n + 1]: where each of n runs of these lengths starts."""
    return np.concatenate([[0], np.cumsum(counts)])


def _check(metric: str, *, weight: float = 0.0, **least_one: int) -> None:
    if metric not in _METRICS:
        raise InputError(
            f"metric {metric!r} has no re-ranking and no query expansion (both compare or average items of one side); "
            f"choose {' or '.join(_METRICS)}"
        )
    for name, value in least_one.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if not 0.0 <= weight <= 1.0:
        raise InputError(f"weight={weight} must be within 0 and 1")
