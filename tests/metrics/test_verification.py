"""Thresholds against hand numbers, sorted pairs and scikit-learn; large sets against small memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.ranks import Side
from rgbd_reid_jax.metrics.verification import verify, verify_pairs

_KINDS = ["random", "tied", "collapsed", "duplicated", "outlier"]


def test_hand_example():
    result = verify(np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.5, 5.0, 7.0, 8.0]), fpr=0.25)
    assert (result.threshold, result.fpr, result.tpr) == (3.0, 0.25, 0.75)
    assert result.eer == 0.25


def test_separated_distances_have_no_error():
    result = verify(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert (result.threshold, result.fpr, result.tpr, result.eer) == (2.0, 0.0, 1.0, 0.0)


def test_collapsed_distances_accept_nothing():
    result = verify(np.zeros(5), np.zeros(5))
    assert (result.threshold, result.tpr, result.eer) == (-np.inf, 0.0, 1.0)


def test_an_empty_side_is_named():
    with pytest.raises(InputError, match="0 pairs of the same"):
        verify(np.zeros(0), np.zeros(3))


def side(rng, n, kind="random", persons=6, width=5):
    embedding = rng.normal(size=(n, width)).astype(np.float32)
    person = rng.integers(0, persons, n)
    if kind == "random":
        embedding += np.eye(persons, width, dtype=np.float32)[person]
    elif kind == "tied":
        embedding = rng.integers(-1, 2, size=(n, width)).astype(np.float32)
    elif kind == "collapsed":
        embedding[:] = 0.1
    elif kind == "duplicated":
        embedding = embedding[rng.integers(0, max(1, n // 3), n)]
    elif kind == "outlier":
        embedding[0] *= 1e12
    gate = rng.random((n, width)).astype(np.float32)
    return Side(embedding, person, rng.integers(0, 9, n), gate)


def all_pairs(query, gallery, metric):
    """Distances of the visible pairs, one by one, float64."""
    same, different = [], []
    for q in range(len(query.person)):
        for g in range(len(gallery.person)):
            if query.drop[q] == gallery.drop[g]:
                continue
            a, b = query.embedding[q].astype(np.float64), gallery.embedding[g].astype(np.float64)
            if metric == "gated":
                a, b = a * gallery.gate[g], b * query.gate[q]
            if metric == "cosine":
                norm = np.sqrt((a @ a) * (b @ b))
                distance = 1.0 - a @ b / norm if norm else 1.0
            else:
                distance = np.sqrt(((a - b) ** 2).sum())
            if query.person[q] != gallery.person[g]:
                different.append(distance)
            else:
                same.append(distance)
    return np.array(same), np.array(different)


def settled(values):
    """Distances that differ by rounding alone made equal, as they are in exact arithmetic."""
    return np.round(values, 9)


@pytest.mark.parametrize("max_values", [1 << 22, 40])
@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), metric=st.sampled_from(["euclidean", "cosine", "gated"]))
def test_equals_sorting_all_pairs(kind, max_values, seed, metric):
    rng = np.random.default_rng(seed)
    query, gallery = side(rng, 25, kind), side(rng, 40, kind)
    same, different = (settled(values) for values in all_pairs(query, gallery, metric))
    wanted = (0.5, 0.1, 1e-2, 1e-3)
    result = verify_pairs(query, gallery, metric=metric, wanted_fpr=wanted, max_values=max_values)
    assert (result.num_same, result.num_different) == (len(same), len(different))
    expected = verify(same, different)
    assert result.eer == pytest.approx(expected.eer, abs=1e-12)
    if result.eer_threshold is not None:
        at = settled(result.eer_threshold)
        assert max((different <= at).mean(), (same > at).mean()) == pytest.approx(expected.eer, abs=1e-12)
    for fpr, point in zip(wanted, result.points, strict=True):
        expected = verify(same, different, fpr=fpr)
        if fpr * len(different) < 1:
            assert (point.threshold, point.tpr) == (None, None)
            assert "1000 pairs of different persons" in point.reason
        elif np.isinf(expected.threshold):
            assert (point.threshold, point.tpr) == (None, None)
            assert "ties" in point.reason
        else:
            assert settled(point.threshold) == pytest.approx(expected.threshold, rel=1e-9)
            assert (point.fpr, point.tpr) == pytest.approx((expected.fpr, expected.tpr), abs=1e-12)
    assert result.median_same == pytest.approx(np.median(same), rel=1e-8)
    assert result.median_different == pytest.approx(np.median(different), rel=1e-8)
    assert result.mean_same == pytest.approx(same.mean(), rel=1e-8)
    assert result.mean_different == pytest.approx(different.mean(), rel=1e-8)


@pytest.mark.parametrize("max_values", [1 << 22, 500])
def test_curve_lies_on_scikit_learns(max_values):
    rng = np.random.default_rng(1)
    query, gallery = side(rng, 60), side(rng, 80)
    same, different = all_pairs(query, gallery, "euclidean")
    fpr, tpr, _ = roc_curve(
        np.repeat([1, 0], [len(same), len(different)]), -np.concatenate([same, different]), drop_intermediate=False
    )
    exact = set(zip(fpr.round(12), tpr.round(12), strict=True))
    result = verify_pairs(query, gallery, max_values=max_values)
    assert len(result.roc) > 30
    assert {(round(x, 12), round(y, 12)) for x, y in result.roc} <= exact
    assert result.roc[-1] == (1.0, 1.0)
    assert sorted(result.roc) == list(result.roc)


def test_hand_example_of_sets():
    def on_a_line(at, person, drop):
        return Side(np.array(at, np.float32)[:, None], np.array(person), np.array(drop))

    query = on_a_line([0.0], [1], [0])
    gallery = on_a_line([1, 2, 3, 6, 2.5, 5, 7, 8, 0.5, 0.25], [1, 1, 1, 1, 2, 2, 2, 2, 1, 2], [1] * 8 + [0, 0])
    result = verify_pairs(query, gallery, wanted_fpr=(0.25,))
    assert (result.points[0].threshold, result.points[0].fpr, result.points[0].tpr) == (3.0, 0.25, 0.75)
    assert (result.eer, result.eer_threshold) == (0.25, 3.0)
    assert (result.mean_same, result.median_same) == (3.0, 2.5)
    assert (result.mean_different, result.median_different) == (5.625, 6.0)


def test_order_of_the_sets_changes_nothing():
    rng = np.random.default_rng(3)
    query, gallery = side(rng, 50, "duplicated"), side(rng, 90, "duplicated")
    results = []
    for _ in range(3):
        q, g = rng.permutation(50), rng.permutation(90)
        shuffled = [Side(s.embedding[at], s.person[at], s.drop[at]) for s, at in ((query, q), (gallery, g))]
        results.append(verify_pairs(*shuffled, max_values=300))
    for result in results[1:]:
        assert result.eer == results[0].eer
        assert [point.tpr for point in result.points] == [point.tpr for point in results[0].points]


def test_six_million_pairs_in_little_memory():
    rng = np.random.default_rng(4)
    query, gallery = side(rng, 2000, persons=50, width=8), side(rng, 3000, persons=50, width=8)
    tracemalloc.start()
    result = verify_pairs(query, gallery, max_values=1 << 18)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6  # sorting all pairs takes more than 400 MB
    kept = verify_pairs(query, gallery, max_values=1 << 23)
    assert result.eer == kept.eer
    assert result.points == kept.points
    assert all(point.threshold is not None for point in kept.points)


def test_a_set_without_pairs_is_named():
    one = Side(np.zeros((2, 1), np.float32), np.array([1, 1]), np.array([0, 1]))
    with pytest.raises(InputError, match="0 of different persons"):
        verify_pairs(one, one)
    with pytest.raises(InputError, match="unknown metric 'manhattan'"):
        verify_pairs(one, one, metric="manhattan")


def test_progress_names_the_pass(capsys):
    rng = np.random.default_rng(5)
    verify_pairs(side(rng, 30), side(rng, 30), stage="verification", max_values=100)
    assert "[verification] pass 2: pair 900/900" in capsys.readouterr().out
