"""Reading splits: the caches agree bit for bit, labels come without images, errors name the record and the mend."""

import threading
import types
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data import frames as frames_lib
from rgbd_reid_jax.data.frames import (
    IMAGES,
    LABELS,
    CachedFrames,
    DeviceFrames,
    Frames,
    having,
    identities,
    read_split,
    subset,
)
from rgbd_reid_jax.data.records import Records
from tfds_builders import schema
from tfds_builders.synthetic_rgbd.store import encode_png

_KINDS = {"none": Frames, "host": CachedFrames, "device": DeviceFrames}


@pytest.fixture
def decoded(monkeypatch):
    """The number of images decoded so far, as the only item of a list."""
    count, decode, lock = [0], cv2.imdecode, threading.Lock()

    def counting(*arguments):
        with lock:
            count[0] += 1
        return decode(*arguments)

    monkeypatch.setattr(cv2, "imdecode", counting)
    return count


@pytest.fixture
def builder(make_records, make_source):
    features = schema.frame_features()
    info = types.SimpleNamespace(splits={"train": 1, "test": 1}, full_name="people/quick/1.0.0", features=features)
    source = make_source(make_records(10))

    def as_data_source(split, deserialize_method):
        assert split in info.splits
        assert deserialize_method.name == "RAW_BYTES"
        return source

    return types.SimpleNamespace(info=info, as_data_source=as_data_source)


def assert_images(found, records, indices):
    for name, dtype in zip(IMAGES, (np.uint8, np.uint16, np.uint8), strict=True):
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], [records[index][name] for index in indices])


@pytest.mark.parametrize("cache", _KINDS)
def test_a_split_gives_labels_and_images(builder, make_records, cache):
    records = make_records(10)
    frames = read_split(builder, "train", cache)
    assert type(frames) is _KINDS[cache]
    assert len(frames) == 10
    assert set(frames.labels) == set(LABELS)
    for name in LABELS:
        assert frames.labels[name].tolist() == [record[name] for record in records]
        assert frames.labels[name].dtype == np.int64
    for indices in ([7, 0, 7], [1, 7, 3], range(10)):
        images = frames.gather(np.array(indices), IMAGES)
        assert list(images) == list(IMAGES)
        assert_images(images, records, indices)
    assert list(frames.gather(np.array([2]), ("depth",))) == ["depth"]


def test_records_are_what_tfds_reads(builder):
    """TFDS's own reader is the oracle, for PNG here; JPEG below."""
    features, source = builder.info.features, builder.as_data_source("train", types.SimpleNamespace(name="RAW_BYTES"))
    frames = read_split(builder, "train", "none")
    images = frames.gather(np.arange(10), IMAGES)
    for index, record in enumerate(source):
        expected = features.deserialize_example_np(record)
        for name in IMAGES:
            np.testing.assert_array_equal(images[name][index], expected[name])
        for name in LABELS:
            assert frames.labels[name][index] == expected[name]


def test_a_jpeg_is_what_tfds_reads_and_is_never_turned(make_records, make_source, serialize):
    record = make_records(1)[0]
    smooth = cv2.GaussianBlur(record["rgb"], (5, 5), 0)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(smooth, cv2.COLOR_RGB2BGR))[1].tobytes()
    # An APP1 segment whose only entry is the orientation tag 0x0112 = 6, "turn by 90 degrees".
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = encoded[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + encoded[2:]
    seen: Any = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert seen.shape == (8, 16, 3)  # the tag is understood
    for jpeg in (encoded, turned):
        source = make_source([])
        source.append(serialize(record, rgb=jpeg))
        found = Records(source, "people train").decode([0], ("rgb",))["rgb"][0]
        expected: Any = schema.frame_features().deserialize_example_np(source[0])
        np.testing.assert_array_equal(found, expected["rgb"])
        assert np.abs(found.astype(int) - smooth).mean() < 6


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("rgb", b"", "record 1: its rgb image cannot be decoded"),
        ("depth", b"\x89PNG\r\n", "record 1: its depth image cannot be decoded"),
        ("depth", np.zeros((16, 8), np.uint8), r"record 1: depth is uint8 \[16, 8, 1\], not uint16"),
        ("mask", np.zeros((16, 8), np.uint16), r"record 1: mask is uint16 \[16, 8, 1\], not uint8"),
        ("mask", np.zeros((16, 8, 3), np.uint8), r"record 1: mask is uint8 \[16, 8, 3\]"),
        ("rgb", np.zeros((8, 16, 3), np.uint8), r"record 1: rgb is \(8, 16, 3\), others are \(16, 8, 3\)"),
    ],
)
def test_a_damaged_record_is_named(make_records, make_source, serialize, name, image, message):
    records = make_records(2)
    source = make_source(records[:1])
    encoded = image if isinstance(image, bytes) else encode_png(image)
    source.append(serialize(records[1], **{name: encoded}))
    frames = Frames(Records(source, "people/quick/1.0.0 train"))
    with pytest.raises(InputError, match=f"people/quick/1.0.0 train, {message}.*delete the dataset's folder"):
        frames.gather(np.arange(2), (name,))


def test_cached_frames_are_decoded_once_and_streamed_ones_at_each_access(builder, decoded):
    cached, streamed = (read_split(builder, "train", cache) for cache in ("host", "none"))
    assert decoded == [0]  # labels need no image
    cached.gather(np.array([1, 2]), ("depth",))
    assert decoded == [2]  # nothing that was not asked for
    cached.gather(np.array([2, 1, 3, 3]), ("depth",))
    assert decoded == [3]
    cached.gather(np.arange(10), ("rgb",))
    assert decoded == [13]
    cached.gather(np.arange(10), ("rgb",))
    assert decoded == [13]
    for _ in range(2):
        streamed.gather(np.array([1, 2]), ("rgb",))
    assert decoded == [17]


def test_a_cache_that_threads_fill_together_is_right(make_records, as_frames):
    records = make_records(200)
    frames = as_frames(records)
    random = np.random.default_rng(0)
    wanted = [random.integers(0, 200, 50) for _ in range(16)]
    found: list = [None] * 16

    def gather(place):
        found[place] = frames.gather(wanted[place], IMAGES)

    threads = [threading.Thread(target=gather, args=(place,)) for place in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for indices, images in zip(wanted, found, strict=True):
        assert_images(images, records, indices)


@pytest.mark.parametrize("devices", [1, 8])
def test_device_frames_are_decoded_once_and_lie_whole_on_every_device(
    make_records, make_source, mesh_of, decoded, devices
):
    records = make_records(100)
    frames = DeviceFrames(Records(make_source(records), "people train"), workers=2)
    mesh = mesh_of(devices)
    assert decoded == [0]
    placed = frames.placed(("depth", "mask"), mesh)
    assert decoded == [2 * 101]  # the first frame tells the size
    for name, shape in placed.shapes:
        assert shape == (16, 8, 1)
        array = placed.arrays[name]
        assert array.sharding.is_fully_replicated
        assert len(array.sharding.device_set) == devices
        np.testing.assert_array_equal(np.asarray(array).reshape(100, 16, 8, 1), [one[name] for one in records])
    frames.placed(("mask",), mesh)
    assert decoded == [2 * 101]
    assert set(frames.placed(IMAGES, mesh).arrays) == set(IMAGES)
    assert decoded == [3 * 101]


@pytest.mark.parametrize("cache", ["none", "host"])
def test_what_is_kept_elsewhere_is_not_on_the_devices(builder, mesh_of, cache):
    assert read_split(builder, "train", cache).placed(IMAGES, mesh_of(1)).arrays == {}


def test_too_little_device_memory_is_one_line(builder, mesh_of, monkeypatch):
    frames = read_split(builder, "train", "device")
    size = 10 * 16 * 8 * 3

    class Device:
        def __init__(self, used):
            self.memory_stats = lambda: {"bytes_limit": 10_000, "bytes_in_use": used}

        def __str__(self):
            return "GPU 7"

    for used in (10_000 - size, 10_001 - size):
        mesh: Any = types.SimpleNamespace(local_devices=[Device(used)])
        if used + size <= 10_000:
            frames_lib._check_room(size, mesh)
            continue
        with pytest.raises(InputError, match=r"GPU 7 has 0\.0 GB free; say --config\.dataset\.cache=host"):
            frames_lib._check_room(size, mesh)

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(jax, "make_array_from_process_local_data", full)
    with pytest.raises(InputError, match=r"dataset\.cache='device' needs .* say --config\.dataset\.cache=host"):
        frames.placed(("rgb",), mesh_of(1))


@pytest.mark.parametrize("cache", _KINDS)
def test_a_subset_is_a_view(builder, make_records, mesh_of, cache):
    records = make_records(10)
    frames = read_split(builder, "train", cache)
    some = subset(frames, np.arange(10) % 3 == 1)  # 1, 4, 7
    assert len(some) == 3
    assert some.labels["frame_id"].tolist() == [1, 4, 7]
    assert_images(some.gather(np.array([2, 0]), IMAGES), records, [7, 1])
    assert some.positions(np.array([[2, 0]])).tolist() == [[7, 1]]
    assert subset(some, np.array([True, False, True])).labels["frame_id"].tolist() == [1, 7]
    assert_images(subset(some, np.array([True, False, True])).gather(np.array([1]), IMAGES), records, [7])
    assert subset(frames, np.ones(10, bool)) is frames
    assert some.placed(("rgb",), mesh_of(1)).arrays.keys() == frames.placed(("rgb",), mesh_of(1)).arrays.keys()


def test_frames_that_have_a_modality(make_records, as_frames):
    records = make_records(6)
    for record, modalities in zip(records, (3, 1, 2, 3, 1, 2), strict=True):
        record["modalities"] = np.int32(modalities)
    frames = as_frames(records)
    assert having(frames, "rgb").labels["frame_id"].tolist() == [0, 1, 3, 4]
    assert having(frames, "depth").labels["frame_id"].tolist() == [0, 2, 3, 5]


def test_an_unknown_split_is_named_with_those_there_are(builder):
    with pytest.raises(InputError, match=r"people/quick/1\.0\.0 has no split 'validation'; it has: train, test"):
        read_split(builder, "validation", "host")


def test_an_unknown_cache_is_named(builder):
    with pytest.raises(InputError, match=r"dataset\.cache='disk' is unknown; choose one of: device, host, none"):
        read_split(builder, "train", "disk")


def test_identities_count_people_in_order_of_their_id():
    labels, count = identities(np.array([30, 7, 30, 12, 7]))
    assert labels.tolist() == [2, 0, 2, 1, 0]
    assert labels.dtype == np.int32
    assert count == 3
