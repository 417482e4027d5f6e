"""Training batches: deterministic, each epoch a permutation, restartable, the same for any number of processes."""

import json

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.dataset import IMAGES, CachedFrames, StreamedFrames
from rgbd_reid_jax.data.pipeline import training_batches


def stream(frames, batch_size=4, seed=1, process=(0, 1), images=("rgb",)):
    columns = {"index": np.arange(len(frames)), "target": np.arange(2 * len(frames)).reshape(-1, 2)}
    batches = training_batches(
        frames, images=images, columns=columns, batch_size=batch_size, seed=seed, process=process
    )
    return iter(batches)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def order(frames, count, **options):
    return np.concatenate([batch["index"] for batch in take(stream(frames, **options), count)])


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name, rows in one.items():
            np.testing.assert_array_equal(rows, other[name])
            assert rows.dtype == other[name].dtype


def test_images_and_columns_are_those_of_their_frames(tiny_frames, make_records):
    records = make_records(24)
    for batch in take(stream(tiny_frames, images=IMAGES), 6):
        assert set(batch) == {"rgb", "depth", "mask", "index", "target"}
        for row, index in enumerate(batch["index"]):
            for name in IMAGES:
                np.testing.assert_array_equal(batch[name][row], records[index][name])
            assert batch["target"][row].tolist() == [2 * index, 2 * index + 1]


def test_only_the_images_asked_for_are_fetched(tiny_frames):
    assert set(next(stream(tiny_frames, images=("depth", "mask")))) == {"depth", "mask", "index", "target"}


def test_each_epoch_is_another_permutation(tiny_frames):
    epochs = order(tiny_frames, 3 * 6).reshape(3, 24)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(24), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(24))}) == 4


def test_a_batch_may_cross_epochs_without_losing_a_frame(tiny_frames):
    frames = order(tiny_frames, 5 * 24 // 5, batch_size=5)[: 5 * 24]
    np.testing.assert_array_equal(np.sort(frames.reshape(5, 24), axis=1), np.tile(np.arange(24), (5, 1)))


def test_the_order_is_that_of_the_seed(tiny_frames):
    np.testing.assert_array_equal(order(tiny_frames, 6), order(tiny_frames, 6))
    assert (order(tiny_frames, 6) != order(tiny_frames, 6, seed=2)).any()


@pytest.mark.parametrize("step", [0, 1, 5, 6, 8])
def test_a_stream_set_to_a_position_goes_on_with_the_same_batches(tiny_frames, step):
    one = stream(tiny_frames)
    take(one, step)
    position = json.loads(json.dumps(one.get_state()))  # as a checkpoint holds it
    expected = take(one, 8)
    other = stream(tiny_frames)
    take(other, 3)
    other.set_state(position)
    assert_same(take(other, 8), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_the_processes_share_the_batch_of_one(tiny_frames, count):
    whole = take(stream(tiny_frames, batch_size=8), 4)
    parts = [take(stream(tiny_frames, batch_size=8, process=(index, count)), 4) for index in range(count)]
    joined = [
        {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_a_position_holds_for_any_number_of_processes(tiny_frames):
    one = stream(tiny_frames, batch_size=8)
    take(one, 4)
    half = stream(tiny_frames, batch_size=8, process=(1, 2))
    half.set_state(one.get_state())
    np.testing.assert_array_equal(next(half)["index"], next(one)["index"][4:])


def test_cached_and_streamed_frames_give_the_same_batches(make_frames):
    kinds = (CachedFrames, StreamedFrames)
    cached, streamed = (take(stream(make_frames(12, kind=kind), images=IMAGES), 7) for kind in kinds)
    assert_same(cached, streamed)


def test_a_batch_larger_than_the_split_is_named(tiny_frames):
    with pytest.raises(InputError, match="batch_size=25 exceeds the 24 training frames"):
        stream(tiny_frames, batch_size=25)
    assert len(next(stream(tiny_frames, batch_size=24))["index"]) == 24


def test_processes_that_do_not_divide_the_batch_are_named(tiny_frames):
    with pytest.raises(InputError, match="batch_size=8 does not divide among 3 processes"):
        stream(tiny_frames, batch_size=8, process=(0, 3))
