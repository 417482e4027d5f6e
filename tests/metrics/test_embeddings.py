"""The .npz of embeddings: round trip and one-line errors that name file and row."""

import dataclasses

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.embeddings import Embeddings


@pytest.fixture
def items():
    ids = np.arange(3)
    return Embeddings(np.eye(3, dtype=np.float32), ids, ids + 1, ids + 2, ids + 3, ids + 4, "depth")


def arrays_of(items):
    return {field.name: getattr(items, field.name) for field in dataclasses.fields(items)}


def test_save_and_load_return_the_same(items, tmp_path):
    path = tmp_path / "new" / "embeddings.npz"
    items.save(path)
    loaded = Embeddings.load(path)
    for name, value in arrays_of(items).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert loaded.embedding.dtype == np.float32
    assert loaded.modality == "depth"
    assert sorted(np.load(path).files) == sorted(arrays_of(items))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    first = path.read_bytes()
    items.save(path)
    assert path.read_bytes() == first


def one_line(caught, path):
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera_id": None}, "lacks camera_id"),
        ({"person_id": np.arange(2)}, r"person_id has shape \[2\], expected \[3\]"),
        ({"frame_id": np.arange(3.0)}, "frame_id is float64, expected whole numbers"),
        ({"modality": "infrared"}, "modality is 'infrared'"),
        ({"embedding": np.array([[0, 1], [2, np.nan], [3, 4]])}, "embedding row 1 holds nan"),
        ({"embedding": np.array([[0, 1], [2, 3], [np.inf, 4]])}, "embedding row 2 holds inf"),
        ({"embedding": np.array([[0, 1], [2, 3], [1e300, 4]])}, "exceeds the range of float32"),
        ({"embedding": np.zeros(3)}, r"expected float32 \[N, D\]"),
    ],
)
def test_a_bad_file_is_named(items, tmp_path, change, message):
    path = tmp_path / "bad.npz"
    arrays = {key: value for key, value in {**arrays_of(items), **change}.items() if value is not None}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        Embeddings.load(path)
    one_line(caught, path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00"])
def test_no_archive_is_named(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a readable \.npz") as caught:
        Embeddings.load(path)
    one_line(caught, path)


def test_a_missing_file_and_a_plain_array_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Embeddings.load(tmp_path / "none.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match="not a readable"):
        Embeddings.load(tmp_path / "array.npy")
