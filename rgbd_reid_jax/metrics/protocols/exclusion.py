"""The protocols that are an exclusion rule and nothing more; options: groups, query expansion, re-ranking."""

import dataclasses
from typing import Any

from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.protocols.base import Task, canonical_order, numbers
from rgbd_reid_jax.metrics.ranking import RankingResult, as_chance, check, groups, intervals, rank, score, sides
from rgbd_reid_jax.metrics.rerank import expand_queries, reranked_ranks


def ranked(task: Task, rule: str) -> dict[str, Any]:
    """The numbers under a rule, their values by chance, and with the option `groups` those of kinds of positives."""
    check(task.query, task.gallery, rule)
    if task.rerank is not None or task.query_expansion:  # of equally near items, these take the first ones
        query, gallery = (items.take(canonical_order(items)) for items in (task.query, task.gallery))
        task = dataclasses.replace(task, query=query, gallery=gallery)
    query = _expanded(task, rule) if task.query_expansion else task.query
    if task.rerank is None:
        result = rank(query, task.gallery, rule, metric=task.metric, max_rank=task.max_rank, **task.engine)
    else:
        k1, k2, weight = task.rerank
        ranks = reranked_ranks(
            *sides(query, task.gallery, rule, task.metric),
            metric=task.metric,
            k1=k1,
            k2=k2,
            weight=weight,
            hide=rule != "market",  # its published re-ranked numbers encode the dropped items too
            stage=task.engine.get("stage", ""),
        )
        result = score(ranks, query, task.gallery, rule, max_rank=task.max_rank)
    return _numbers(result, task)


def _expanded(task: Task, rule: str) -> Embeddings:
    """The queries, each the mean of itself and of its nearest visible gallery items."""
    both = sides(task.query, task.gallery, rule, task.metric)
    return dataclasses.replace(task.query, embedding=expand_queries(*both, task.query_expansion, metric=task.metric))


def _numbers(result: RankingResult, task: Task) -> dict[str, Any]:
    found = numbers(
        result.mean_ap,
        result.mean_ap_trapezoid,
        result.mean_inp,
        result.cmc,
        num_query=result.num_query,
        num_query_skipped=result.num_query_skipped,
        num_query_absent=result.num_query_absent,
        num_gallery=result.num_gallery,
        tie_rate=result.tie_rate,
        intervals=intervals(result, task.query.person_id, seed=task.seed),
    )
    found["chance"] = as_chance(result)
    if task.groups:
        found["groups"] = groups(result, task.query, task.gallery)
    return found
