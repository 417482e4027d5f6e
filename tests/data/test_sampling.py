"""Samplers: what each promises, by counting, for hand-made and for random datasets."""

import itertools
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.sampling import Sampling, batch_rows, people_of_step, spread, usable

_BOTH = ("rgb", "depth")


def labels_of(frames) -> dict[str, Any]:
    """Labels of frames given as (person, camera, recording, frame, modalities)."""
    columns = np.array(frames, np.int64).reshape(-1, 5).T
    return dict(zip(("person_id", "camera_id", "recording_id", "frame_id", "modalities"), columns, strict=True))


def recordings(frames_of):
    """Labels of people with one recording before each camera: {person: {camera: number of frames}}, all paired."""
    rows = []
    for number, (person, camera, count) in enumerate(
        (p, c, n) for p, some in frames_of.items() for c, n in some.items()
    ):
        rows += [(person, camera, number, frame, 3) for frame in range(count)]
    return labels_of(rows)


def batches_of(sampling, labels, seed=0) -> Any:
    return batch_rows(sampling, labels, sampling.people * sampling.frames, seed)


# Few people and frames, so that every special case comes up: 1 to 7 people of 1 to 5 frames before up to 3 cameras.
_DATASETS = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=5),
    min_size=1,
    max_size=7,
).map(
    lambda people: labels_of(
        [
            (10 * person, camera, 3 * person + recording, frame, modalities)
            for person, frames in enumerate(people)
            for frame, (camera, recording, modalities) in enumerate(frames)
        ]
    )
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_people_come_equally_often_and_once_in_a_batch(count, per_batch, seed):
    per_batch = min(per_batch, count)
    stream = np.concatenate([people_of_step(seed, count, per_batch, step) for step in range(2 * count)])
    for batch in stream.reshape(-1, per_batch):
        assert len(set(batch)) == per_batch
    epochs = stream[: len(stream) // count * count].reshape(-1, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (len(epochs), 1)))


def test_orders_of_people_differ_between_epochs_and_seeds():
    streams = {
        tuple(np.concatenate([people_of_step(seed, 12, 4, step) for step in range(3 * epoch, 3 * epoch + 3)]))
        for seed, epoch in itertools.product(range(3), range(3))
    }
    assert len(streams) == 9


def test_no_person_is_favoured_where_batches_cross_epochs():
    """Who meets whom, and who comes first in an epoch, is as good as even: chi-squared over 3,000 epochs."""
    count, per_batch = 5, 3
    stream = np.concatenate([people_of_step(7, count, per_batch, step) for step in range(5000)])
    first = np.bincount(stream.reshape(-1, count)[:, 0], minlength=count)
    expected = len(stream) / count / count
    assert ((first - expected) ** 2 / expected).sum() < 18.5  # 4 degrees of freedom, p = 0.001


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 15), st.integers(0, 1000))
def test_spread_is_as_even_as_the_groups_allow(groups, count, seed):
    groups = np.array(groups)
    chosen = spread(np.random.default_rng(seed), groups, count)
    assert chosen.shape == (count,)
    items = np.bincount(chosen, minlength=len(groups))
    assert items.max() - items.min() <= 1 or count < len(groups)
    if count > len(groups):
        return
    assert items.max() == 1
    sizes, taken = Counter(groups.tolist()), Counter(groups[chosen].tolist())
    most = max(taken.values())
    for group, size in sizes.items():
        assert taken[group] >= min(size, most - 1)  # one that gave fewer had no more


@pytest.mark.parametrize("name", ["pk", "pk_cross_camera", "pk_cross_modal"])
@settings(max_examples=40, deadline=None)
@given(labels=_DATASETS, people=st.integers(1, 4), frames=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_batches_keep_their_promises(name, labels, people, frames, seed):
    sampling = Sampling(name, people, frames)
    chosen = usable(sampling, labels, _BOTH)
    labels = {key: column[chosen] for key, column in labels.items()}
    available = len(np.unique(labels["person_id"]))
    if available < people:
        with pytest.raises(InputError, match=rf"sampling\.people={people} exceeds the {available} people"):
            batches_of(sampling, labels, seed)
        return
    batches = batches_of(sampling, labels, seed)
    for step in (0, 1, 5):
        batch = batches[step]
        assert batch.shape == (people * frames, 2)
        for rows in batch.reshape(people, frames, 2):
            (person,) = set(labels["person_id"][rows].ravel())
            check_person(name, labels, rows, np.flatnonzero(labels["person_id"] == person))
        assert len(set(labels["person_id"][batch[:, 0]])) == people
        np.testing.assert_array_equal(batches_of(sampling, labels, seed)[step], batch)


def check_person(name, labels, rows, own):
    """One person's rows [K, 2] of a batch; `own` are all their frames."""
    modalities, camera = labels["modalities"], labels["camera_id"]
    if name != "pk_cross_modal":
        np.testing.assert_array_equal(rows[:, 0], rows[:, 1])
        uses = np.bincount(rows[:, 0], minlength=len(camera))[own]
        assert uses.max() - uses.min() <= 1 or len(rows) < len(own)
        assert uses.max() == 1 or len(rows) > len(own)
        if name == "pk_cross_camera" and len(rows) <= len(own):
            taken = Counter(camera[rows[:, 0]].tolist())
            for one, size in Counter(camera[own].tolist()).items():
                assert taken[one] >= min(size, max(taken.values()) - 1)
        return
    instant = list(zip(labels["recording_id"].tolist(), labels["frame_id"].tolist(), strict=True))
    for rgb, depth in rows:
        assert modalities[rgb] & 1
        assert modalities[depth] & 2
        others = [frame for frame in own if modalities[frame] & 2 and instant[frame] != instant[rgb]]
        assert (instant[rgb] != instant[depth]) or not others
        elsewhere = [frame for frame in others if camera[frame] != camera[rgb]]
        assert camera[rgb] != camera[depth] or not elsewhere


def test_frames_without_a_needed_image_are_left_out():
    labels = labels_of([(1, 0, 0, 0, 3), (1, 0, 0, 1, 1), (1, 0, 0, 2, 2), (2, 0, 1, 0, 1), (3, 0, 2, 0, 2)])
    pk, cross = Sampling("pk", 1, 1), Sampling("pk_cross_modal", 1, 1)
    assert usable(pk, labels, ("rgb",)).tolist() == [True, True, False, True, False]
    assert usable(pk, labels, ("depth",)).tolist() == [True, False, True, False, True]
    assert usable(pk, labels, _BOTH).tolist() == [True, False, False, False, False]
    assert usable(cross, labels, _BOTH).tolist() == [True, True, True, False, False]  # 2 and 3 have one modality


def test_a_person_with_one_frame():
    labels = recordings({1: {0: 1}, 2: {0: 5, 1: 5}})
    for name in ("pk", "pk_cross_camera", "pk_cross_modal"):
        batch = batches_of(Sampling(name, 2, 4), labels)[3].reshape(2, 4, 2)
        alone = batch[labels["person_id"][batch[:, 0, 0]] == 1][0]
        np.testing.assert_array_equal(alone, np.zeros((4, 2)))
        other = batch[labels["person_id"][batch[:, 0, 0]] == 2][0]
        assert len(set(other[:, 0])) == 4


def test_cameras_are_spread_by_hand():
    labels = recordings({1: {0: 1, 1: 2, 2: 50}})
    for step in range(20):
        rows = batches_of(Sampling("pk_cross_camera", 1, 6), labels)[step][:, 0]
        assert Counter(labels["camera_id"][rows].tolist()) == {0: 1, 1: 2, 2: 3}


def test_cross_modal_uses_many_depth_frames():
    """The best depth frame is not the same one for all rows."""
    labels = recordings({1: {0: 20, 1: 20}})
    for step in range(10):
        rows = batches_of(Sampling("pk_cross_modal", 1, 8), labels)[step]
        assert len(set(rows[:, 0])) == len(set(rows[:, 1])) == 8
        assert (labels["camera_id"][rows[:, 0]] != labels["camera_id"][rows[:, 1]]).all()
        assert Counter(labels["camera_id"][rows[:, 0]].tolist()) == {0: 4, 1: 4}


def test_all_frames_of_a_person_come_about_equally_often():
    labels = recordings({1: {0: 10}, 2: {0: 10}})
    batches = batches_of(Sampling("pk", 2, 4), labels)
    uses = np.bincount(np.concatenate([batches[step][:, 0] for step in range(1000)]), minlength=20)
    assert ((uses - 400) ** 2 / 400).sum() < 43.8  # 19 degrees of freedom, p = 0.001; drawing 4 of 10 varies less


@pytest.mark.parametrize("name", ["shuffle", "pk", "pk_cross_camera", "pk_cross_modal"])
def test_a_step_far_away_is_there_at_once(name):
    labels = recordings({person: {0: 3, 1: 4} for person in range(33)})
    batches: Any = batch_rows(Sampling(name, 8, 4), labels, 32, 5)
    far = batches[10**12]
    assert far.shape == (32, 2)
    again: Any = batch_rows(Sampling(name, 8, 4), labels, 32, 5)[10**12]
    np.testing.assert_array_equal(again, far)
    assert (batches[10**12 + 1] != far).any()


_PROGRAM = """
import numpy as np
from absl import flags
flags.FLAGS.mark_as_parsed()
from rgbd_reid_jax.data.sampling import Sampling, batch_rows
person = np.repeat(np.arange(9), 6)
labels = {"person_id": person, "camera_id": np.arange(54) % 2, "recording_id": person * 2 + np.arange(54) % 2,
          "frame_id": np.arange(54), "modalities": np.full(54, 3)}
for name in ("shuffle", "pk", "pk_cross_camera", "pk_cross_modal"):
    print(batch_rows(Sampling(name, 4, 3), labels, 12, 3)[77].tolist())
"""


def test_another_process_draws_the_same(monkeypatch):
    found = []
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        found.append(
            subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout
        )
    assert found[0] == found[1]
    assert found[0].count("\n") == 4
