"""Reading splits: cached and streamed frames agree, errors name the value, labels are counted from 0."""

import types
import weakref

import cv2
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data import dataset
from rgbd_reid_jax.data.dataset import IMAGES, LABELS, CachedFrames, StreamedFrames, identities, read_split
from tfds_builders import schema
from tfds_builders.synthetic_rgbd.store import encode_png


class Source:
    """A TFDS data source of bytes that counts what is read."""

    def __init__(self, records):
        self._records, self.reads = records, 0

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        if not isinstance(index, int):
            raise TypeError("a data source takes Python integers")
        self.reads += 1
        return self._records[index]


@pytest.fixture
def decoded(monkeypatch):
    """The number of images decoded so far, as the only item of a list."""
    count, decode = [0], cv2.imdecode

    def counting(*arguments):
        count[0] += 1
        return decode(*arguments)

    monkeypatch.setattr(cv2, "imdecode", counting)
    return count


def serialized(features, record):
    """The bytes of a record as a builder writes them."""
    images = {name: encode_png(np.squeeze(record[name])) for name in IMAGES}
    unused = {"person_box": np.zeros(4, np.float32), "intrinsics": np.zeros(4, np.float32)}
    return features.serialize_example(record | images | unused)


@pytest.fixture
def builder(make_records):
    features = schema.frame_features()
    source = Source([serialized(features, record) for record in make_records(10)])
    info = types.SimpleNamespace(splits={"train": 1, "test": 1}, full_name="people/quick:1.0.0", features=features)

    def as_data_source(split, deserialize_method):
        assert split in info.splits
        assert deserialize_method.name == "RAW_BYTES"
        return source

    return types.SimpleNamespace(info=info, as_data_source=as_data_source, source=source)


@pytest.mark.parametrize(("cache", "kind"), [("host", CachedFrames), ("none", StreamedFrames)])
def test_a_split_gives_labels_and_images(builder, make_records, cache, kind):
    records = make_records(10)
    frames = read_split(builder, "train", cache)
    assert type(frames) is kind
    assert len(frames) == 10
    assert set(frames.labels) == set(LABELS)
    for name in LABELS:
        assert frames.labels[name].tolist() == [record[name] for record in records]
    indices = np.array([7, 0, 7])
    images = frames.gather(indices, IMAGES)
    assert list(images) == list(IMAGES)
    for name, dtype in zip(IMAGES, (np.uint8, np.uint16, np.uint8), strict=True):
        assert images[name].dtype == dtype
        np.testing.assert_array_equal(images[name], [records[index][name] for index in indices])
    assert list(frames.gather(indices, ("depth",))) == ["depth"]


def test_cached_frames_are_decoded_once_and_streamed_ones_at_each_access(builder):
    cached = read_split(builder, "train", "host")
    assert builder.source.reads == 10
    cached.gather(np.arange(10), IMAGES)
    assert builder.source.reads == 10
    streamed = read_split(builder, "train", "none")
    before = builder.source.reads
    streamed.gather(np.array([1, 2]), ("rgb",))
    assert builder.source.reads == before + 2


def test_labels_are_read_without_decoding_an_image(builder, decoded):
    streamed = read_split(builder, "train", "none")
    assert builder.source.reads == 10
    assert decoded == [0]
    streamed.gather(np.array([1, 2]), ("depth",))
    assert decoded == [2]  # and no image that was not asked for


def test_a_split_is_held_once(make_records):
    """Beside the arrays there is one record at a time."""
    alive = weakref.WeakSet()

    class Record:
        def __init__(self, fields):
            self.items = fields.items

    class Records:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            assert len(alive) <= 1
            record = Record(make_records(10)[index])
            alive.add(record)
            return record

    assert len(CachedFrames(lambda names: Records())) == 10


def test_an_unknown_split_is_named_with_those_there_are(builder):
    with pytest.raises(InputError, match=r"people/quick:1\.0\.0 has no split 'validation'; it has: train, test"):
        read_split(builder, "validation", "host")


def test_an_unknown_cache_is_named(builder):
    with pytest.raises(InputError, match=r"dataset\.cache='disk' is unknown; choose one of: host, none"):
        read_split(builder, "train", "disk")


def test_an_unknown_dataset_is_named(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.name='market' has no builder; available: synthetic_rgbd"):
        dataset.open_dataset("market", "", {}, str(tmp_path))


def test_identities_count_people_in_order_of_their_id():
    labels, count = identities(np.array([30, 7, 30, 12, 7]))
    assert labels.tolist() == [2, 0, 2, 1, 0]
    assert labels.dtype == np.int32
    assert count == 3


def test_the_data_folder_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert dataset.default_data_dir() == tmp_path
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset.default_data_dir() == tmp_path / "tensorflow_datasets"
