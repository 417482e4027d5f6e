"""The papers' protocol against literal loops over drawn images, hand numbers, and what each fault must do."""

import itertools
from typing import Any

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import counting
from rgbd_reid_jax.metrics import paper as module
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS, Embeddings
from rgbd_reid_jax.metrics.paper import FAULTS, paper, paper_compat
from rgbd_reid_jax.metrics.protocols.registry import evaluate

_SHORT: dict[str, Any] = {"images_per_identity": 6, "repeats": 2, "seed": 5}


def make(person, frame, embedding, modality, camera=None):
    person = np.asarray(person)
    camera = np.zeros(len(person), np.int64) if camera is None else camera
    return Embeddings(
        embedding=np.asarray(embedding, np.float32),
        person_id=person,
        camera_id=camera,
        recording_id=person * 10 + camera,
        frame_id=np.asarray(frame),
        modality=modality,
    )


def both_modalities(seed=0, counts=(7, 3, 12, 1, 5), persons=(2, 3, 7, 11, 12), tied=False):
    """RGB and depth of the same frames, listed by person, camera and frame."""
    rng = np.random.default_rng(seed)
    person = np.repeat(persons, counts)
    camera = np.concatenate([np.sort(rng.integers(0, 2, count)) for count in counts])
    centre = rng.normal(size=(20, 4))
    sets = []
    for modality in ("rgb", "depth"):
        embedding = centre[person] + 1.5 * rng.normal(size=(len(person), 4))
        embedding = np.round(embedding) if tied else embedding
        sets.append(make(person, np.arange(len(person)), embedding, modality, camera))
    return sets


def of_direction(sets, direction):
    by_name = {items.modality: items for items in sets}
    return [by_name[modality] for modality in DIRECTIONS[direction]]


def shuffled(items, seed):
    return items.take(np.random.default_rng(seed).permutation(len(items)))


def squared(a, b):
    return float(((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2).sum())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_paper_equals_a_literal_loop(direction, tied):
    query, gallery = of_direction(both_modalities(tied=tied), direction)
    result = paper(query, gallery, **_SHORT)
    for repeat, scores in enumerate(result["per_repeat"]):
        rng = np.random.default_rng([_SHORT["seed"], repeat])
        drawn = []
        for items in (query, gallery):  # listed by person, camera and frame already
            images = {p: np.flatnonzero(items.person_id == p) for p in sorted(set(items.person_id))}
            below = np.repeat([len(rows) for rows in images.values()], 6)
            turn = iter(rng.integers(below))
            drawn.append([rows[next(turn)] for rows in images.values() for _ in range(6)])
        step, trapezoid, inp, ties, positives, skipped = [], [], [], 0, 0, 0
        for q in drawn[0]:
            others, mine = [], []
            for g in drawn[1]:
                if (query.recording_id[q], query.frame_id[q]) == (gallery.recording_id[g], gallery.frame_id[g]):
                    continue
                distance = round(squared(query.embedding[q], gallery.embedding[g]), 6)
                (mine if query.person_id[q] == gallery.person_id[g] else others).append(distance)
            if not mine:
                skipped += 1
                continue
            ranks = [k + sum(other <= distance for other in others) for k, distance in enumerate(sorted(mine), 1)]
            m = len(ranks)
            step.append(sum(k / r for k, r in enumerate(ranks, 1)) / m)
            before = [1.0 if r == 1 else (k - 1) / (r - 1) for k, r in enumerate(ranks, 1)]
            trapezoid.append(sum(k / r + b for (k, r), b in zip(enumerate(ranks, 1), before, strict=True)) / (2 * m))
            inp.append(m / ranks[-1])
            ties += sum(distance in others for distance in mine)
            positives += m
        assert scores["mAP"] == pytest.approx(np.mean(step), abs=1e-12)
        assert scores["mAP_trapezoid"] == pytest.approx(np.mean(trapezoid), abs=1e-12)
        assert scores["mINP"] == pytest.approx(np.mean(inp), abs=1e-12)
        assert scores["num_query_skipped"] == skipped
        assert scores["tie_rate"] == pytest.approx(ties / positives)
    assert result["mAP"] == pytest.approx(np.mean([one["mAP"] for one in result["per_repeat"]]))
    assert result["num_query"] == 2 * 6 * 5
    assert result["num_gallery"] == 6 * 5
    assert result["num_query_skipped"] >= 2 * 6  # the person with a single frame has no other one
    assert result["rank1"] == result["cmc"][0]
    assert result["parameters"] == {"images_per_identity": 6, "repeats": 2, "metric": "euclidean", "seed": 5}


def test_paper_cmc_is_that_of_single_shots():
    query, gallery = of_direction(both_modalities(counts=(5, 5, 5, 5, 5)), "rgb_to_depth")
    rng = np.random.default_rng(0)
    ranks = []
    for _ in range(60):  # one image per identity, drawn without any intermediate set
        for q in range(len(query)):
            distance = {}
            for person in set(gallery.person_id):
                seen = (gallery.person_id == person) & (gallery.frame_id != query.frame_id[q])
                distance[person] = squared(query.embedding[q], gallery.embedding[rng.choice(np.flatnonzero(seen))])
            ranks.append(sum(value <= distance[query.person_id[q]] for value in distance.values()))
    expected = [np.mean(np.array(ranks) <= k) for k in range(1, 6)]
    result = paper(query, gallery, repeats=15, images_per_identity=50)
    np.testing.assert_allclose(result["cmc"][:5], expected, atol=0.035)
    assert 0.2 < expected[0] < 0.8


@pytest.mark.parametrize("protocol", [paper, paper_compat])
def test_order_of_the_rows_changes_nothing_and_the_seed_does(protocol):
    query, gallery = both_modalities()
    expected = protocol(query, gallery, **_SHORT)
    assert protocol(shuffled(query, 1), shuffled(gallery, 2), **_SHORT) == expected
    assert protocol(query, gallery, **{**_SHORT, "seed": 6})["mAP"] != expected["mAP"]


@pytest.mark.parametrize("protocol", ["paper", "paper_compat"])
def test_devices_change_nothing(mesh_of, monkeypatch, protocol):
    query, gallery = both_modalities()
    seen, real = [], counting.gallery_mesh
    monkeypatch.setattr(counting, "gallery_mesh", lambda mesh: seen.append(mesh.size) or real(mesh))
    one, eight = (
        evaluate(protocol, query, gallery, parameters={"repeats": 2}, engine={"mesh": mesh_of(count)})
        for count in (1, 8)
    )
    assert one == eight
    assert seen == ([1, 1, 8, 8] if protocol == "paper" else [])


def test_the_twin_is_seen_in_the_public_code_alone():
    """An RGB image lies on its depth twin, and nearer to other persons than to other images of its own."""
    person, frame = np.repeat(np.arange(6), 10), np.arange(60)
    at = np.stack([frame % 10, person * 0.01], 1).astype(np.float32) * 100  # images of equal place, one per person
    query, gallery = make(person, frame, at, "rgb"), make(person, frame, at, "depth")
    right = paper(query, gallery, repeats=3)
    public = paper_compat(query, gallery, repeats=3)
    assert right["mAP"] < 0.2
    assert public["mAP"] > right["mAP"] + 0.1
    # On average one instant in ten of the own person's was drawn; nearly all of them stay, and others vanish.
    assert public["num_twins_kept"] > 0.9 * 3 * 250 * 5
    assert public["num_others_lost"] == pytest.approx(public["num_twins_kept"], rel=0.01)


def test_identities_without_an_image_are_counted():
    query, gallery = both_modalities()
    fewer = gallery.take(gallery.person_id != 7)
    result = paper(query, fewer, **_SHORT)
    assert result["num_query_absent"] == 2 * 6
    assert result["num_query_skipped"] == 2 * (6 + 6)  # person 11 has one frame
    assert result["num_identity"] == {"query": 5, "gallery": 4, "both": 4}
    more = paper(query.take(query.person_id != 7), gallery, **_SHORT)
    assert more["num_query_absent"] == 0
    assert more["num_gallery"] == 6 * 5


def public_draw(random, rows_of):
    """Draws per person in ascending order but for the highest, in row order."""
    rows = []
    for person in sorted(rows_of)[:-1]:
        rows += [rows_of[person][random.randint(len(rows_of[person]))] for _ in range(6)]
    return sorted(rows)


def curve_areas(match, distance):
    """Step and trapezoid areas under the points (recall, precision) after each distinct distance; (0, 1) begins."""
    points, found, seen, i = [(0.0, 1.0)], 0, 0, 0
    while i < len(match) and found < sum(match):
        same = [j for j in range(i, len(match)) if distance[j] - distance[i] <= 1e-8]
        found, seen, i = found + sum(match[j] for j in same), seen + len(same), same[-1] + 1
        points.append((found / sum(match), found / seen))
    pairs = list(itertools.pairwise(points))
    return sum((b[0] - a[0]) * b[1] for a, b in pairs), sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compat_equals_a_literal_loop(direction, tied):
    sets = both_modalities(tied=tied)
    query, gallery = of_direction(sets, direction)
    result = paper_compat(query, gallery, **_SHORT)
    rows_of = {p: list(np.flatnonzero(query.person_id == p)) for p in sorted(set(query.person_id))}
    name = [(items.recording_id[0], items.frame_id) for items in sets]
    assert (name[0][1] == name[1][1]).all()  # both modalities list the same frames, so a row number names an instant
    for repeat, scores in enumerate(result["per_repeat"]):
        random = np.random.RandomState(_SHORT["seed"] + repeat)
        gallery_1, query_1, gallery_2, query_2 = (public_draw(random, rows_of) for _ in range(4))
        mine, theirs = {"rgb": (query_1, gallery_1), "depth": (query_2, gallery_2)}, DIRECTIONS[direction]
        queries, images = mine[theirs[0]][0], mine[theirs[1]][1]
        masked = (query_2, gallery_2) if direction == "rgb_to_rgb" else (queries, images)
        step, trapezoid, ranks = [], [], []
        for i, q in enumerate(queries):
            ordered = sorted((squared(query.embedding[q], gallery.embedding[g]), j) for j, g in enumerate(images))
            shown = [place for j, place in enumerate(ordered) if masked[0][i] != masked[1][j]]
            persons = [int(gallery.person_id[images[j]]) for _, j in shown]
            match = [person == query.person_id[q] for person in persons]
            if not any(match):
                continue
            areas = curve_areas(match, [distance for distance, _ in shown])
            step.append(areas[0])
            trapezoid.append(areas[1])
            for _ in range(15):
                drawn = {}
                for person in dict.fromkeys(persons):
                    places = [place for place, other in enumerate(persons) if other == person]
                    drawn[person] = places[random.randint(len(places))]
                ranks.append(1 + sum(place < drawn[query.person_id[q]] for place in drawn.values()))
        assert scores["mAP"] == pytest.approx(np.mean(step), abs=1e-12)
        assert scores["mAP_trapezoid"] == pytest.approx(np.mean(trapezoid), abs=1e-12)
        assert scores["cmc"] == pytest.approx([np.mean(np.array(ranks) <= k) for k in range(1, 21)], abs=1e-12)
    assert result["num_query"] == 2 * 6 * 4
    assert result["identities_dropped"] == {"query": 12, "gallery": 12}


def test_faults_are_named_where_they_act():
    sets = both_modalities()
    for direction in DIRECTIONS:
        faults = {one["name"]: one["words"] for one in paper_compat(*of_direction(sets, direction), **_SHORT)["faults"]}
        expected = set(FAULTS) if direction == "rgb_to_rgb" else set(FAULTS) - {"mask_of_the_other_modality"}
        assert set(faults) == expected
        assert all(faults.values())


def test_areas_of_hand_examples():
    ranks = np.isin(np.arange(1, 9), [1, 2, 4, 7])
    step, trapezoid, inp, tied = module._public_scores(ranks, np.arange(8.0))
    assert (round(step, 4), round(trapezoid, 4), round(inp, 4), tied) == (0.8304, 0.811, 0.5714, 0)
    # An image drawn twice is one step: from (0, 0) after the other person to (1, 2/3).
    step, trapezoid, inp, tied = module._public_scores(np.array([False, True, True]), np.array([1.0, 2.0, 2.0]))
    assert (step, trapezoid) == pytest.approx((2 / 3, 1 / 3))
    # A tie with another person counts half against and half for: one step from (0, 1) to (1, 1/2).
    step, trapezoid, _, tied = module._public_scores(np.array([True, False]), np.array([1.0, 1.0]))
    assert (step, trapezoid, tied) == pytest.approx((0.5, 0.75, 1))


def test_mistakes_are_named():
    query, gallery = both_modalities()
    one = query.take(query.person_id == 7)
    with pytest.raises(InputError, match="holds one identity, and paper_compat leaves the highest one out"):
        paper_compat(one, gallery)
    with pytest.raises(InputError, match="repeats=0 must be at least 1"):
        paper(query, gallery, repeats=0)
    with pytest.raises(InputError, match="seed=4294967295 is too large for the public code's generator"):
        paper_compat(query, gallery, **{**_SHORT, "seed": 2**32 - 1})
    bare = Embeddings(query.embedding, query.person_id, query.camera_id, modality="rgb")
    for protocol in (paper, paper_compat):
        with pytest.raises(InputError, match="lacks recording_id"):
            protocol(bare, gallery)
    strangers = make(np.arange(30, 36), np.arange(6), np.zeros((6, 4)), "depth")
    with pytest.raises(InputError, match="none of the"):
        paper(query, strangers, **_SHORT)
    with pytest.raises(InputError, match="same person_id for the same person"):
        paper_compat(query, strangers, **_SHORT)
