"""The ranking engine: the exact rank of every positive of every query, without sorting a gallery.

    rank of the k-th nearest positive = k + #{visible items of other persons at the same distance or closer}

Tie rule: a tie between persons counts against the positive, and tied positives take consecutive ranks. So no order of
the gallery changes a rank, and a collapsed model scores the worst its ranking allows instead of a lucky order.

Distances are those of `distances.squared_pairs`, in float64. Most of the work is done in float32 all the same: one
matrix product estimates the distances of a tile of queries and gallery items, and for each positive two counts tell the
items that are certainly closer from those that may be, by the bound on the estimate's error. Only what lies between
is decided in float64. Block sizes, padding, devices and the gallery's order change which pairs are decided that way,
and never a count. Memory: a few arrays of query_block x gallery_block, and a few numbers per positive; embeddings are
read in pieces.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator

import jax
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.metrics import counting
from rgbd_reid_jax.metrics.distances import (
    METRICS,
    Factors,
    Operand,
    Side,
    check_sides,
    error_bound,
    squared_groups,
    squared_pairs,
)

__all__ = ["METRICS", "Ranks", "Side", "positive_ranks"]
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FEW = 1e-3  # share of a tile's pairs, per threshold, up to which it is cheaper to look at each than to count all
_MANY = 4096  # pairs to decide from which it pays to look for equal gallery rows


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks of all P positives of Q queries; query i has the entries start[i]:start[i + 1], nearest first.

    Attributes:
        start: int64 [Q + 1].
        positive: int64 [P], row of the gallery; positives at equal distance stand in gallery order.
        others_ahead: int64 [P], visible items of other persons at the same distance or closer.
        tied: bool [P], such an item is at exactly the same distance.
        distance: float64 [P].
        num_valid: int64 [Q], visible gallery items of any person.
        num_gallery: all gallery items.
    """

    start: np.ndarray
    positive: np.ndarray
    others_ahead: np.ndarray
    tied: np.ndarray
    distance: np.ndarray
    num_valid: np.ndarray
    num_gallery: int

    @property
    def num_positive(self) -> np.ndarray:
        """int64 [Q], positives of each query."""
        return np.diff(self.start)

    @property
    def query(self) -> np.ndarray:
        """int64 [P], the query each entry belongs to."""
        return np.repeat(np.arange(len(self.start) - 1), self.num_positive)

    @property
    def order(self) -> np.ndarray:
        """int64 [P], 1 for a query's nearest positive, 2 for the next, ..."""
        return np.arange(len(self.positive)) - self.start[self.query] + 1

    @property
    def rank(self) -> np.ndarray:
        """int64 [P], from 1."""
        return self.order + self.others_ahead

    def keep(self, wanted: np.ndarray) -> "Ranks":
        """The ranks when the gallery lacks some positives of each query; other persons stay.

        Args:
            wanted: bool [P], False where the query's positive is dropped.
        """
        wanted = np.asarray(wanted, bool)
        kept = np.bincount(self.query[wanted], minlength=len(self.start) - 1)
        return dataclasses.replace(
            self,
            start=np.concatenate([[0], np.cumsum(kept)]),
            positive=self.positive[wanted],
            others_ahead=self.others_ahead[wanted],
            tied=self.tied[wanted],
            distance=self.distance[wanted],
            num_valid=self.num_valid - (self.num_positive - kept),
        )


def positive_ranks(
    query: Side,
    gallery: Side,
    *,
    metric: str = "euclidean",
    query_block: int | None = None,
    gallery_block: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    stage: str = "",
) -> Ranks:
    """Ranks the positives (visible gallery items of the query's person) of every query.

    Args:
        query: the queries.
        gallery: what they are compared with; may be the same set.
        metric: "euclidean", "cosine" or "gated" (see `distances`).
        query_block: queries per matrix product; by default what suits the devices.
        gallery_block: gallery items per matrix product, over all devices together; likewise.
        mesh: devices that share each gallery block; one device when None. All of this process.
        stage: name under which progress is printed; silent when empty.

    Raises:
        InputError: an unknown metric, an empty side, widths that differ, no gates, or a value that is not finite.
    """
    check_sides(query, gallery, metric)
    if min(query_block or 1, gallery_block or 1) < 1:
        raise InputError(f"query_block={query_block} and gallery_block={gallery_block} must be at least 1")
    rows, positive, squared = _positives(query, gallery, metric)
    order = np.lexsort((positive, squared, rows))
    rows, positive, squared = rows[order], positive[order], squared[order]
    # Positives of a query at equal distance share one threshold.
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (squared[1:] != squared[:-1])
    search = _Search(query, gallery, metric, rows[first], squared[first])
    search.run(counting.gallery_mesh(mesh), query_block, gallery_block, stage)
    threshold = np.cumsum(first) - 1
    return Ranks(
        start=np.searchsorted(rows, np.arange(len(query.person) + 1)),
        positive=positive,
        others_ahead=search.ahead[threshold],
        tied=search.tied[threshold],
        distance=0.5 * squared if metric == "cosine" else np.sqrt(squared),
        num_valid=len(gallery.drop) - _occurrences(query.drop, gallery.drop),
        num_gallery=len(gallery.person),
    )


def _positives(query: Side, gallery: Side, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 [P] query and gallery rows of all pairs of one person that are visible, and their squared distances [P]."""
    by_query, by_item = np.argsort(query.person, kind="stable"), np.argsort(gallery.person, kind="stable")
    queries, items = query.person[by_query], gallery.person[by_item]
    persons = np.intersect1d(queries, items)
    bounds = [np.searchsorted(ids, persons, side) for ids in (queries, items) for side in ("left", "right")]
    groups = [(by_query[a:b], by_item[c:d]) for a, b, c, d in zip(*bounds, strict=True)]
    # Pair i of a person's n x m table is in its row i // m, column i % m.
    begin, width = bounds[0], bounds[3] - bounds[2]
    size = (bounds[1] - begin) * width
    person = np.repeat(np.arange(len(persons)), size)
    line, column = np.divmod(np.arange(len(person)) - np.repeat(np.cumsum(size) - size, size), width[person])
    row, positive = by_query[begin[person] + line], by_item[bounds[2][person] + column]
    visible = gallery.drop[positive] != query.drop[row]
    return row[visible], positive[visible], squared_groups(query, gallery, groups, metric)[visible]


def _occurrences(wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """int64 [len(wanted)]: how often each occurs in `values`."""
    values = np.sort(values)
    return np.searchsorted(values, wanted, "right") - np.searchsorted(values, wanted, "left")


def _codes(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32 codes that are equal where the int64 values are; a query value that no gallery item has is -1."""
    values, codes = np.unique(gallery, return_inverse=True)
    place = np.minimum(np.searchsorted(values, query), len(values) - 1)
    return np.where(values[place] == query, place, -1).astype(np.int32), codes.astype(np.int32)


class _Search:
    """Counts, for each threshold (a query's distance to one of its positives), the items of others ahead of it.

    Args:
        query: the queries.
        gallery: what they are compared with.
        metric: how.
        row: int64 [T], the query of each threshold, ascending.
        squared: float64 [T], its squared distance, ascending for each query.

    Attributes:
        ahead: int64 [T], visible items of other persons at that distance or closer.
        tied: bool [T], one of them is at exactly that distance.
    """

    def __init__(self, query: Side, gallery: Side, metric: str, row: np.ndarray, squared: np.ndarray):
        self._query, self._gallery, self._metric, self._squared = query, gallery, metric, squared
        self.ahead, self.tied = np.zeros(len(row), np.int64), np.zeros(len(row), bool)
        self._count = np.bincount(row, minlength=len(query.person))
        self._begin = np.cumsum(self._count) - self._count
        self._factors = Factors(query, gallery, metric)
        self._person = _codes(query.person, gallery.person)
        self._drop = _codes(query.drop, gallery.drop)

    def run(self, mesh: jax.sharding.Mesh, query_block: int | None, gallery_block: int | None, stage: str) -> None:
        """Goes through all tiles; while the devices work on one, the one before is finished here."""
        # Queries with equally many thresholds share a block: thresholds are padded to the most of a block.
        rows = np.argsort(self._count, kind="stable")
        rows = rows[self._count[rows] > 0]
        if not len(rows):
            return
        num_gallery = len(self._gallery.person)
        step, gallery_step = counting.block_sizes(len(rows), num_gallery, mesh, query_block, gallery_block)
        tiles = -(-len(rows) // step) * -(-num_gallery // gallery_step)
        pairs = step * gallery_step / 1e6
        progress = Progress(stage, tiles, unit="tile", items_per_unit=pairs, items="M distances") if stage else None
        pending: deque[_Tile] = deque()
        for done, tile in enumerate(self._tiles(rows, step, gallery_step, mesh)):
            pending.append(tile)
            if len(pending) > 1:
                self._finish(pending.popleft())
                if progress:
                    progress.update(done)
        self._finish(pending.popleft())
        if progress:
            progress.update(tiles)

    def _tiles(self, rows: np.ndarray, step: int, gallery_step: int, mesh: jax.sharding.Mesh) -> Iterator["_Tile"]:
        """Starts the work of every tile; the gallery is read once, the queries once per gallery block."""
        roundoff = counting.unit_roundoff(mesh)
        for begin in range(0, len(self._gallery.person), gallery_step):
            end = min(begin + gallery_step, len(self._gallery.person))
            block = _GalleryBlock(self._gallery, begin, end, self._metric)
            items = slice(block.begin, block.end)
            operand = self._factors.gallery(block.begin, block.end, gallery_step)
            columns = counting.put_gallery(
                operand.factor,
                _padded(operand.offset.astype(np.float32), gallery_step, np.inf),
                _padded(self._person[1][items], gallery_step, -2),
                _padded(self._drop[1][items], gallery_step, -2),
                mesh,
            )
            for first in range(0, len(rows), step):
                chosen = rows[first : first + step]
                queries = self._factors.query(chosen, step)
                low, high = self._bounds(chosen, queries, operand, roundoff)
                placed = counting.put_query(
                    queries.factor,
                    _padded(self._person[0][chosen], step, -1),
                    _padded(self._drop[0][chosen], step, -1),
                    mesh,
                )
                estimates = counting.Tile(placed, columns, mesh)
                farthest = high[np.arange(len(chosen)), self._count[chosen] - 1]
                reach = estimates.reach(_padded(farthest, step, -np.inf))
                yield _Tile(chosen, block, low, high, estimates, reach)

    def _bounds(
        self, rows: np.ndarray, queries: Operand, gallery: Operand, roundoff: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 [len(rows), M] twice: estimates below the first are closer than the threshold, above the second not.

        M is the most thresholds of a row; infinite where a row has fewer.
        """
        column = np.arange(self._count[rows].max())[None]
        index = self._begin[rows][:, None] + np.minimum(column, self._count[rows][:, None] - 1)
        half, offset = self._factors.half(self._squared[index]), queries.offset[:, None]
        # The threshold itself is rounded to float32, and its parts carry float64's rounding.
        error = error_bound(queries, gallery, self._factors.width, roundoff)[:, None]
        error = error + 4.0 * roundoff * (half + np.abs(offset))
        bounds = (np.clip(half - offset + sign * error, -_FLOAT32_MAX, _FLOAT32_MAX) for sign in (-1.0, 1.0))
        low, high = (np.where(column < self._count[rows][:, None], bound, np.inf) for bound in bounds)
        return low.astype(np.float32), high.astype(np.float32)

    def _finish(self, tile: "_Tile") -> None:
        """Adds up a tile: what is certain, then what float64 decides.

        Where few items are as close as a query's farthest positive, these are looked at one by one; else all are
        counted on the devices, threshold by threshold.
        """
        reach = np.asarray(tile.reach)
        within = int(np.bitwise_count(reach).sum())
        if within:
            (self._count_few if within < 8 * reach.size * tile.low.shape[1] * _FEW else self._count_many)(tile, reach)

    def _count_few(self, tile: "_Tile", reach: np.ndarray) -> None:
        """Counts the items within reach of the tile's queries; reach is uint8 [B, gallery block / 8], packed bits."""
        byte = np.flatnonzero(reach != 0)
        bit = np.flatnonzero(np.unpackbits(reach.ravel()[byte]).view(bool))
        rows, items = np.divmod(byte[bit >> 3] * 8 + (bit & 7), reach.shape[1] * 8)
        most = tile.low.shape[1]
        low, high = (_keys(np.repeat(np.arange(len(bound)), most), bound.ravel()) for bound in (tile.low, tile.high))
        ahead = np.zeros((len(tile.rows), most + 1), np.int64)
        for begin in range(0, len(rows), counting.PICKS):
            row, item = rows[begin : begin + counting.PICKS], items[begin : begin + counting.PICKS]
            fill = (0, counting.PICKS - len(row))
            values = tile.estimates.pick(np.pad(row, fill).astype(np.int32), np.pad(item, fill).astype(np.int32))
            keys = _keys(row, np.asarray(values)[: len(row)])
            # From `sure` on, a query's thresholds have the item ahead; between `perhaps` and `sure` it is open.
            sure = np.searchsorted(low, keys, "right") - row * most
            perhaps = np.searchsorted(high, keys, "left") - row * most
            np.add.at(ahead, (row, sure), 1)
            still = np.repeat(np.arange(len(row)), sure - perhaps)
            column = np.arange(len(still)) - np.repeat(np.cumsum(sure - perhaps) - sure, sure - perhaps)
            self._decide(tile, row[still], column, item[still])
        self._add(tile, np.cumsum(ahead, axis=1)[:, :-1])

    def _count_many(self, tile: "_Tile", reach: np.ndarray) -> None:
        """Counts all items, whatever their number; memory stays bounded even if all are at one distance."""
        step, width, used = counting.THRESHOLDS, reach.shape[1] * 8, tile.low.shape[1]
        shape = ((0, len(reach) - len(tile.rows)), (0, -used % step))
        low, high = (np.pad(bound, shape, constant_values=np.inf) for bound in (tile.low, tile.high))
        counts = [tile.estimates.count(low[:, i : i + step], high[:, i : i + step]) for i in range(0, used, step)]
        below, upto = (np.concatenate([np.asarray(part[i]) for part in counts], axis=1)[:, :used] for i in range(2))
        below, upto = below[: len(tile.rows)], upto[: len(tile.rows)]
        self._add(tile, below)
        rows, columns = np.nonzero((upto > below) & np.isfinite(tile.high))
        for begin in range(0, len(rows), counting.WINDOWS):
            row, column = rows[begin : begin + counting.WINDOWS], columns[begin : begin + counting.WINDOWS]
            fill = (0, counting.WINDOWS - len(row))
            window = np.pad(tile.low[row, column], fill), np.pad(tile.high[row, column], fill, constant_values=-np.inf)
            bits = np.asarray(tile.estimates.window(np.pad(row, fill).astype(np.int32), *window))[: len(row)]
            place, item = np.divmod(np.flatnonzero(np.unpackbits(bits).view(bool)), width)
            self._decide(tile, row[place], column[place], item)

    def _add(self, tile: "_Tile", ahead: np.ndarray) -> None:
        """Adds int [n, M] items ahead of each threshold of the tile's n queries; void where a query has fewer."""
        column = np.arange(ahead.shape[1])[None]
        used = column < self._count[tile.rows][:, None]
        self.ahead[(self._begin[tile.rows][:, None] + column)[used]] += ahead[used]

    def _decide(self, tile: "_Tile", row: np.ndarray, column: np.ndarray, item: np.ndarray) -> None:
        """Decides in float64 whether items are ahead of thresholds.

        Args:
            tile: the tile.
            row: int64 [n], place of the query in the tile.
            column: int64 [n], place of the threshold among the query's.
            item: int64 [n], place of the item in the gallery block.
        """
        if len(item) > _MANY:
            item = tile.block.first_equal()[item]
        width = tile.block.end - tile.block.begin
        pair, inverse = np.unique(row * width + item, return_inverse=True)
        query_row, gallery_row = tile.rows[pair // width], tile.block.begin + pair % width
        squared = squared_pairs(self._query, self._gallery, query_row, gallery_row, self._metric)[inverse]
        threshold = self._begin[tile.rows[row]] + column
        np.add.at(self.ahead, threshold[squared <= self._squared[threshold]], 1)
        self.tied[threshold[squared == self._squared[threshold]]] = True


@dataclasses.dataclass(frozen=True, eq=False)
class _Tile:
    """A tile under way: its queries, gallery block, bounds [n, M] and what the devices return of it."""

    rows: np.ndarray
    block: "_GalleryBlock"
    low: np.ndarray
    high: np.ndarray
    estimates: counting.Tile
    reach: jax.Array


class _GalleryBlock:
    """Rows begin..end - 1 of the gallery, and which of them are bit-equal."""

    def __init__(self, gallery: Side, begin: int, end: int, metric: str):
        self._arrays = [gallery.embedding] + ([gallery.gate] if metric == "gated" and gallery.gate is not None else [])
        self.begin, self.end = begin, end
        self._first: np.ndarray | None = None

    def first_equal(self) -> np.ndarray:
        """int64 [end - begin], for each item the place of the block's first one with the same row: where a model has
        collapsed, or its embeddings are coarsely rounded, few distances stand for many.
        """
        if self._first is None:
            values = np.concatenate([array[self.begin : self.end] for array in self._arrays], axis=1)
            rows = values.view(np.dtype((np.void, values.shape[1] * values.itemsize)))[:, 0]
            _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
            self._first = first[inverse]
        return self._first


def _keys(row: np.ndarray, value: np.ndarray) -> np.ndarray:
    """int64 [n] that sort by int64 row, then by float32 value."""
    bits = (value + np.float32(0)).view(np.int32)  # the sum turns -0 into 0
    return (row << 32) + np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _padded(array: np.ndarray, count: int, fill: float) -> np.ndarray:
    """`array` [n] with `fill` appended up to [count]."""
    return np.pad(array, (0, count - len(array)), constant_values=fill)
