"""Distances of two sets in tiles, in float64 and bounded memory, for what needs their values and not just ranks.

    euclidean  |q - g|
    cosine     1 - cos(q, g); 1 where either is zero
    gated      |q * a - g * b|, a and b the gates of the gallery item and of the query

A matrix product may round equal rows differently by their place. So each distinct row is multiplied once, and pairs of
equal rows have equal distances wherever they stand.

|q|^2 + |g|^2 - 2 q.g loses the digits that its terms share, nearly all where a model has almost collapsed. So pairs
that lose six digits are summed up channel by channel; to have few of them, a common vector is subtracted (euclidean).
"""

from collections.abc import Iterator

import numpy as np

from rgbd_reid_jax.metrics.distances import Side, check_sides, squared_pairs

_ROWS, _COLUMNS = 512, 4096  # distinct rows multiplied at once
_DIGEST_ROWS = 8192
_COMMON_ROWS = 255  # whose median is the common vector
_LOST = 1e-6  # of its terms, what the squared distance has to exceed: it keeps ten digits of float64's sixteen


class Pairwise:
    """Distances between the items of two sides.

    Args:
        query: the queries; their `person` and `drop` are not looked at.
        gallery: what they are compared with.
        metric: "euclidean", "cosine" or "gated".

    Raises:
        InputError: an empty side, different widths, an unknown metric, or gates are wanted and missing.
    """

    def __init__(self, query: Side, gallery: Side, metric: str = "euclidean"):
        check_sides(query, gallery, metric)
        self._metric, self._query, self._gallery = metric, query, gallery
        self._rows = _Distinct(query, metric)
        self._columns = self._rows if gallery is query else _Distinct(gallery, metric)
        self._common = np.median(self._columns.read(0, _COMMON_ROWS)[0], axis=0)

    def tiles(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Every pair once: rows int64 [a] of the query, int64 [b] of the gallery, float64 [a, b] distances >= 0."""
        for at, left in self._rows.pieces(_ROWS):
            for to, right in self._columns.pieces(_COLUMNS):
                distance = self._multiply(at, left, to, right)
                for rows, row in self._rows.items(at, len(left[0]), _ROWS):
                    taken = distance if row is None else distance[row]
                    for columns, column in self._columns.items(to, len(right[0]), _COLUMNS):
                        yield rows, columns, taken if column is None else taken[:, column]

    def row_blocks(self, entries: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every query once: rows int64 [a] of the query, float64 [a, G] distances >= 0 to all of the gallery.

        Args:
            entries: upper bound of a x G, exceeded only by a single row.
        """
        num_rows = int(np.clip(entries // len(self._gallery.embedding), 1, _ROWS))
        for at, left in self._rows.pieces(num_rows):
            distance = np.empty((len(left[0]), self._columns.count))
            for to, right in self._columns.pieces(_COLUMNS):
                distance[:, to : to + len(right[0])] = self._multiply(at, left, to, right)
            for rows, row in self._rows.items(at, len(left[0]), num_rows):
                taken = distance if row is None else distance[row]
                yield rows, taken[:, self._columns.place]

    def of(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """float64 [n], the distances of single pairs, summed up channel by channel: no products cancel.

        Args:
            query_rows: int [n].
            gallery_rows: int [n].
        """
        squared = squared_pairs(self._query, self._gallery, query_rows, gallery_rows, self._metric)
        return squared / 2.0 if self._metric == "cosine" else np.sqrt(squared)

    def _multiply(self, at: int, left: tuple[np.ndarray, ...], to: int, right: tuple[np.ndarray, ...]) -> np.ndarray:
        """float64 [a, b] >= 0 of prepared distinct rows from `at` of the query and from `to` of the gallery."""
        if self._metric == "cosine":
            squared = 2.0 - 2.0 * (left[0] @ right[0].T)
            lost = squared < 2.0 * _LOST
        elif self._metric == "gated":
            (q, b), (g, a) = left, right
            terms = q**2 @ (a**2).T + b**2 @ (g**2).T
            squared = terms - 2.0 * ((q * b) @ (g * a).T)
            lost = squared < _LOST * terms
        else:
            q, g = left[0] - self._common, right[0] - self._common
            terms = np.vecdot(q, q)[:, None] + np.vecdot(g, g)[None]
            squared = q @ g.T
            squared *= -2.0
            squared += terms
            terms *= _LOST
            lost = squared < terms
            del terms
        row, column = np.nonzero(lost)
        squared[row, column] = squared_pairs(
            self._query, self._gallery, self._rows.first(at + row), self._columns.first(to + column), self._metric
        )
        return 0.5 * squared if self._metric == "cosine" else np.sqrt(squared, out=squared)


class _Distinct:
    """The distinct rows of one side, in an order that depends on the rows alone, and the items that have them."""

    def __init__(self, side: Side, metric: str):
        self._side, self._metric = side, metric
        matrices = [side.embedding] if metric != "gated" or side.gate is None else [side.embedding, side.gate]
        _, self.place = np.unique(_digests(matrices), return_inverse=True)  # [N], the distinct row an item has
        self._order = np.argsort(self.place, kind="stable")
        self.count = int(self.place.max()) + 1
        self._start = np.searchsorted(self.place[self._order], np.arange(self.count + 1))

    def pieces(self, size: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """(first distinct row, prepared float64 matrices) of up to `size` distinct rows."""
        for at in range(0, self.count, size):
            yield at, self.read(at, size)

    def read(self, at: int, size: int) -> tuple[np.ndarray, ...]:
        """Prepared float64 matrices of up to `size` distinct rows from `at`."""
        return _read(self._side, self.first(np.arange(at, min(at + size, self.count))), self._metric)

    def first(self, distinct: np.ndarray) -> np.ndarray:
        """int64 [n], an item that has each distinct row."""
        return self._order[self._start[distinct]]

    def items(self, at: int, num: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Up to `size` items at once of the distinct rows at:at + num, and their rows from `at` (None: as they are)."""
        items = self._order[self._start[at] : self._start[at + num]]
        for to in range(0, len(items), size):
            some = items[to : to + size]
            yield some, None if len(items) == num else self.place[some] - at


def _read(side: Side, rows: np.ndarray, metric: str) -> tuple[np.ndarray, ...]:
    """The embedding (of length 1 for cosine; zero rows stay zero) and, for gated, the gate of some rows, float64."""
    embedding = side.embedding[rows].astype(np.float64)
    if metric == "cosine":
        length = np.linalg.norm(embedding, axis=1, keepdims=True)
        np.divide(embedding, length, out=embedding, where=length > 0)
    if metric == "gated" and side.gate is not None:
        return embedding, side.gate[rows].astype(np.float64)
    return (embedding,)


def _digests(matrices: list[np.ndarray]) -> np.ndarray:
    """One 128-bit number per row, complex128-sized void [N]: equal for equal rows, else different but for 2^-80 or so.

    Sums of bits times random odd factors modulo 2^64 (Dietzfelbinger et al., doi:10.1006/jagm.1997.0873), twice.
    """
    rng = np.random.default_rng(0)
    digest = np.zeros((len(matrices[0]), 2), np.uint64)
    for matrix in matrices:
        factors = rng.integers(0, 1 << 63, (matrix.shape[1], 2), np.uint64) * np.uint64(2) + np.uint64(1)
        for at in range(0, len(matrix), _DIGEST_ROWS):
            # + 0.0: minus zero becomes zero, so rows that compare equal have equal bits
            bits = (np.asarray(matrix[at : at + _DIGEST_ROWS], np.float32) + np.float32(0.0)).view(np.uint32)
            bits = (bits ^ (bits >> np.uint32(15))).astype(np.uint64)
            digest[at : at + _DIGEST_ROWS] += np.stack([(bits * factors[:, i]).sum(1) for i in range(2)], 1)
    return digest.view(np.dtype((np.void, 16)))[:, 0]
