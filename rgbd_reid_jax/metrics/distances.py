"""The distances of the ranking engine: exact ones of chosen pairs, and the factors of a fast estimate of all pairs.

Squared distance of query row q and gallery row g, whose sums run over the D channels:

    euclidean   |q - g|^2
    cosine      |q/|q| - g/|g||^2 = 2 (1 - cos); 2 where either row is zero, which has no direction: cos counts as 0
    gated       |q a(g) - g b(q)|^2, where a(g) and b(q) are the gates of the gallery and of the query row

`squared_pairs` is the definition: float64, a function of the two rows alone, so equal rows are at equal distances
wherever they stand. `Factors` writes half the squared distance of every pair as constants and one inner product,

    half = query.offset + (gallery.offset - query.factor . gallery.factor)

with float32 factors from which a common vector was subtracted: distances do not change, but rounding falls with the
norms. The gate's factors are [q^2; -2 q b(q); b(q)^2] and [a(g)^2; g a(g); g^2], so gating all pairs costs one matrix
product of three times the width. What rounding can do to the bracket when it is evaluated in float32 is bounded by
`error_bound`, for any order of summation, with or without fused multiply-add (Higham 2002, Accuracy and Stability of
Numerical Algorithms, section 3.1, doi:10.1137/1.9780898718027):

    |computed - exact| <= u ((1.01 K + 8) sum_i |query part i| |gallery part i| + 4 |gallery.offset| + 4 |query.offset|)

K is the length of a factor, u the unit roundoff; the parts are the whole factor, or its thirds when gated. The 8 and
the 4s cover the rounding of the factors and offsets to float32 and the last subtraction.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rgbd_reid_jax.core import cpus
from rgbd_reid_jax.core.errors import InputError

METRICS = ("euclidean", "cosine", "gated")
_CACHED = 65536  # values worked on at a time: few enough to stay in the processor's cache
_SAMPLE = 256  # rows from which the common vector and the scale are estimated; neither changes a result
_LARGEST = 1e15  # norm, after scaling, beyond which a product of factors could leave float32
_UNDECIDED = 1e300  # a bound that decides nothing


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One side of a comparison; row i of every array is the same image.

    Attributes:
        embedding: float32 [N, D], finite; may be a np.memmap, which is read in pieces.
        person: int64 [N].
        drop: int64 [N]; a gallery item is invisible to a query whose `drop` equals its own.
        gate: float32 [N, D], finite, only for the metric "gated": the weights a row puts on the other side's channels.
    """

    embedding: np.ndarray
    person: np.ndarray
    drop: np.ndarray
    gate: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Operand:
    """Rows of one side, ready for the matrix product.

    Attributes:
        factor: float32 [n, K].
        offset: float64 [n].
        norm: float64 [n, parts], norms of the factor's parts.
        slack: float64 [n], what float64 rounding adds to the error bound.
    """

    factor: np.ndarray
    offset: np.ndarray
    norm: np.ndarray
    slack: np.ndarray


def check_sides(query: Side, gallery: Side, metric: str) -> None:
    """Raises an InputError where the sides cannot be compared."""
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    for name, side in (("query", query), ("gallery", gallery)):
        shape = side.embedding.shape
        if len(shape) != 2 or not all(shape) or side.embedding.dtype != np.float32:
            kind = f"{side.embedding.dtype} {list(shape)}"
            raise InputError(f"{name} embeddings are {kind}, expected float32 [N, D] with at least one row")
        if side.person.shape != shape[:1] or side.drop.shape != shape[:1]:
            raise InputError(f"{name}: {shape[0]} embeddings, but {side.person.shape[0]} persons; give one to each")
        if metric == "gated" and (side.gate is None or side.gate.shape != shape or side.gate.dtype != np.float32):
            raise InputError(f"{name} lacks gates, float32 {list(shape)}; the metric gated needs them on both sides")
    if query.embedding.shape[1] != gallery.embedding.shape[1]:
        raise InputError(
            f"query embeddings have width {query.embedding.shape[1]}, gallery embeddings {gallery.embedding.shape[1]}; "
            "embed both with models of the same embedding size"
        )


def squared_pairs(
    query: Side, gallery: Side, query_rows: np.ndarray, gallery_rows: np.ndarray, metric: str
) -> np.ndarray:
    """The squared distances of n pairs, float64 [n], as the module defines them.

    Args:
        query: the queries.
        gallery: what they are compared with.
        query_rows: int64 [n], each pair's row of `query`.
        gallery_rows: int64 [n], each pair's row of `gallery`.
        metric: one of `METRICS`.
    """
    squared = np.empty(len(query_rows))

    def work(begin: int, end: int) -> None:
        read_query, read_gallery = _Reader(query), _Reader(gallery)
        for pairs in _slices(begin, end, read_query.count):
            q, g = read_query(query_rows[pairs]), read_gallery(gallery_rows[pairs])
            if metric == "gated":
                q *= read_gallery.gate(gallery_rows[pairs])
                g *= read_query.gate(query_rows[pairs])
            elif metric == "cosine":
                undirected = _normalise(q) | _normalise(g)
            q -= g
            squared[pairs] = np.vecdot(q, q)
            if metric == "cosine":
                squared[pairs][undirected] = 2.0

    _in_threads(work, len(query_rows))
    return squared


def squared_groups(
    query: Side, gallery: Side, groups: Sequence[tuple[np.ndarray, np.ndarray]], metric: str
) -> np.ndarray:
    """The squared distances of all pairs of each group, float64; equal to those of `squared_pairs`, and faster.

    Args:
        query: the queries.
        gallery: what they are compared with.
        groups: query rows, int64 [m], and gallery rows, int64 [n], of each group.
        metric: one of `METRICS`.

    Returns:
        The groups' [m, n] matrices, flattened, one after the other.
    """
    sizes = [len(query_rows) * len(gallery_rows) for query_rows, gallery_rows in groups]
    ends = np.cumsum(sizes)
    squared = np.empty(ends[-1] if sizes else 0)

    def work(begin: int, end: int) -> None:
        read_query, read_gallery = _Reader(query), _Reader(gallery)
        buffer = np.empty((read_gallery.count, query.embedding.shape[1]))
        for group in range(begin, end):
            query_rows, gallery_rows = groups[group]
            table = squared[ends[group] - sizes[group] : ends[group]].reshape(len(query_rows), -1)
            for columns in _slices(0, len(gallery_rows), read_gallery.count):
                g = read_gallery(gallery_rows[columns])
                gate = read_gallery.gate(gallery_rows[columns]) if metric == "gated" else g
                undirected = _normalise(g) if metric == "cosine" else False
                difference = buffer[: len(g)]
                for row in range(len(query_rows)):
                    q = read_query(query_rows[row : row + 1])
                    if metric == "gated":
                        np.multiply(q, gate, out=difference)
                        difference -= g * read_query.gate(query_rows[row : row + 1])
                    else:
                        without = _normalise(q) if metric == "cosine" else False
                        np.subtract(q, g, out=difference)
                    table[row, columns] = np.vecdot(difference, difference)
                    if metric == "cosine":
                        table[row, columns][undirected | without] = 2.0

    _in_threads(work, len(groups))
    return squared


def gated_query_factors(embedding: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """[q^2; -2 q b; b^2]: its inner product with a gallery row's factors is their squared gated distance.

    So an index of inner products, the smallest of which is wanted, serves the metric gated. In float32 the sum loses
    the digits that its terms share; `squared_pairs` does not.

    Args:
        embedding: float [n, D], q.
        gate: float [n, D], b.

    Returns:
        [n, 3 D], of the arguments' type.
    """
    return np.concatenate([embedding * embedding, -2.0 * embedding * gate, gate * gate], axis=1)


def gated_gallery_factors(embedding: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """[a^2; g a; g^2], the other side of `gated_query_factors`.

    Args:
        embedding: float [n, D], g.
        gate: float [n, D], a.

    Returns:
        [n, 3 D], of the arguments' type.
    """
    return np.concatenate([gate * gate, embedding * gate, embedding * embedding], axis=1)


class Factors:
    """The factors of one query set and one gallery (module docstring).

    Args:
        query: the queries.
        gallery: what they are compared with.
        metric: one of `METRICS`.

    Attributes:
        scale: embeddings are multiplied by it, a power of two; 1 unless their spread is near float32's limits.
        width: K, the length of a factor.
    """

    def __init__(self, query: Side, gallery: Side, metric: str):
        self._sides, self._metric, self.scale = {"query": query, "gallery": gallery}, metric, 1.0
        self._parts = 3 if metric == "gated" else 1
        self.width = self._parts * gallery.embedding.shape[1]
        for name, side in self._sides.items():
            _check_finite(name, _Reader(side), _strided(len(side.embedding)))
        if metric != "cosine":
            sample = _Reader(gallery)(_strided(len(gallery.embedding)))
            spread = np.abs(sample - sample.mean(0)).max() if metric == "euclidean" else np.abs(sample).max()
            if 0 < spread < np.inf and not 1e-6 < spread < 1e6:
                self.scale = 2.0 ** -round(math.log2(spread))
        self._common = {"gallery": self._mean("gallery")}
        self._common["query"] = self._mean("query") if metric == "gated" else self._common["gallery"]

    def query(self, rows: np.ndarray, padded: int) -> Operand:
        """The queries `rows`, int64 [n]; the factor is padded with zeros to [padded, K]."""
        return self._operand("query", rows, padded)

    def gallery(self, begin: int, end: int, padded: int) -> Operand:
        """The gallery's rows begin..end - 1; the factor is padded with zeros to [padded, K]."""
        return self._operand("gallery", range(begin, end), padded)

    def half(self, squared: np.ndarray) -> np.ndarray:
        """Half the squared distances of `squared_pairs`, in the factors' units."""
        return squared * (0.5 * self.scale**2)

    def _operand(self, name: str, rows: np.ndarray | range, padded: int) -> Operand:
        count = len(rows)
        factor = _aligned(padded, self.width)
        factor[count:] = 0
        offset, norm, slack = np.empty(count), np.empty((count, self._parts)), np.empty(count)

        def work(begin: int, end: int) -> None:
            reader = _Reader(self._sides[name])
            for piece in _slices(begin, end, reader.count):
                lifted, undirected = self._lift(name, reader, rows[piece])
                if self._metric == "gated":
                    offset[piece], slack[piece] = self._gated_offset(name, lifted)
                lifted -= self._common[name]
                parts = lifted.reshape(len(lifted), self._parts, -1)
                norm[piece] = np.sqrt(np.vecdot(parts, parts))
                if self._metric == "gated":
                    if name == "query":
                        lifted *= -0.5
                        norm[piece] *= 0.5
                else:
                    offset[piece], slack[piece] = 0.5 * norm[piece, 0] ** 2 + 0.5 * undirected, 0.0
                too_large = ~(norm[piece].max(1) <= _LARGEST)
                if too_large.any():  # left to float64 altogether
                    _check_finite(name, reader, np.asarray(rows[piece])[too_large])
                    for values, instead in (
                        (lifted, 0),
                        (offset[piece], 0),
                        (norm[piece], 0),
                        (slack[piece], _UNDECIDED),
                    ):
                        values[too_large] = instead
                factor[piece] = lifted

        _in_threads(work, count)
        return Operand(factor, offset, norm, slack)

    def _lift(self, name: str, reader: "_Reader", rows: np.ndarray | range) -> tuple[np.ndarray, np.ndarray]:
        """float64 [n, K], the factor before the common vector goes, and bool [n], the rows without a direction."""
        values, undirected = reader(rows), np.zeros(len(rows), bool)
        if self._metric == "cosine":
            undirected = _normalise(values)
        elif self.scale != 1.0:
            values *= self.scale
        if self._metric == "gated":
            gate = reader.gate(rows)
            values = gated_query_factors(values, gate) if name == "query" else gated_gallery_factors(values, gate)
        return values, undirected

    def _gated_offset(self, name: str, lifted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offset and slack, float64 [n], of the gated metric.

        With z, w the lifted rows and y, x the common vectors:  z.w / 2 = (z - y).(w - x) / 2 + z.x / 2 + y.(w - x) / 2.
        """
        if name == "gallery":
            lifted, other = lifted - self._common["gallery"], self._common["query"]
        else:
            other = self._common["gallery"]
        slack = self.width * 2.0**-51 * np.sqrt(np.vecdot(lifted, lifted) * np.vecdot(other, other))
        return 0.5 * (lifted @ other), slack

    def _mean(self, name: str) -> np.ndarray:
        """float64 [K], the mean of some lifted rows."""
        side = self._sides[name]
        return self._lift(name, _Reader(side), _strided(len(side.embedding)))[0].mean(0)


def error_bound(query: Operand, gallery: Operand, width: int, roundoff: float) -> np.ndarray:
    """How far the bracket of the module docstring, evaluated in float32, can be from its exact value, float64 [n].

    Args:
        query: n queries.
        gallery: the gallery rows they meet; the bound holds for each of them.
        width: K.
        roundoff: unit roundoff u of the machine that multiplies.
    """
    product = query.norm @ gallery.norm.max(0)
    offsets = np.abs(query.offset) + np.abs(gallery.offset).max()
    # What is too small for float32's normal range may be flushed to zero.
    flushed = width * 2e-38 * (1.0 + query.norm.max(1) + gallery.norm.max())
    return roundoff * ((1.01 * width + 8) * product + 4 * offsets) + query.slack + gallery.slack.max() + flushed


def _in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Calls work(begin, end) for pieces of range(count) on all processors (NumPy lets threads run side by side)."""
    threads = min(cpus.usable(), count // 64)
    if threads < 2:
        work(0, count)
        return
    bounds = np.linspace(0, count, 4 * threads + 1).astype(int)  # more pieces than threads: they end together
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, bounds[:-1].tolist(), bounds[1:].tolist()):
            pass


def _slices(begin: int, end: int, step: int) -> Iterator[slice]:
    for start in range(begin, end, step):
        yield slice(start, min(start + step, end))


class _Reader:
    """Chosen rows of a side as float64; up to `count` at a time reuse one piece of memory, which stays in the cache."""

    def __init__(self, side: Side):
        self._side, width = side, side.embedding.shape[1]
        self.count = min(max(_CACHED // width, 1), 1024)
        self._single = np.empty((self.count, width), np.float32)
        self._double = [np.empty((self.count, width)) for _ in range(1 if side.gate is None else 2)]

    def __call__(self, rows: np.ndarray | range) -> np.ndarray:
        """float64 [n, D], the embeddings of the rows, indices or a range of step 1; overwritten by the next call."""
        return self._read(self._side.embedding, rows, 0)

    def gate(self, rows: np.ndarray | range) -> np.ndarray:
        """float64 [n, D], their gates; overwritten by the next call."""
        assert self._side.gate is not None
        return self._read(self._side.gate, rows, 1)

    def _read(self, array: np.ndarray, rows: np.ndarray | range, which: int) -> np.ndarray:
        if len(rows) > self.count:
            return array[rows].astype(np.float64)
        if isinstance(rows, range):
            single = array[rows.start : rows.stop]
        else:
            single = self._single[: len(rows)]
            np.take(array, rows, axis=0, out=single, mode="clip")  # "clip" writes to `out` directly
        double = self._double[which][: len(rows)]
        np.copyto(double, single)
        return double


def _aligned(count: int, width: int) -> np.ndarray:
    """float32 [count, width] at a multiple of 64 bytes, which JAX uses on a CPU without a copy."""
    memory = np.empty(count * width + 16, np.float32)
    begin = -memory.ctypes.data % 64 // 4
    return memory[begin : begin + count * width].reshape(count, width)


def _normalise(values: np.ndarray) -> np.ndarray:
    """Divides float64 rows by their norms in place; zero rows stay and are told, bool [n]."""
    norm = np.sqrt(np.vecdot(values, values))
    undirected = norm == 0
    values /= np.where(undirected, 1.0, norm)[:, None]
    return undirected


def _strided(count: int) -> np.ndarray:
    """Up to `_SAMPLE` rows spread evenly over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64))


def _check_finite(name: str, reader: _Reader, rows: np.ndarray) -> None:
    """Raises an InputError if one of the rows, int64 [n], is not finite."""
    finite = np.isfinite(reader(rows)).all(1)
    if not finite.all():
        raise InputError(f"{name} embedding row {rows[~finite][0]} is not finite; the model has diverged")
