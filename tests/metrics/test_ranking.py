"""Ranking against hand numbers, a brute-force oracle, scikit-learn and simulated chance."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import ranking
from rgbd_reid_jax.metrics.embeddings import Embeddings

_NAMES = ("person", "camera", "recording", "frame", "clothes")


def make(embedding, person, *, frame=None, modality="rgb", **ids):
    embedding = np.asarray(embedding, np.float32)
    n = len(embedding)
    ids = {"person": person, "camera": 0, "recording": 0, "frame": np.arange(n) if frame is None else frame, **ids}
    columns = {f"{name}_id": np.broadcast_to(np.asarray(ids.get(name, 0)), n).astype(np.int64) for name in _NAMES}
    return Embeddings(embedding=embedding, modality=modality, **columns)


def on_a_line(person, first_frame=1):
    """Gallery items at distance 1, 2, 3, ... from the query at 0, taken by camera 1."""
    distance = np.arange(1, len(person) + 1)[:, None]
    return make(distance, person, camera=1, recording=1, frame=np.arange(len(person)) + first_frame)


def random_set(rng, n, persons, width=6, kind="random", modality="rgb"):
    embedding = rng.normal(size=(n, width)).astype(np.float32)
    if kind == "tied":
        embedding = rng.integers(-1, 2, size=(n, width)).astype(np.float32)
    elif kind == "collapsed":
        embedding[:] = 0.5
    elif kind == "duplicated":
        embedding = embedding[rng.integers(0, max(1, n // 3), n)]
    return make(
        embedding,
        rng.integers(0, persons, n),
        camera=rng.integers(0, 3, n),
        recording=rng.integers(0, 4, n),
        frame=rng.integers(0, 5, n),
        clothes=rng.integers(0, 2, n),
        modality=modality,
    )


def permuted(items, order):
    arrays = {f"{name}_id": getattr(items, f"{name}_id")[order] for name in _NAMES}
    return dataclasses.replace(items, embedding=items.embedding[order], **arrays)


def dropped(query, q, gallery, g, protocol):
    def same(field):
        return getattr(query, field)[q] == getattr(gallery, field)[g]

    return {
        "cross_camera": same("camera_id"),
        "market": same("person_id") and same("camera_id"),
        "twin_excluded": same("recording_id") and same("frame_id"),
        "recording_excluded": same("recording_id"),
    }[protocol]


def oracle(query, gallery, protocol, max_rank=20):
    """Sorts, item by item; others before positives at equal distance. Returns AP and first hit per query, ties."""
    aps, firsts, tied, positives = [], [], 0, 0
    for q in range(len(query)):
        items = []
        for g in range(len(gallery)):
            if not dropped(query, q, gallery, g, protocol):
                difference = query.embedding[q].astype(np.float64) - gallery.embedding[g].astype(np.float64)
                items.append((float((difference**2).sum()), query.person_id[q] == gallery.person_id[g]))
        items.sort()
        ranks = [i + 1 for i, (_, positive) in enumerate(items) if positive]
        others = {distance for distance, positive in items if not positive}
        tied += sum(distance in others for distance, positive in items if positive)
        positives += len(ranks)
        aps.append(np.mean([(k + 1) / r for k, r in enumerate(ranks)]) if ranks else np.nan)
        firsts.append(ranks[0] if ranks else 0)
    return np.array(aps), np.array(firsts), tied / max(positives, 1)


def test_hand_example_has_the_step_average_precision():
    query = make([[0.0]], [7])
    gallery = on_a_line([7, 7, 3, 7, 3, 3, 7, 3])
    result = ranking.rank(query, gallery, "cross_camera")
    assert result.mean_ap == pytest.approx((1 + 1 + 3 / 4 + 4 / 7) / 4)
    assert round(result.mean_ap, 4) == 0.8304
    assert result.first_hit_rank.tolist() == [1]
    assert result.cmc.tolist() == [1.0] * 20


def test_cmc_counts_the_first_hit():
    query = make([[0.0], [0.0]], [3, 5])
    result = ranking.rank(query, on_a_line([7, 3, 7, 7, 5, 7]), "cross_camera", max_rank=6)
    assert result.first_hit_rank.tolist() == [2, 5]
    assert result.cmc.tolist() == [0, 0.5, 0.5, 0.5, 1, 1]
    assert ranking.as_results(result) == {"mAP": pytest.approx(0.35), "rank1": 0.0, "rank5": 1.0, "rank10": 1.0}


def test_ties_count_against_the_positive_in_any_order():
    query = make([[0.0]], [1])
    for person in ([1, 2, 1, 2], [2, 1, 1, 2], [2, 2, 1, 1]):
        result = ranking.rank(query, make(np.ones((4, 1)), person, camera=1), "cross_camera")
        assert result.mean_ap == pytest.approx((1 / 3 + 2 / 4) / 2)
        assert result.tie_rate == 1.0


@pytest.mark.parametrize("protocol", ranking.PROTOCOLS)
@pytest.mark.parametrize("kind", ["random", "tied", "collapsed", "duplicated"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_query=st.integers(1, 8), num_gallery=st.integers(1, 25))
def test_equals_brute_force(protocol, kind, seed, num_query, num_gallery):
    rng = np.random.default_rng(seed)
    query = random_set(rng, num_query, 4, kind=kind)
    gallery = random_set(rng, num_gallery, 4, kind=kind, modality="depth")
    ap, first, tie_rate = oracle(query, gallery, protocol)
    if np.isnan(ap).all():
        with pytest.raises(InputError, match=r"protocol|none of the"):
            ranking.rank(query, gallery, protocol)
        return
    result = ranking.rank(query, gallery, protocol, block=3)
    np.testing.assert_allclose(result.ap, ap, rtol=1e-12)
    np.testing.assert_array_equal(result.first_hit_rank, first)
    np.testing.assert_array_equal(result.skipped, np.isnan(ap))
    assert result.num_query_skipped == np.isnan(ap).sum()
    assert result.tie_rate == pytest.approx(tie_rate)
    assert result.mean_ap == pytest.approx(np.nanmean(ap))
    hits = [(first[first > 0] <= k).mean() for k in range(1, 21)]
    np.testing.assert_allclose(result.cmc, hits)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["random", "tied", "collapsed", "duplicated"]))
def test_gallery_order_and_block_never_change_a_score(seed, kind):
    rng = np.random.default_rng(seed)
    query, gallery = random_set(rng, 17, 4, 37, kind), random_set(rng, 61, 4, 37, kind)
    expected = ranking.rank(query, gallery, "twin_excluded")
    for block in (1, 5, 512):
        result = ranking.rank(query, permuted(gallery, rng.permutation(61)), "twin_excluded", block=block)
        np.testing.assert_array_equal(result.ap, expected.ap)
        np.testing.assert_array_equal(result.cmc, expected.cmc)
        assert result.tie_rate == expected.tie_rate


def test_untied_average_precision_equals_scikit_learn():
    rng = np.random.default_rng(3)
    query, gallery = random_set(rng, 10, 4), random_set(rng, 50, 4)
    result = ranking.rank(query, gallery, "market")
    for q in np.flatnonzero(~result.skipped):
        keep = ranking.valid_items(query, gallery, "market", np.array([q]))[0]
        distance = ranking.squared_distances(query.embedding[q : q + 1], gallery.embedding)[0, keep]
        positive = gallery.person_id[keep] == query.person_id[q]
        assert result.ap[q] == pytest.approx(average_precision_score(positive, -distance), rel=1e-12)


def test_near_duplicates_have_no_negative_distance():
    point = np.full((1, 2048), 1e3, np.float32)
    gallery = np.concatenate([point, np.nextafter(point, np.float32(2e3))])
    distance = ranking.squared_distances(point, gallery)
    assert (distance >= 0).all()
    assert distance[0, 0] == 0


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 7), (3, 3), (4, 9), (2, 30)])
def test_chance_equals_simulation(m, n):
    rng = np.random.default_rng(0)
    ranks = np.sort(rng.permuted(np.tile(np.arange(1, n + 1), (20000, 1)), axis=1)[:, :m], axis=1)
    simulated = (np.arange(1, m + 1) / ranks).mean()
    assert ranking.chance_average_precision(np.array([m]), np.array([n]))[0] == pytest.approx(simulated, abs=6e-3)
    chance = ranking.chance_hit_rate(np.array([m]), np.array([n]), 12)[0]
    exact = [1 - math.comb(n - m, k) / math.comb(n, k) if k <= n else 1.0 for k in range(1, 13)]
    np.testing.assert_allclose(chance, exact, atol=1e-12)
    np.testing.assert_allclose(chance, [(ranks[:, 0] <= k).mean() for k in range(1, 13)], atol=1.2e-2)


def test_random_embeddings_score_near_chance():
    rng = np.random.default_rng(1)
    query, gallery = random_set(rng, 300, 10, 32), random_set(rng, 400, 10, 32)
    result = ranking.rank(query, gallery, "cross_camera")
    assert result.mean_ap == pytest.approx(result.chance_mean_ap, abs=0.02)
    assert ranking.as_chance(result)["rank5"] == pytest.approx(ranking.as_results(result)["rank5"], abs=0.1)


def test_queries_without_a_positive_are_skipped_and_counted():
    query = make([[0.0], [0.0]], [1, 9])
    result = ranking.rank(query, on_a_line([2, 1]), "cross_camera")
    assert result.num_query_skipped == 1
    assert result.skipped.tolist() == [False, True]
    assert np.isnan(result.ap[1])
    assert result.mean_ap == 0.5


@pytest.mark.parametrize("protocol", ranking.PROTOCOLS)
def test_the_rule_that_empties_all_queries_is_named(protocol):
    items = make([[0.0], [1.0]], [1, 2])
    with pytest.raises(InputError, match=f"protocol {protocol} .*leaves none of the 2 queries") as caught:
        ranking.rank(items, items, protocol)
    assert "\n" not in str(caught.value)


def test_persons_missing_from_the_gallery_are_named():
    with pytest.raises(InputError, match="none of the 1 queries' persons appears in the gallery"):
        ranking.rank(make([[0.0]], [1]), on_a_line([2, 3]), "market")


def test_bad_input_is_named():
    query = make([[0.0]], [1])
    with pytest.raises(InputError, match="unknown protocol 'paper'; choose one of cross_camera"):
        ranking.rank(query, query, "paper")
    with pytest.raises(InputError, match="width 1, gallery embeddings 2"):
        ranking.rank(query, make([[0.0, 1.0]], [1]), "market")
    with pytest.raises(InputError, match="0 gallery items"):
        ranking.rank(query, make(np.zeros((0, 1)), []), "market")
    with pytest.raises(InputError, match="block=0"):
        ranking.rank(query, query, "market", block=0)


def test_nearest_lists_valid_items_in_gallery_order_at_ties():
    query = make([[9.0], [0.0]], [1, 1])
    gallery = make([[2.0], [1.0], [2.0], [0.5]], [1, 2, 1, 3], camera=[1, 1, 1, 0])
    index, distance = ranking.nearest(query, gallery, np.array([1]), "cross_camera", 5)
    assert index.tolist() == [[1, 0, 2, -1, -1]]
    np.testing.assert_allclose(distance, [[1.0, 2.0, 2.0, np.inf, np.inf]])


def test_nearest_agrees_with_the_first_hit():
    rng = np.random.default_rng(5)
    query, gallery = random_set(rng, 20, 4), random_set(rng, 40, 4)
    result = ranking.rank(query, gallery, "cross_camera")
    index, _ = ranking.nearest(query, gallery, np.arange(20), "cross_camera", 40)
    for q in np.flatnonzero(~result.skipped):
        hits = gallery.person_id[index[q][index[q] >= 0]] == query.person_id[q]
        assert result.first_hit_rank[q] == np.argmax(hits) + 1


def test_by_clothes_drops_the_positives_of_the_other_group():
    query = make([[0.0]], [1], clothes=[4])
    gallery = make(np.arange(1, 6)[:, None], [1, 2, 1, 2, 1], camera=1, frame=np.arange(5), clothes=[4, 4, 5, 5, 5])
    groups = ranking.by_clothes(query, gallery, "cross_camera")
    assert groups["same_clothes"]["mAP"] == 1.0
    assert groups["changed_clothes"]["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert groups["changed_clothes"]["num_query"] == 1
    assert set(ranking.by_clothes(query, permuted(gallery, np.array([0, 1])), "cross_camera")) == {"same_clothes"}
