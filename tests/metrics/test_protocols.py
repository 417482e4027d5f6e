"""Protocols against plain loops: each oracle is written from the definition, in float64, without the engine."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.protocols import sysu
from rgbd_reid_jax.metrics.protocols.base import Task, canonical_order
from rgbd_reid_jax.metrics.protocols.passages import SCENARIOS, mean_of_frames
from rgbd_reid_jax.metrics.protocols.registry import PROTOCOLS, evaluate
from rgbd_reid_jax.metrics.protocols.single_shot import hit_rates

_CAMERAS = np.array(["flat", "upward", "downward"])


def of(*columns: Any, **named: Any) -> Embeddings:
    """A set of plain lists."""
    return Embeddings(*columns, **named)


def make(seed, n=60, persons=5, cameras=(0, 1, 2), width=3, levels=None):
    """Random items; with `levels`, embeddings are whole numbers, so that many tie."""
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(n, width)) if levels is None else rng.integers(0, levels, (n, width))
    person, camera = rng.integers(0, persons, n), rng.choice(cameras, n)
    walk = rng.integers(0, 2, n)
    return Embeddings(
        embedding.astype(np.float32),
        person,
        camera,
        recording_id=person * 100 + camera * 10 + walk,
        frame_id=rng.integers(0, 6, n),
        clothes_id=person,
        recording_type=walk,
        camera_name=_CAMERAS[camera % 3],
        passage_name=walk,
    )


def distance(query, q, gallery, g):
    difference = query.embedding[q].astype(np.float64) - gallery.embedding[g].astype(np.float64)
    return float(np.sqrt((difference**2).sum()))


def average_precisions(items):
    """(step, trapezoid) AP and INP of [(distance, is positive)]; others stand before positives at equal distance."""
    ranks = [i + 1 for i, (_, positive) in enumerate(sorted(items)) if positive]
    step = [(k + 1) / r for k, r in enumerate(ranks)]
    before = [1.0 if r == 1 else k / (r - 1) for k, r in enumerate(ranks)]
    trapezoid = [(a + b) / 2 for a, b in zip(step, before, strict=True)]
    return np.mean(step), np.mean(trapezoid), len(ranks) / ranks[-1]


def dropped(query, q, gallery, g, rule):
    def same(field):
        return getattr(query, field)[q] == getattr(gallery, field)[g]

    return {
        "cross_camera": same("camera_id"),
        "market": same("person_id") and same("camera_id"),
        "twin_excluded": same("recording_id") and same("frame_id"),
        "recording_excluded": same("recording_id"),
    }[rule]


@pytest.mark.parametrize("rule", ["market", "cross_camera", "twin_excluded", "recording_excluded"])
@pytest.mark.parametrize("levels", [None, 3])
def test_exclusion_rules_equal_plain_loops(rule, levels):
    query, gallery = make(0, 30, levels=levels), make(1, 50, levels=levels)
    found = evaluate(rule, query, gallery)
    scores = []
    for q in range(len(query)):
        seen = [g for g in range(len(gallery)) if not dropped(query, q, gallery, g, rule)]
        items = [(distance(query, q, gallery, g), bool(query.person_id[q] == gallery.person_id[g])) for g in seen]
        if any(positive for _, positive in items):
            scores.append(average_precisions(items))
    assert found["num_query"] - found["num_query_skipped"] == len(scores)
    values = [found[key] for key in ("mAP", "mAP_trapezoid", "mINP")]
    np.testing.assert_allclose(values, np.mean(scores, 0), atol=1e-6)


def expected_hits(query, q, gallery, rule, max_rank):
    """The CMC of one query over all possible draws of one image per person, each equally likely."""
    seen = [g for g in range(len(gallery)) if not dropped(query, q, gallery, g, rule)]
    person = int(query.person_id[q])
    images = {}
    for g in seen:
        images.setdefault(int(gallery.person_id[g]), []).append(distance(query, q, gallery, g))
    if person not in images:
        return None
    mine = images.pop(person)
    draws = list(itertools.product(mine, *images.values()))
    ranks = np.array([1 + sum(other <= own for other in others) for own, *others in draws])
    return [(ranks <= k).mean() for k in range(1, max_rank + 1)]


@pytest.mark.parametrize("rule", ["market", "cross_camera", "twin_excluded", "recording_excluded"])
@pytest.mark.parametrize("levels", [None, 2])
def test_single_shot_draws_have_the_mean_of_all_draws(rule, levels):
    query, gallery = make(2, 12, 4, levels=levels), make(3, 22, 4, levels=levels)
    rates = hit_rates(Task(query, gallery, "euclidean", 0, 4, {"repeats": 3000}), rule)
    for q in range(len(query)):
        expected = expected_hits(query, q, gallery, rule, 4)
        if expected is None:
            assert np.isnan(rates[q]).all()
        else:
            np.testing.assert_allclose(rates[q], expected, atol=0.04)


def test_single_shot_of_single_images_is_exact():
    query, gallery = make(4, 20, 6), make(5, 6, 6).take(np.arange(6))
    gallery = of(gallery.embedding, np.arange(6), np.full(6, 9))
    found = evaluate("cuhk03", query, gallery)
    ranks = []
    for q in range(len(query)):
        distances = [distance(query, q, gallery, g) for g in range(6)]
        ranks.append(sum(other <= distances[query.person_id[q]] for other in distances))
    np.testing.assert_allclose(found["cmc"][:6], [(np.array(ranks) <= k).mean() for k in range(1, 7)])
    assert found["mAP"] == pytest.approx(np.mean(1 / np.array(ranks)))


def shuffled(items, seed):
    return items.take(np.random.default_rng(seed).permutation(len(items)))


@pytest.mark.parametrize(
    ("name", "cameras", "parameters"),
    [
        ("single_gallery_shot", ((0, 1, 2), (0, 1, 2)), {"rule": "cross_camera", "repeats": 3}),
        ("single_gallery_shot", ((0, 1, 2), (0, 1, 2)), {"repeats": 3}),
        ("cuhk03", ((0, 1, 2), (0, 1, 2)), {}),
        ("sysu_mm01", ((3, 6), (1, 2, 4, 5)), {"trials": 3}),
        ("sysu_mm01", ((3, 6), (1, 2, 4, 5)), {"search": "indoor", "shots": 2, "trials": 2}),
        ("tvrid", ((0, 1, 2), (0, 1, 2)), {}),
        ("market", ((0, 1, 2), (0, 1, 2)), {}),
    ],
)
def test_draws_follow_the_seed_and_no_order_of_rows(name, cameras, parameters):
    query, gallery = make(6, 60, cameras=cameras[0]), make(7, 80, cameras=cameras[1])
    first = evaluate(name, query, gallery, parameters=parameters, seed=3)
    again = evaluate(name, shuffled(query, 0), shuffled(gallery, 1), parameters=parameters, seed=3)
    for key in ("mAP", "mAP_trapezoid", "mINP", "cmc", "tie_rate", "num_query_skipped"):
        np.testing.assert_allclose(first[key], again[key], atol=1e-12, err_msg=key)
    assert first == evaluate(name, query, gallery, parameters=parameters, seed=3)
    other = evaluate(name, query, gallery, parameters=parameters, seed=4)
    assert (first["cmc"] != other["cmc"]) == (name not in ("market", "tvrid"))


@pytest.mark.parametrize("rule", ["market", "twin_excluded"])
@pytest.mark.parametrize("changes", [{"rerank": (8, 3, 0.3)}, {"query_expansion": 3}])
@pytest.mark.parametrize("levels", [2, 3])
def test_the_order_of_ties_does_not_change_what_is_averaged_or_reranked(rule, changes, levels):
    """Whole numbers: which of the equally near items are among the first k is for no order of rows to say."""
    query, gallery = make(25, 60, width=4, levels=levels), make(26, 90, width=4, levels=levels)
    first = evaluate(rule, query, gallery, groups=True, **changes)
    again = evaluate(rule, shuffled(query, 0), shuffled(gallery, 1), groups=True, **changes)
    for key in ("mAP", "mAP_trapezoid", "mINP", "cmc", "tie_rate"):
        np.testing.assert_allclose(first[key], again[key], atol=1e-12, err_msg=key)
    for kind, members in first["groups"].items():
        for name, numbers in members.items():
            assert again["groups"][kind][name] == pytest.approx(numbers, abs=1e-12)


def test_equal_rows_are_the_only_ones_whose_order_is_open():
    items = make(8, 200, levels=2)
    rows = shuffled(items, 0)
    for key in ("person_id", "camera_id", "embedding"):
        np.testing.assert_array_equal(
            getattr(items, key)[canonical_order(items)], getattr(rows, key)[canonical_order(rows)]
        )


def sysu_oracle(query, gallery, max_rank):
    """(step, trapezoid, INP) and hits by rank among persons, [Q, ...], of one drawn gallery."""
    scores, hits = [], []
    for q in range(len(query)):
        items, nearest = [], {}
        for g in range(len(gallery)):
            if query.camera_id[q] == 3 and gallery.camera_id[g] == 2:
                continue
            person, far = int(gallery.person_id[g]), distance(query, q, gallery, g)
            items.append((far, person == query.person_id[q]))
            nearest[person] = min(far, nearest.get(person, np.inf))
        own = nearest.get(int(query.person_id[q]))
        if own is None:
            continue
        scores.append(average_precisions(items))
        rank = sum(other <= own for other in nearest.values())
        hits.append([rank <= k for k in range(1, max_rank + 1)])
    return np.array(scores), np.array(hits)


@pytest.mark.parametrize(("search", "shots"), [("all", 1), ("indoor", 1), ("all", 2)])
@pytest.mark.parametrize("levels", [None, 3])
def test_sysu_equals_plain_loops_over_the_drawn_galleries(search, shots, levels):
    query = make(9, 40, 6, cameras=(1, 3, 6), levels=levels)
    gallery = make(10, 120, 6, cameras=(1, 2, 3, 4, 5), levels=levels)
    parameters = {"search": search, "shots": shots, "trials": 4}
    found = evaluate("sysu_mm01", query, gallery, parameters=parameters, seed=5)
    query = query.take(np.isin(query.camera_id, (3, 6)))
    gallery = gallery.take(np.isin(gallery.camera_id, (1, 2, 4, 5) if search == "all" else (1, 2)))
    gallery = gallery.take(canonical_order(gallery, "camera_id"))
    rng = np.random.default_rng(5)
    trials = [sysu_oracle(query, gallery.take(sysu._draw(gallery, shots, rng)), 20) for _ in range(4)]
    scores, hits = (np.mean(column, axis=0) for column in zip(*trials, strict=True))
    np.testing.assert_allclose([found[key] for key in ("mAP", "mAP_trapezoid", "mINP")], scores.mean(0), atol=1e-9)
    np.testing.assert_allclose(found["cmc"], hits.mean(0), atol=1e-12)
    assert found["num_query"] == len(query)


def test_sysu_draws_shots_of_each_person_and_camera():
    gallery = make(11, 200, 5, cameras=(1, 2))
    gallery = gallery.take(canonical_order(gallery, "camera_id"))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(50):
        rows = sysu._draw(gallery, 3, rng)
        assert len(set(rows.tolist())) == len(rows)
        pairs, count = np.unique(
            np.stack([gallery.person_id[rows], gallery.camera_id[rows]]), axis=1, return_counts=True
        )
        assert pairs.shape[1] == 10
        assert (count == 3).all()
        seen |= set(rows.tolist())
    assert len(seen) > 190


def tvrid_oracle(query, gallery):
    """Mean over scenarios of (step, trapezoid, INP), from passages by plain loops."""

    def passages(items):
        found = []
        for code in np.unique(items.recording_id):
            rows = items.recording_id == code
            row = np.flatnonzero(rows)[0]
            mean = items.embedding[rows].astype(np.float64).mean(0)
            found.append((mean, items.person_id[row], items.camera_name[row], items.passage_name[row]))
        return found

    scenarios = {
        "same_cam_cross_passage": lambda a, b: a == b,
        "up_down_cross_passage": lambda a, b: {a, b} == {"upward", "downward"},
        "flat_vs_others": lambda a, b: (a == "flat") != (b == "flat"),
    }
    found = {}
    for name, compares in scenarios.items():
        scores = []
        for embedding, person, camera, passage in passages(query):
            items = [
                (float(np.sqrt(((embedding - other) ** 2).sum())), bool(person == other_person))
                for other, other_person, other_camera, other_passage in passages(gallery)
                if passage != other_passage and compares(str(camera), str(other_camera))
            ]
            if any(positive for _, positive in items):
                scores.append(average_precisions(items))
        found[name] = np.mean(scores, 0)
    return found


def test_tvrid_equals_plain_loops():
    query, gallery = make(12, 150), make(13, 150)
    found = evaluate("tvrid", query, gallery)
    expected = tvrid_oracle(query, gallery)
    keys = ("mAP", "mAP_trapezoid", "mINP")
    for name in SCENARIOS:
        np.testing.assert_allclose([found["scenarios"][name][key] for key in keys], expected[name], atol=1e-6)
    np.testing.assert_allclose([found[key] for key in keys], np.mean(list(expected.values()), 0), atol=1e-6)
    assert found["intervals"]["mAP"][0] < found["mAP"] < found["intervals"]["mAP"][1]


def test_intervals_of_scenarios_of_unequal_size_stay_within_the_scores():
    """Perfect embeddings; most persons have no passage of the downward camera, so one scenario has few queries."""
    camera, walk = (column.ravel() for column in np.meshgrid(np.tile(np.arange(3), 12), [0, 1]))
    person = np.tile(np.repeat(np.arange(12), 3), 2)
    kept = (camera != 2) | (person < 2)
    items = of(
        np.eye(12)[person[kept]],
        person[kept],
        camera[kept],
        np.arange(kept.sum()),
        camera_name=_CAMERAS[camera[kept]],
        passage_name=walk[kept],
    )
    found = evaluate("tvrid", items, items)
    scored = [one["num_query"] - one["num_query_skipped"] for one in found["scenarios"].values()]
    assert scored == [52, 8, 52]
    assert found["mAP"] == 1.0
    assert set(map(tuple, found["intervals"].values())) == {(1.0, 1.0)}


def test_tvrid_takes_camera_numbers_for_names():
    query, gallery = make(12, 150), make(13, 150)
    found = evaluate("tvrid", query, gallery)
    plain = [
        of(items.embedding, items.person_id, items.camera_id, items.recording_id, passage_name=items.passage_name)
        for items in (query, gallery)
    ]
    roles = {"flat": 0, "upward": 1, "downward": "2"}
    again = evaluate("tvrid", *plain, parameters=roles)
    assert again["mAP"] == pytest.approx(found["mAP"], abs=1e-6)
    with pytest.raises(InputError, match=r"hold no camera 'flat' \(but: 0, 1, 2\)"):
        evaluate("tvrid", *plain)


def test_the_mean_over_frames():
    items = of(np.array([[1.0], [5.0], [3.0]]), [1, 2, 1], [0, 0, 0], [7, 5, 7], [0, 0, 1])
    mean = mean_of_frames(items)
    assert mean.embedding.tolist() == [[5.0], [2.0]]
    assert mean.person_id.tolist() == [2, 1]
    assert mean.column("recording_id", "test").tolist() == [5, 7]
    assert mean.column("frame_id", "test").tolist() == [0, 0]
    wide = of(
        np.array([[1e16], [1.0], [-1e16], [3.0]]), [1] * 4, [0] * 4, [7] * 4
    )  # a float64 sum in which order shows
    assert len({mean_of_frames(shuffled(wide, seed)).embedding.item() for seed in range(20)}) == 1
    mixed = of(np.zeros((2, 1)), [1, 2], [0, 0], [7, 7])
    with pytest.raises(InputError, match="frames of recording_id 7 differ in person_id"):
        mean_of_frames(mixed)


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "verification"])
def test_results_name_their_definitions_and_are_json(name):
    found = evaluate(name, make(14, 90, cameras=(0, 1, 2, 3, 4, 5, 6)), make(15, 90, cameras=(0, 1, 2, 3, 4, 5, 6)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["protocol"]["name"] == name
    assert found["protocol"]["seed"] == 0
    assert found["protocol"]["words"]
    assert {"mAP", "cmc"} <= set(found["definitions"]) <= set(found)
    assert len(found["cmc"]) == 20
    assert found["mAP_trapezoid"] <= found["mAP"]
    assert set(found["intervals"]) == {"mAP", "mAP_trapezoid", "mINP", "rank1", "rank5", "rank10"}
    for key, (low, high) in found["intervals"].items():
        assert 0 <= low <= found[key] <= high <= 1


@pytest.mark.parametrize("rule", ["market", "cross_camera", "twin_excluded", "recording_excluded"])
def test_expanded_queries_are_means_of_what_they_see(rule):
    query, gallery = make(20, 25), make(21, 40)
    rows = []
    for q in range(len(query)):
        seen = [g for g in range(len(gallery)) if not dropped(query, q, gallery, g, rule)]
        nearest = sorted(seen, key=lambda g: distance(query, q, gallery, g))[:3]
        rows.append(np.concatenate([query.embedding[q : q + 1], gallery.embedding[nearest]]).mean(0, dtype=np.float64))
    expanded = dataclasses.replace(query, embedding=np.array(rows))
    found = evaluate(rule, query, gallery, query_expansion=3)
    assert found["mAP"] == pytest.approx(evaluate(rule, expanded, gallery)["mAP"], abs=1e-6)
    assert found["protocol"]["query_expansion"] == 3


@pytest.mark.parametrize("rule", ["market", "cross_camera", "twin_excluded", "recording_excluded"])
def test_reranking_by_the_original_distance_alone_changes_nothing(rule):
    query, gallery = make(22, 25), make(23, 40)
    found = evaluate(rule, query, gallery, rerank=(6, 3, 1.0), groups=True)
    plain = evaluate(rule, query, gallery, groups=True)
    assert found["protocol"].pop("rerank") == {"k1": 6, "k2": 3, "lambda": 1.0}
    for key in ("mAP", "mAP_trapezoid", "mINP", "cmc", "num_query", "num_query_skipped"):
        assert found[key] == pytest.approx(plain[key], abs=1e-12)
    assert found["intervals"]["mAP"] == pytest.approx(plain["intervals"]["mAP"], abs=1e-12)
    for kind, members in plain["groups"].items():
        for name, numbers in members.items():
            assert found["groups"][kind][name] == pytest.approx(numbers, abs=1e-12)
    assert evaluate(rule, query, gallery, rerank=(6, 3, 0.0))["mAP"] != plain["mAP"]


def test_an_expanded_query_never_sees_its_twin():
    items = dataclasses.replace(make(24, 30), frame_id=np.arange(30))
    one, other = items.take(np.array([0])), dataclasses.replace(items, embedding=items.embedding.copy())
    other.embedding[0] += 100.0
    first, second = (evaluate("twin_excluded", one, gallery, query_expansion=3) for gallery in (items, other))
    assert first["mAP"] == second["mAP"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "papper"}, "unknown protocol 'papper'; choose one of market"),
        ({"metric": "manhattan"}, "unknown metric 'manhattan'; choose one of euclidean"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"max_rank": 9}, "max_rank=9 must be at least 10"),
        ({"parameters": {"repeats": "many"}}, "cuhk03: repeats='many' is not of the form repeats=10"),
        ({"parameters": {"repeats": 0}}, "cuhk03: repeats=0 must be at least 1"),
        ({"parameters": {"trials": 3}}, "cuhk03 has no parameter 'trials'; its parameters and defaults: repeats=10"),
        ({"groups": True}, "cuhk03 has no groups; choose one of market"),
        ({"rerank": (20, 6, 0.3)}, "cuhk03 has no rerank; choose one of market"),
        ({"query_expansion": 2}, "cuhk03 has no query_expansion; choose one of market"),
        ({"name": "market", "rerank": (0, 6, 0.3)}, "k1=0 must be at least 1"),
        ({"name": "market", "query_expansion": -1}, "k=-1 must be at least 1"),
        ({"name": "sysu_mm01", "parameters": {"search": "outdoor"}}, "search='outdoor' is unknown"),
        ({"name": "sysu_mm01"}, r"holds no image of the query cameras 3, 6 \(its camera_id: 0, 1, 2\)"),
        ({"name": "single_gallery_shot", "parameters": {"rule": "paper"}}, "rule='paper' is unknown; choose one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    query, gallery = make(16), make(17)
    with pytest.raises(InputError, match=message) as caught:
        evaluate(**{"name": "cuhk03", "query": query, "gallery": gallery, **arguments})
    assert "\n" not in str(caught.value)


def test_sysu_says_which_rule_left_nothing():
    query = of(np.zeros((2, 1)), [1, 2], [3, 3], source="q.npz")
    gallery = of(np.zeros((2, 1)), [1, 2], [2, 2], source="g.npz")
    with pytest.raises(InputError, match="queries of camera 3 do not see camera 2"):
        evaluate("sysu_mm01", query, gallery)
    strangers = of(np.zeros((2, 1)), [8, 9], [1, 1], source="g.npz")
    with pytest.raises(InputError, match=r"persons of q\.npz do not appear in g\.npz"):
        evaluate("sysu_mm01", query, strangers)


@pytest.mark.parametrize("rule", ["market", "cross_camera", "twin_excluded", "recording_excluded"])
def test_verification_says_which_rule_left_no_pair(rule):
    items = of(np.zeros((2, 1)), [1, 2], [0, 0], [5, 6], [0, 0], source="a.npz")
    with pytest.raises(
        InputError, match=rf"verification with rule={rule} \(.*dropped\): 0 pairs of the same"
    ) as caught:
        evaluate("verification", items, items, parameters={"rule": rule})
    assert "\n" not in str(caught.value)


def test_protocols_with_a_rule_say_which_one_needs_no_more_keys():
    bare = of(np.zeros((2, 1)), [1, 2], [0, 0], source="a.npz")
    for name in ("verification", "single_gallery_shot"):
        with pytest.raises(InputError, match=r"a\.npz lacks recording_id, .*\(rule=market does without\)"):
            evaluate(name, bare, bare)


def test_tvrid_says_which_scenario_left_nothing():
    items = make(18, 60)
    one_walk = of(
        items.embedding,
        items.person_id,
        items.camera_id,
        np.arange(60),
        camera_name=items.camera_name,
        passage_name=[1] * 60,
    )
    with pytest.raises(InputError, match="scenario same_cam_cross_passage leaves none of the 60 query passages"):
        evaluate("tvrid", one_walk, one_walk)
