"""Training batches: deterministic, each epoch a permutation, restartable, the same for any number of processes."""

import json

import jax
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import shard_batch
from rgbd_reid_jax.data.frames import IMAGES, NOWHERE, CachedFrames, DeviceFrames, Frames, subset
from rgbd_reid_jax.data.pipeline import training_batches, with_images
from rgbd_reid_jax.data.sampling import Sampling

_SAMPLINGS = [Sampling(), Sampling("pk", 4, 2), Sampling("pk_cross_camera", 2, 4), Sampling("pk_cross_modal", 4, 2)]


def stream(frames, batch_size=4, seed=1, images=("rgb",), **options):
    columns = {"index": np.arange(len(frames)), "target": np.arange(2 * len(frames)).reshape(-1, 2)}
    return iter(training_batches(frames, images=images, columns=columns, batch_size=batch_size, seed=seed, **options))


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


@pytest.mark.parametrize("sampling", _SAMPLINGS, ids=lambda sampling: sampling.name)
@pytest.mark.parametrize("step", [0, 1, 5, 6, 8])
def test_a_stream_set_to_a_position_goes_on_with_the_same_batches(tiny_frames, sampling, step):
    options = {"batch_size": 8, "sampling": sampling}
    one = stream(tiny_frames, **options)
    take(one, step)
    position = json.loads(json.dumps(one.get_state()))  # as a checkpoint holds it
    expected = take(one, 8)
    other = stream(tiny_frames, **options)
    take(other, 3)
    other.set_state(position)
    assert_same(take(other, 8), expected)


@pytest.mark.parametrize("sampling", _SAMPLINGS, ids=lambda sampling: sampling.name)
@pytest.mark.parametrize("count", [2, 4])
def test_the_processes_share_the_batch_of_one(tiny_frames, sampling, count):
    options = {"batch_size": 8, "sampling": sampling, "images": IMAGES}
    whole = take(stream(tiny_frames, **options), 4)
    parts = [take(stream(tiny_frames, **options, process=(index, count)), 4) for index in range(count)]
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


def test_the_order_is_that_of_earlier_versions(tiny_frames):
    """numpy's permutations by (seed, 3, epoch): a run that goes on with a later version sees the same frames."""
    sources = [np.random.Philox(np.random.SeedSequence((1, 3, epoch))) for epoch in range(4)]
    expected = np.concatenate([np.random.Generator(source).permutation(24) for source in sources])
    found = order(tiny_frames, 20)
    np.testing.assert_array_equal(found, expected[: len(found)])
    np.testing.assert_array_equal(found[:6], [18, 8, 16, 21, 1, 22])


@pytest.mark.parametrize("sampling", _SAMPLINGS, ids=lambda sampling: sampling.name)
@pytest.mark.parametrize("devices", [1, 8])
def test_all_caches_give_the_same_batches(make_frames, mesh_of, sampling, devices):
    mesh = mesh_of(devices)
    together = jax.jit(with_images)
    found = {}
    for kind in (Frames, CachedFrames, DeviceFrames):
        frames = make_frames(26, kind=kind)
        frames = subset(frames, np.arange(26) % 13 != 5)
        placed = frames.placed(IMAGES, mesh)
        options = {"batch_size": 8, "images": IMAGES, "sampling": sampling, "placed": placed}
        batches = take(stream(frames, **options), 5)
        assert ("rgb" in batches[0]) != ("rows" in batches[0])
        found[kind] = [jax.device_get(together(shard_batch(batch, mesh), placed)) for batch in batches]
        for batch in found[kind]:
            assert set(batch) == {*IMAGES, "index", "target"}
    assert_same(found[Frames], found[CachedFrames])
    assert_same(found[Frames], found[DeviceFrames])


def test_images_on_the_devices_are_gathered_without_communication(make_frames, mesh_of):
    mesh = mesh_of(8)
    frames = make_frames(24, kind=DeviceFrames)
    placed = frames.placed(IMAGES, mesh)
    batch = shard_batch(next(stream(frames, batch_size=16, images=IMAGES, placed=placed)), mesh)
    compiled = jax.jit(with_images).lower(batch, placed).compile()
    text = compiled.as_text()
    assert text
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in text
    for name, image in compiled(batch, placed).items():
        assert not image.sharding.is_fully_replicated, name
        assert image.sharding.shard_shape(image.shape)[0] == 2, name


def test_cross_modal_rows_take_each_image_from_its_own_frame(make_frames, make_records):
    records = make_records(24)
    sampling = Sampling("pk_cross_modal", 4, 2)
    frames = make_frames(24)
    options = {"images": IMAGES, "batch_size": 8, "sampling": sampling}
    for batch in take(stream(frames, **options), 4):
        for row, index in enumerate(batch["index"]):
            np.testing.assert_array_equal(batch["rgb"][row], records[index]["rgb"])
            (depth,) = [i for i, one in enumerate(records) if np.array_equal(one["depth"], batch["depth"][row])]
            assert depth != index
            assert records[depth]["person_id"] == records[index]["person_id"]
            np.testing.assert_array_equal(batch["mask"][row], records[depth]["mask"])


def test_threads_keep_the_order(make_frames):
    one, many = make_frames(24), make_frames(24)
    many.workers = 4
    assert_same(take(stream(one), 30), take(stream(many), 30))


def test_a_batch_without_images_passes_as_it_is():
    assert with_images({"index": 1}, NOWHERE) == {"index": 1}


def test_a_batch_larger_than_the_split_is_named(tiny_frames):
    with pytest.raises(InputError, match="batch_size=25 exceeds the 24 training frames"):
        stream(tiny_frames, batch_size=25)
    assert len(next(stream(tiny_frames, batch_size=24))["index"]) == 24


def test_processes_that_do_not_divide_the_batch_are_named(tiny_frames):
    with pytest.raises(InputError, match="batch_size=8 does not divide among 3 processes"):
        stream(tiny_frames, batch_size=8, process=(0, 3))
