"""Ranking under a rule against hand numbers and brute force; what is skipped, and why; groups and rank lists."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import dense, ranking
from rgbd_reid_jax.metrics.embeddings import Embeddings

_NAMES = ("person", "camera", "recording", "frame", "clothes")


def make(embedding, person, *, frame=None, modality="rgb", **ids):
    embedding = np.asarray(embedding, np.float32)
    n = len(embedding)
    ids = {"person": person, "camera": 0, "recording": person, "frame": np.arange(n) if frame is None else frame, **ids}
    columns: dict[str, Any] = {
        f"{name}_id": np.broadcast_to(np.asarray(ids.get(name, 0)), n).astype(np.int64) for name in _NAMES
    }
    kind = np.broadcast_to(np.asarray(ids.get("recording_type", 0)), n)
    return Embeddings(embedding=embedding, modality=modality, recording_type=kind, **columns)


def on_a_line(person, first_frame=1):
    """Gallery items at distance 1, 2, 3, ... from the query at 0, taken by camera 1."""
    distance = np.arange(1, len(person) + 1)[:, None]
    recording = np.asarray(person) + 100
    return make(distance, person, camera=1, recording=recording, frame=np.arange(len(person)) + first_frame)


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
        recording=rng.integers(0, 4, n),  # of several persons: a rule drops them all
        frame=rng.integers(0, 5, n),
        clothes=rng.integers(0, 2, n),
        modality=modality,
    )


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
    result = ranking.rank(query, on_a_line([7, 3, 7, 7, 5, 7]), "cross_camera", max_rank=10)
    assert result.first_hit_rank.tolist() == [2, 5]
    assert result.cmc.tolist() == [0, 0.5, 0.5, 0.5, *[1] * 6]
    assert ranking.as_results(result) == {"mAP": pytest.approx(0.35), "rank1": 0.0, "rank5": 1.0, "rank10": 1.0}


def test_ties_count_against_the_positive_in_any_order():
    query = make([[0.0]], [1])
    for person in ([1, 2, 1, 2], [2, 1, 1, 2], [2, 2, 1, 1]):
        result = ranking.rank(query, make(np.ones((4, 1)), person, camera=1), "cross_camera")
        assert result.mean_ap == pytest.approx((1 / 3 + 2 / 4) / 2)
        assert result.tie_rate == 1.0


@pytest.mark.parametrize("protocol", ranking.RULES)
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
    result = ranking.rank(query, gallery, protocol, query_block=3)
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
def test_gallery_order_never_changes_a_score(seed, kind):
    rng = np.random.default_rng(seed)
    query, gallery = random_set(rng, 17, 4, 37, kind), random_set(rng, 61, 4, 37, kind)
    expected = ranking.rank(query, gallery, "twin_excluded")
    for _ in range(3):
        result = ranking.rank(query, gallery.take(rng.permutation(61)), "twin_excluded")
        np.testing.assert_array_equal(result.ap, expected.ap)
        np.testing.assert_array_equal(result.cmc, expected.cmc)
        assert result.tie_rate == expected.tie_rate


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


@pytest.mark.parametrize("protocol", ranking.RULES)
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
    with pytest.raises(InputError, match="unknown protocol 'paper'; choose one of market"):
        ranking.rank(query, query, "paper")
    with pytest.raises(InputError, match="width 1, gallery embeddings 2"):
        ranking.rank(query, make([[0.0, 1.0]], [1]), "market")
    with pytest.raises(InputError, match="holds 0 gallery items"):
        ranking.rank(query, make(np.zeros((0, 1)), []), "market")
    with pytest.raises(InputError, match="max_rank=9 must be at least 10"):
        ranking.rank(query, query, "market", max_rank=9)
    with pytest.raises(InputError, match="Embeddings lacks gate, which metric gated needs"):
        ranking.rank(query, query, "market", metric="gated")
    plain = Embeddings(np.zeros((2, 1)), np.arange(2), np.arange(2), source="a.npz")
    with pytest.raises(
        InputError, match=r"a\.npz lacks frame_id|a\.npz lacks recording_id, which protocol twin_excluded"
    ):
        ranking.rank(plain, plain, "twin_excluded")


def test_reasons_of_skipped_queries_are_counted_apart():
    query = make(np.zeros((4, 1)), [1, 2, 3, 9], camera=[0, 1, 1, 0])
    gallery = make([[1.0], [2.0], [3.0]], [1, 2, 3], camera=1, recording=[11, 12, 13])
    result = ranking.rank(query, gallery, "market")
    assert (result.num_query_skipped, result.num_query_absent) == (3, 1)
    assert result.skipped.tolist() == [False, True, True, True]


def hiding_oracle(query, gallery, protocol):
    """num_valid: what a query still sees, item by item."""
    return [sum(not dropped(query, q, gallery, g, protocol) for g in range(len(gallery))) for q in range(len(query))]


@pytest.mark.parametrize("protocol", ranking.RULES)
def test_valid_items_and_chance_count_what_the_rule_leaves(protocol):
    rng = np.random.default_rng(4)
    query, gallery = random_set(rng, 15, 3), random_set(rng, 30, 3)
    expected = hiding_oracle(query, gallery, protocol)
    assert ranking.valid_items(query, gallery, protocol).sum(1).tolist() == expected
    assert ranking.rank(query, gallery, protocol).ranks.num_valid.tolist() == expected


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


@pytest.mark.parametrize("protocol", ranking.RULES)
@pytest.mark.parametrize(
    ("kind", "metric"),  # whole numbers tie exactly, but not their cosines
    [("random", "euclidean"), ("tied", "euclidean"), ("random", "cosine"), ("duplicated", "cosine")],
)
def test_ranks_of_distances_equal_those_of_the_engine(protocol, kind, metric):
    rng = np.random.default_rng(7)
    query, gallery = random_set(rng, 20, 4, kind=kind), random_set(rng, 40, 4, kind=kind)
    rows = rng.permutation(20)
    visible = ranking.valid_items(query, gallery, protocol, rows)
    block = rows, dense.matrix(query, gallery, metric)[rows].round(9), visible
    found = dense.dense_ranks([block], query.person_id, gallery.person_id)
    expected = ranking.rank(query, gallery, protocol, metric=metric).ranks
    for name in ("start", "others_ahead", "tied", "num_valid"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.distance, expected.distance, atol=1e-7)


def test_groups_drop_the_positives_of_other_groups():
    query = make([[0.0]], [1], clothes=[4])
    gallery = make(np.arange(1, 6)[:, None], [1, 2, 1, 2, 1], camera=1, clothes=[4, 4, 5, 5, 5])
    groups = ranking.groups(ranking.rank(query, gallery, "cross_camera"), query, gallery)
    assert groups["clothes"]["same_clothes"]["mAP"] == 1.0
    assert groups["clothes"]["changed_clothes"]["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert groups["clothes"]["changed_clothes"]["num_query"] == 1
    assert list(groups["clothes"]) == ["same_clothes", "changed_clothes"]
    one = gallery.take(np.array([0, 1]))
    assert list(ranking.groups(ranking.rank(query, one, "cross_camera"), query, one)["clothes"]) == ["same_clothes"]


def test_groups_by_camera_and_recording_type():
    query = make([[0.0], [0.0]], [1, 2], camera=[0, 5], recording_type=[1, 2])
    gallery = make([[1.0], [2.0], [3.0]], [2, 1, 1], camera=[1, 1, 2])
    groups = ranking.groups(ranking.rank(query, gallery, "cross_camera"), query, gallery)
    assert {pair: (found["mAP"], found["num_query"]) for pair, found in groups["camera_pair"].items()} == {
        "0_to_1": (0.5, 1),  # ranks of person 1: 2 and 3
        "0_to_2": (0.5, 1),  # its only positive of camera 2: behind person 2, the one of camera 1 is dropped
        "5_to_1": (1.0, 1),
    }
    assert groups["recording_type"]["standing"]["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert groups["recording_type"]["walking"]["mAP"] == 1.0


def test_intervals_hold_the_score():
    rng = np.random.default_rng(0)
    query, gallery = random_set(rng, 200, 9, 2), random_set(rng, 200, 9, 2)
    result = ranking.rank(query, gallery, "market")
    bounds = ranking.intervals(result, query.person_id)
    assert bounds["mAP"][0] < result.mean_ap < bounds["mAP"][1]
    assert bounds["rank1"][0] < result.cmc[0] < bounds["rank1"][1]
    assert bounds == ranking.intervals(result, query.person_id)
    assert bounds != ranking.intervals(result, query.person_id, seed=1)
