"""Queries that a rule leaves without a positive, from labels alone: against the ranking itself."""

import re

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.galleries import check_galleries, emptied
from rgbd_reid_jax.metrics.ranking import RULES, valid_items

COLUMNS = ("person_id", "camera_id", "recording_id", "frame_id")


def labels(*rows) -> dict[str, np.ndarray]:
    """Columns of rows (person, camera, recording, frame)."""
    return dict(zip(COLUMNS, np.array(rows).T, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_as_the_ranking_drops_them(rule):
    seen = set()
    for seed in range(50):
        random = np.random.default_rng(seed)
        sets = []
        for count in (30, 25):
            person, camera = random.integers(0, 9, count), random.integers(0, 2, count)
            recording = 10 * person + random.integers(0, 2, count)
            sets.append((person, camera, recording, random.integers(0, 3, count)))
        query, gallery = (
            Embeddings(np.ones((len(one[0]), 2), np.float32), **dict(zip(COLUMNS, one, strict=True))) for one in sets
        )
        positives = valid_items(query, gallery, rule) & (query.person_id[:, None] == gallery.person_id[None])
        left, right = (labels(*np.stack(one, axis=1)) for one in sets)
        found = emptied(left, right, rule)
        np.testing.assert_array_equal(found, ~positives.any(axis=1))
        seen.update(found.tolist())
    assert seen == {False, True}


def test_one_camera_suits_only_rules_that_do_not_ask_for_two():
    one = labels((1, 0, 0, 0), (1, 0, 0, 1), (2, 0, 1, 0), (2, 0, 1, 1))
    assert {rule: bool(emptied(one, one, rule).all()) for rule in RULES} == {
        "market": True,
        "cross_camera": True,
        "twin_excluded": False,
        "recording_excluded": True,
    }
    check_galleries(one, one, "twin_excluded", "people test rgb_to_depth")
    message = (
        "people test rgb_to_depth: protocol cross_camera (gallery items of the query's camera are dropped) leaves none "
        "of the 4 queries a gallery item of its person; say --config.evaluation.protocol=twin_excluded, or record each"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        check_galleries(one, one, "cross_camera", "people test rgb_to_depth")


def test_a_person_with_one_frame_has_no_positive_under_any_rule():
    single = labels((1, 0, 0, 0), (2, 1, 1, 0))
    with pytest.raises(InputError, match="gallery item of its person; give each person at least two frames"):
        check_galleries(single, single, "twin_excluded", "people")


def test_some_emptied_queries_are_no_reason_to_refuse():
    some = labels((1, 0, 0, 0), (1, 1, 1, 0), (2, 0, 2, 0))
    assert emptied(some, some, "cross_camera").tolist() == [False, False, True]
    check_galleries(some, some, "cross_camera", "people")
