"""Single-gallery-shot CMC: one gallery image per person is drawn for each query, again and again.

For each query and repeat one of the valid images of every person is drawn; the repeat's rank is that of the query's
person among the persons drawn, and the CMC the mean over repeats and queries. mAP stays multi-shot: over all valid
images. open-reid and torchreid draw the same way, unseeded; torchreid calls it the CUHK03 metric (10 repeats, the
market rule). The RGB-D papers repeat 15 times.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.metrics.bootstrap import intervals
from rgbd_reid_jax.metrics.dense import BLOCK_NUMBERS, pairwise
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.protocols.base import Task, canonical_order, numbers, rule_name
from rgbd_reid_jax.metrics.ranking import multi_shot, rank, shown_hits, sides

CMC = "single shot: one valid gallery image per person drawn for each query, mean over repeats; mAP is multi-shot"


def single_gallery_shot(task: Task) -> dict[str, Any]:
    """The numbers with parameters `rule` and `repeats`."""
    return _single_shot(task, rule_name(task, "single_gallery_shot"))


def cuhk03(task: Task) -> dict[str, Any]:
    """The numbers with torchreid's definitions and parameter `repeats`."""
    return _single_shot(task, "market")


def _single_shot(task: Task, rule: str) -> dict[str, Any]:
    result = rank(task.query, task.gallery, rule, metric=task.metric, max_rank=task.max_rank, **task.engine)
    hits = hit_rates(task, rule)
    return numbers(
        result.mean_ap,
        result.mean_ap_trapezoid,
        result.mean_inp,
        hits[~result.skipped].mean(0),
        num_query=result.num_query,
        num_query_skipped=result.num_query_skipped,
        num_query_absent=result.num_query_absent,
        num_gallery=result.num_gallery,
        tie_rate=result.tie_rate,
        intervals=intervals(multi_shot(result.ranks) | shown_hits(hits), task.query.person_id, seed=task.seed),
    )


def hit_rates(task: Task, rule: str) -> np.ndarray:
    """float64 [Q, max_rank]: the share of the repeats in which a query's person has rank <= k; NaN without a positive.

    Args:
        task: with the parameter `repeats`.
        rule: a key of `RULES`.
    """
    query = task.query
    codes = [side.drop for side in sides(query, task.gallery, rule, task.metric)]
    order = canonical_order(task.gallery)
    # By person and code: of each person's images, those that a query does not see stand together.
    order = order[np.lexsort([codes[1][order], task.gallery.person_id[order]])]
    gallery, code = task.gallery.take(order), codes[1][order]
    persons, start, group = np.unique(gallery.person_id, return_index=True, return_inverse=True)
    count = np.bincount(group)
    by_code = np.argsort(code, kind="stable")
    first, last = (np.searchsorted(code[by_code], codes[0], side) for side in ("left", "right"))
    turn = np.argsort(canonical_order(query))  # each query draws from a stream of its own
    rates = np.full((len(query), task.max_rank), np.nan)
    places = np.searchsorted(persons, query.person_id)
    for row, distance in _distances(task, gallery):
        unseen = by_code[first[row] : last[row]]
        hidden = np.bincount(group[unseen], minlength=len(persons))
        size, own = count - hidden, int(places[row])
        if own == len(persons) or persons[own] != query.person_id[row] or not size[own]:
            continue
        before = np.full(len(persons), len(gallery))  # images of each person ahead of those the query does not see
        np.minimum.at(before, group[unseen], unseen - start[group[unseen]])
        rng = np.random.default_rng([task.seed, turn[row]])
        place = (rng.random((task.parameters["repeats"], len(persons))) * size).astype(np.int64)
        place = np.clip(place, 0, np.maximum(size - 1, 0))
        place += np.where(place >= before, hidden, 0)
        drawn = distance[start + np.minimum(place, count - 1)]
        drawn[:, size == 0] = np.inf
        ranks = (drawn <= drawn[:, own : own + 1]).sum(1)
        rates[row] = (ranks[:, None] <= np.arange(1, task.max_rank + 1)).mean(0)
    return rates


def _distances(task: Task, gallery: Embeddings) -> Iterator[tuple[int, np.ndarray]]:
    """(row of the query, its distances float64 [G]) of every query."""
    progress, done = Progress("single-shot CMC", len(task.query), unit="query", items="queries"), 0
    for rows, distance in pairwise(task.query, gallery, task.metric).row_blocks(BLOCK_NUMBERS):
        yield from zip(rows.tolist(), distance, strict=True)
        done += len(rows)
        if done < len(task.query):  # short work needs no words
            progress.update(done)
