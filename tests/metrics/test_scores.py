"""Scores against hand numbers, scikit-learn and enumerated orders."""

import collections
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from rgbd_reid_jax.metrics import scores
from rgbd_reid_jax.metrics.ranks import Ranks, Side, positive_ranks


def ranks_of(*queries, num_valid=10):
    """Ranks whose query i has its positives at the ranks queries[i]."""
    rank = np.array([rank for query in queries for rank in query], np.int64)
    order = np.array([k for query in queries for k in range(1, len(query) + 1)], np.int64)
    start = np.concatenate([[0], np.cumsum([len(query) for query in queries])])
    tied, distance = np.zeros(len(rank), bool), rank.astype(np.float64)
    return Ranks(start, rank, rank - order, tied, distance, np.full(len(queries), num_valid), num_valid)


def test_the_two_average_precisions_differ_on_ranks_1_2_4_7():
    ranks = ranks_of([1, 2, 4, 7])
    assert scores.average_precision(ranks)[0] == pytest.approx((1 + 1 + 3 / 4 + 4 / 7) / 4)
    assert round(scores.average_precision(ranks)[0], 4) == 0.8304
    assert round(scores.average_precision_trapezoid(ranks)[0], 4) == 0.8110
    assert scores.inverse_negative_penalty(ranks)[0] == 4 / 7


def test_a_query_without_positive_has_no_score():
    ranks = ranks_of([2, 3], [], [1])
    np.testing.assert_allclose(scores.average_precision(ranks), [(1 / 2 + 2 / 3) / 2, np.nan, 1])
    np.testing.assert_allclose(scores.average_precision_trapezoid(ranks), [(1 / 2 + 0 + 2 / 3 + 1 / 2) / 4, np.nan, 1])
    np.testing.assert_allclose(scores.inverse_negative_penalty(ranks), [2 / 3, np.nan, 1])
    assert scores.first_hit_rank(ranks).tolist() == [2, 0, 1]
    assert scores.cmc(scores.first_hit_rank(ranks), 3).tolist() == [0.5, 1, 1]


def test_without_positives_at_all():
    ranks = ranks_of([], [])
    for score in (scores.average_precision, scores.average_precision_trapezoid, scores.inverse_negative_penalty):
        assert np.isnan(score(ranks)).all()
    assert scores.first_hit_rank(ranks).tolist() == [0, 0]
    assert math.isnan(scores.tie_rate(ranks))


def trapezoid(labels):
    """Area under the precision-recall curve, item by item: the official Market-1501 code's loop."""
    area, recall, precision, found = 0.0, 0.0, 1.0, 0
    for item, label in enumerate(labels, 1):
        found += label
        new_recall, new_precision = found / sum(labels), found / item
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area


@pytest.mark.parametrize("kind", ["random", "tied", "collapsed", "duplicated", "single"])
def test_equals_scikit_learn_and_the_area_under_the_curve(kind):
    """5 kinds x 60 draws x 16 queries: 4800 rankings."""
    seen = collections.Counter()

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def run(seed):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(56, 6))
        if kind == "tied":
            values = rng.integers(-1, 2, size=(56, 6))
        elif kind == "collapsed":
            values[:] = 0.5
        elif kind == "duplicated":
            values = values[rng.integers(0, 20, 56)]
        values = values.astype(np.float32)
        person = np.arange(40) if kind == "single" else rng.integers(0, 5, 40)
        query = Side(values[:16], rng.integers(0, 6, 16), rng.integers(0, 3, 16))
        gallery = Side(values[16:], person, rng.integers(0, 3, 40))
        ranks = positive_ranks(query, gallery)
        step, area = scores.average_precision(ranks), scores.average_precision_trapezoid(ranks)
        penalty, first = scores.inverse_negative_penalty(ranks), scores.first_hit_rank(ranks)
        for i in range(16):
            visible = gallery.drop != query.drop[i]
            positive = (gallery.person == query.person[i])[visible]
            if not positive.any():
                assert np.isnan([step[i], area[i], penalty[i]]).all()
                assert first[i] == 0
                seen["none"] += 1
                continue
            distance = ((query.embedding[i].astype(np.float64) - gallery.embedding[visible]) ** 2).sum(1)
            levels, count = np.unique(distance, return_counts=True)
            untied = bool(count[np.searchsorted(levels, distance[positive])].max() == 1)
            seen.update({"untied": untied, "tied": not untied, "single": int(positive.sum()) == 1})
            if untied:  # scikit-learn may sort by itself
                assert step[i] == pytest.approx(average_precision_score(positive, -distance), abs=1e-6)
            labels = positive[np.lexsort((positive, distance))].astype(int)  # ties: other persons first
            assert step[i] == pytest.approx(average_precision_score(labels, -np.arange(len(labels))), abs=1e-12)
            assert area[i] == pytest.approx(trapezoid(labels.tolist()), abs=1e-12)
            assert penalty[i] == labels.sum() / (np.flatnonzero(labels)[-1] + 1)
            assert first[i] == np.flatnonzero(labels)[0] + 1
        found = first > 0
        assert (area[found] <= step[found] + 1e-12).all()

    run()
    assert seen["none"] > 100
    assert seen["single"] > (500 if kind == "single" else 0)
    assert seen["untied" if kind in ("random", "single") else "tied"] > 500


def test_tie_rate_counts_positives():
    query = Side(np.zeros((1, 1), np.float32), np.array([0]), np.array([-1]))
    gallery = Side(np.array([[1], [-1], [2], [3]], np.float32), np.array([0, 1, 0, 0]), np.zeros(4, np.int64))
    assert scores.tie_rate(positive_ranks(query, gallery)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 6), (3, 3), (2, 7), (4, 6)])
def test_chance_is_the_mean_over_all_orders(m, n):
    orders = [sorted(places) for places in itertools.combinations(range(1, n + 1), m)]
    ap = [np.mean([k / rank for k, rank in enumerate(places, 1)]) for places in orders]
    assert scores.chance_average_precision(np.array([m]), np.array([n]))[0] == pytest.approx(np.mean(ap))
    hits = [np.mean([places[0] <= k for places in orders]) for k in range(1, n + 3)]
    np.testing.assert_allclose(scores.chance_hit_rate(np.array([m]), np.array([n]), n + 2)[0], hits, atol=1e-12)


def test_chance_of_long_curves_takes_little_memory():
    rng = np.random.default_rng(0)
    num_valid = rng.integers(10, 9000, 3000)
    num_positive = rng.integers(1, 10, 3000)
    tracemalloc.start()
    curve = scores.chance_cmc(num_positive, num_valid, 9000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # all at once: 216 MB, several times
    first = scores.chance_hit_rate(num_positive, num_valid, 30).mean(0)
    np.testing.assert_allclose(curve[:30], first, atol=1e-12)
    assert curve[-1] == pytest.approx(1.0)
