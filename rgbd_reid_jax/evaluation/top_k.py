"""Re-ranks each query's k nearest gallery items by a distance that is too costly for all pairs.

The k nearest items that the protocol's rule leaves are ordered by the costly distance among themselves; all of them
stay ahead of the others, which keep their order. Every item that ties with the k-th counts as one of the k, so neither
the order of the gallery nor the identity of an item decides which are compared, and no order of the gallery changes a
score: a collapsed model, whose distances all tie, is compared with its whole gallery.

Ranks are the ranking engine's (`metrics.ranks`) for what lies beyond the k nearest, whose members do not depend on
their order, and `dense_ranks` of the costly distances within. Both have one tie rule and one definition of distance:
k = 0, or a costly distance that orders pairs as the cheap one does, gives the scores of `ranking.rank` to the last bit.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.metrics import dense
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.ranking import LEAST_MAX_RANK, RankingResult, check, score, sides, valid_items
from rgbd_reid_jax.metrics.ranks import Ranks, positive_ranks

PairDistance = Callable[[np.ndarray, np.ndarray], np.ndarray | jax.Array]

_BLOCK = 1 << 21  # distances held at once, 16 MiB; choosing the nearest takes a few times that where k is large
_SLACK = 1e-6  # relative; `Pairwise` rounds its distances in the tenth digit, and exact ones decide within this


def rerank_top(
    query: Embeddings,
    gallery: Embeddings,
    protocol: str,
    k: int,
    pair_distance: PairDistance,
    *,
    metric: str = "euclidean",
    batch: int = 256,
    max_rank: int = 20,
    stage: str = "",
    mesh: jax.sharding.Mesh | None = None,
) -> RankingResult:
    """Ranks the gallery for every query, its k nearest items by `pair_distance`.

    Args:
        query: the queries.
        gallery: what they are compared with; may be the same set.
        protocol: a key of `ranking.RULES`; what it drops is never among the k, and never compared.
        k: how many, and all that tie with the last; 0 for none, and from the gallery's size on all are re-ranked.
        pair_distance: maps rows of the query and of the gallery, int32 [batch] each, to the distances of these single
            pairs, float [batch], finite. A pair's distance must not depend on the others of its call. Queries without a
            positive among the k are left out: nothing that is scored depends on their order.
        metric: of the cheap distance, "euclidean", "cosine" or "gated".
        batch: pairs per call, always exactly that many, so that a jitted function is compiled once; the last call for a
            block of queries repeats its last pair.
        max_rank: length of the CMC curve, at least 10.
        stage: name under which progress is printed; silent when empty.
        mesh: devices that share the ranking by the cheap distance; one when None. They change no score.

    Returns:
        As `ranking.rank`; `ranks.distance` is the costly distance within the k nearest and the cheap one beyond.

    Raises:
        InputError: k, batch or max_rank is out of range, a pair distance is not finite, or what `ranking.rank` refuses.
    """
    check(query, gallery, protocol)
    for name, value, least in (("k", k, 0), ("batch", batch, 1), ("max_rank", max_rank, LEAST_MAX_RANK)):
        if value < least:
            raise InputError(f"{name}={value} must be at least {least}")
    found = positive_ranks(*sides(query, gallery, protocol, metric), metric=metric, stage=stage, mesh=mesh)
    if k:
        pairs = max(1.0, np.minimum(found.num_valid, k).mean())
        compare = _Compare(pair_distance, batch, stage, len(query), pairs)
        blocks = _blocks(query, gallery, protocol, k, metric, compare)
        found = _before(dense.dense_ranks(blocks, query.person_id, gallery.person_id), found)
    return score(found, query, gallery, protocol, max_rank=max_rank)


def _blocks(
    query: Embeddings, gallery: Embeddings, protocol: str, k: int, metric: str, compare: "_Compare"
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows, costly distance, among the k nearest) for `dense_ranks`; nothing for queries without a positive there."""
    pairwise = dense.pairwise(query, gallery, metric)
    for rows, distance in pairwise.row_blocks(_BLOCK):
        distance[~valid_items(query, gallery, protocol, rows)] = np.inf
        at, item = _candidates(distance, k)
        nearest = _within(at, pairwise.of(rows[at], item), len(rows), k)
        at, item = at[nearest], item[nearest]
        found = np.bincount(at[query.person_id[rows[at]] == gallery.person_id[item]], minlength=len(rows)) > 0
        at, item = at[found[at]], item[found[at]]
        among = np.zeros(distance.shape, bool)
        among[at, item] = True
        distance[at, item] = compare(rows, at, item)
        yield rows, distance, among


def _candidates(distance: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [P] rows, ascending, and columns of float64 [n, G]: finite, and at most a slack above a row's k-th value.

    All k nearest by the exact distance are among them: its k-th value is at most the largest that k items have, and the
    two distances differ by far less than the slack.
    """
    last = min(k, distance.shape[1]) - 1
    bound = np.partition(distance, last, axis=1)[:, last] * (1.0 + _SLACK)
    at, item = np.nonzero((distance <= bound[:, None]) & np.isfinite(distance))
    return at, item


def _within(at: np.ndarray, exact: np.ndarray, num_rows: int, k: int) -> np.ndarray:
    """bool [P]: whether a candidate is at most as far as the k-th of its row; all are where a row has no more than k.

    Args:
        at: int64 [P], the row of each candidate, ascending.
        exact: float64 [P], its distance.
        num_rows: rows, some maybe without a candidate.
        k: at least 1.
    """
    begin, end = (np.searchsorted(at, np.arange(num_rows), side) for side in ("left", "right"))
    ordered = np.append(exact[np.lexsort((exact, at))], np.inf)  # the last: for rows without a candidate
    return exact <= ordered[np.minimum(begin + k, end) - 1][at]


class _Compare:
    """Calls the costly distance with equally many pairs each time, and prints progress.

    Args:
        pair_distance: as `rerank_top` takes it.
        batch: pairs per call.
        stage: of the progress lines; none when empty.
        num_query: queries in all.
        pairs: of a query, on average, as the rate counts them.
    """

    def __init__(self, pair_distance: PairDistance, batch: int, stage: str, num_query: int, pairs: float):
        self._distance, self._batch, self._done = pair_distance, batch, 0
        self._progress = None
        if stage:
            self._progress = Progress(stage, num_query, unit="re-ranking: query", items_per_unit=pairs, items="pairs")

    def __call__(self, rows: np.ndarray, at: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float64 [P], the distances of pairs of a block of queries.

        Args:
            rows: int64 [n], the block's rows of the query, all of which are done with this call.
            at: int64 [P], the place in `rows` of each pair, ascending.
            item: int64 [P], its row of the gallery.
        """
        pieces: list = []
        for start in range(0, len(at), self._batch):
            pairs = np.minimum(np.arange(start, start + self._batch), len(at) - 1)
            pieces.append(self._distance(rows[at[pairs]].astype(np.int32), item[pairs].astype(np.int32)))
            pieces[-2:-1] = [np.asarray(piece, np.float64) for piece in pieces[-2:-1]]  # one call ahead, no more
            self._update(self._done + int(at[start]))
        self._done += len(rows)
        distance = np.concatenate([np.zeros(0), *(np.asarray(piece, np.float64) for piece in pieces)])
        assert distance.shape == (len(pieces) * self._batch,), "pair_distance has to give one distance per pair"
        distance = distance[: len(at)]
        self._update(self._done)
        if not np.isfinite(distance).all():
            wrong = np.argmin(np.isfinite(distance))
            raise InputError(
                f"the pair distance of query row {rows[at[wrong]]} and gallery row {item[wrong]} is {distance[wrong]}; "
                "the model has diverged: evaluate an earlier checkpoint"
            )
        return distance

    def _update(self, done: int) -> None:
        if self._progress:
            self._progress.update(done)


def _before(top: Ranks, base: Ranks) -> Ranks:
    """`base` with the first ranks of each query replaced by `top`, the ranks of the same positives among its nearest.

    The other ranks stay: whatever order the nearest have, as many of them are ahead.
    """
    others = base.keep(base.order > top.num_positive[base.query])
    order = np.argsort(np.concatenate([top.query, others.query]), kind="stable")
    names = ("positive", "others_ahead", "tied", "distance")
    columns = {name: np.concatenate([getattr(top, name), getattr(others, name)])[order] for name in names}
    return dataclasses.replace(base, **columns)
