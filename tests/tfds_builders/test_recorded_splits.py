"""Seeded splits have their sizes and are disjoint; published splits are taken as they are or refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded.frames import SPLITS
from tfds_builders.recorded.splits import official_splits, seeded_split

BIWI = {"train": 32, "validation": 8, "test": 38}


@given(
    st.sets(st.integers(0, 10**6), min_size=3, max_size=200),
    st.fixed_dictionaries({split: st.integers(1, 60) for split in SPLITS}),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=200, deadline=None)
def test_splits_are_disjoint_complete_and_in_proportion(ids, sizes, seed):
    drawn = seeded_split(list(ids), sizes, seed)
    assert list(drawn) == list(SPLITS)
    together = [one for split in SPLITS for one in drawn[split]]
    assert sorted(together) == sorted(ids)
    assert all(drawn[split] == sorted(drawn[split]) for split in SPLITS)
    assert drawn == seeded_split(sorted(ids, reverse=True) * 2, sizes, seed), "order and repetition do not matter"
    for split in SPLITS:
        exact = len(ids) * sizes[split] / sum(sizes.values())
        assert len(drawn[split]) >= 1
        assert exact - 3 < len(drawn[split]) < exact + 3


def test_a_whole_tree_has_the_published_sizes():
    drawn = seeded_split(range(78), BIWI, 0)
    assert {split: len(ids) for split, ids in drawn.items()} == BIWI
    assert drawn != seeded_split(range(78), BIWI, 1)
    assert seeded_split([5, 7, 9], BIWI, 3).keys() == set(SPLITS)


def test_too_few_people_are_no_split():
    with pytest.raises(InputError, match="2 people cannot be split into train, validation, test; at least 3"):
        seeded_split([1, 2, 2], BIWI, 0)


FOLD = {"train": [0, 1], "val": [2], "trainval": [0, 1, 2], "query": [3, 4], "gallery": [4, 3]}


def test_a_published_fold_is_taken(tmp_path):
    other = FOLD | {"train": [1, 2], "val": [0]}
    (tmp_path / "splits.json").write_text(json.dumps([FOLD, other]))
    assert official_splits(tmp_path / "splits.json", 0, 5) == {"train": [0, 1], "validation": [2], "test": [3, 4]}
    assert official_splits(tmp_path / "splits.json", 1, 5)["validation"] == [0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ("{}", "must hold a list of objects"),
        ("[1]", "must hold a list of objects"),
        ("[]", "fold=0: "),
        ([{**FOLD, "val": "2"}], "'val' must be a list of whole numbers"),
        ([{**FOLD, "val": [True]}], "'val' must be a list of whole numbers"),
        ([{**FOLD, "val": [1.5]}], "'val' must be a list of whole numbers"),
        ([{key: FOLD[key] for key in FOLD if key != "query"}], "'query' must be a list of whole numbers"),
        ([{**FOLD, "val": [5]}], "names identity 5; there are 0 to 4"),
        ([{**FOLD, "train": [-1]}], "names identity -1; there are 0 to 4"),
        ([{**FOLD, "val": [1]}], "has identity 1 in train and in validation; mend the file"),
        ([{**FOLD, "gallery": [0]}], "has identity 0 in train and in test; mend the file"),
    ],
)
def test_malformed_splits_are_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "splits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        official_splits(path, 0, 5)
    assert words in str(caught.value)
    assert "splits.json" in str(caught.value)
    assert "\n" not in str(caught.value)
