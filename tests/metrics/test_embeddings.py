"""The .npz of embeddings: round trip, optional keys, and one-line errors that name file, key and mend."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.embeddings import KEYS, Embeddings


@pytest.fixture
def items():
    ids = np.arange(3)
    matrix = np.eye(3, dtype=np.float32)
    text = np.array(["a", "b", "c"])
    return Embeddings(matrix, ids, ids + 1, ids + 2, ids + 3, ids + 4, "depth", ids, matrix / 2, text, text)


def arrays_of(items):
    return {key: getattr(items, key) for key in KEYS}


def test_every_field_but_the_source_is_a_key():
    assert {field.name for field in dataclasses.fields(Embeddings)} == {*KEYS, "source"}


def test_save_and_load_return_the_same(items, tmp_path):
    path = tmp_path / "new" / "embeddings.npz"
    items.save(path)
    loaded = Embeddings.load(path)
    for name, value in arrays_of(items).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert loaded.embedding.dtype == np.float32
    assert loaded.modality == "depth"
    assert loaded.source == str(path)
    assert sorted(np.load(path).files) == sorted(KEYS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    first = path.read_bytes()
    items.save(path)
    assert path.read_bytes() == first


def test_three_keys_are_enough(tmp_path):
    path = tmp_path / "plain.npz"
    np.savez(path, embedding=np.ones((2, 3), np.float16), person_id=np.array([1, 2], np.uint8), camera_id=[0, 1])
    loaded = Embeddings.load(path)
    assert loaded.modality == ""
    assert loaded.recording_id is None
    assert loaded.person_id.dtype == np.int64
    with pytest.raises(InputError, match="lacks recording_id, which protocol x needs; save it beside") as caught:
        loaded.column("recording_id", "protocol x")
    one_line(caught, path)
    loaded.save(tmp_path / "again.npz")
    assert set(np.load(tmp_path / "again.npz").files) == {"embedding", "person_id", "camera_id", "modality"}


def test_files_with_all_keys_of_before_still_load(tmp_path):
    path = tmp_path / "before.npz"
    names = ("person_id", "camera_id", "recording_id", "frame_id", "clothes_id")
    ids: dict[str, Any] = {key: np.arange(3) for key in names}
    np.savez(path, embedding=np.eye(3, dtype=np.float32), modality="rgb", **ids)
    assert Embeddings.load(path).modality == "rgb"


def test_rows_are_taken_from_all_columns(items):
    taken = items.take(np.array([2, 0]))
    for name, value in arrays_of(items).items():
        expected = value if name == "modality" else value[[2, 0]]
        np.testing.assert_array_equal(getattr(taken, name), expected)
    assert len(items.take(np.array([True, False, False]))) == 1


def one_line(caught, path):
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera_id": None}, r"lacks camera_id \(it has: .*numpy\.savez"),
        ({"person_id": np.arange(2)}, r"person_id has shape \[2\], expected \[3\]"),
        ({"person_id": np.arange(3)[:, None]}, r"person_id has shape \[3, 1\], expected \[3\]"),
        ({"person_id": np.array([0, -1, -1])}, "person_id is negative in 2 rows"),
        ({"person_id": np.array(["a", "b", "c"])}, "person_id is <U1, expected whole numbers; number them with"),
        ({"person_id": np.array([1, 2, 2**63 + 5], np.uint64)}, r"person_id exceeds 2\^63 - 1; number them with numpy"),
        ({"frame_id": np.arange(3.0)}, "frame_id is float64, expected whole numbers; save it with"),
        ({"person_id": np.array([1, 2, None], object)}, r"person_id is an array of Python objects.*numpy\.int64"),
        ({"camera_name": np.array(["a", "b", None], object)}, r"camera_name is an array of Python.*numpy\.str_"),
        ({"camera_name": np.arange(3.0)}, "camera_name is float64, expected text"),
        ({"modality": "infra red"}, "modality is 'infra red', expected one word"),
        ({"modality": np.array(["rgb", "depth", "rgb"])}, "mixes the modalities depth, rgb; save one file for each"),
        ({"gate": np.ones((3, 2))}, r"gate has shape \[3, 2\], embedding \[3, 3\]"),
        ({"gate": np.full((3, 3), np.nan)}, "gate row 0 holds nan"),
        ({"embedding": np.array([[0, 1], [2, np.nan], [3, 4]])}, "embedding row 1 holds nan"),
        ({"embedding": np.array([[0, 1], [2, 3], [np.inf, 4]])}, "embedding row 2 holds inf"),
        ({"embedding": np.array([[0, 1], [2, 3], [1e300, 4]])}, "exceeds the range of float32"),
        ({"embedding": np.zeros(3)}, r"embedding is float64 \[3\], expected float32 \[N, D\]"),
        ({"embedding": np.zeros((3, 0))}, r"embedding is float64 \[3, 0\], expected"),
        ({"embedding": np.array([["a"], ["b"], ["c"]])}, r"embedding is <U1 \[3, 1\], expected"),
    ],
)
def test_a_bad_file_is_named(items, tmp_path, change, message):
    path = tmp_path / "bad.npz"
    changed = {**arrays_of(items), **change}
    if "embedding" in change and "gate" not in change:
        changed["gate"] = None
    np.savez(path, allow_pickle=True, **{key: value for key, value in changed.items() if value is not None})
    with pytest.raises(InputError, match=message) as caught:
        Embeddings.load(path)
    one_line(caught, path)


def test_the_row_of_a_bad_number_is_counted_over_blocks():
    embedding = np.zeros((20000, 2), np.float32)
    embedding[[9000, 19999], 1] = np.nan
    with pytest.raises(InputError, match=r"row 9000 holds nan \(2 such rows\)"):
        Embeddings(embedding, np.zeros(20000, int), np.zeros(20000, int))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00"])
def test_no_archive_is_named(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a readable \.npz") as caught:
        Embeddings.load(path)
    one_line(caught, path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_named(items, tmp_path, share):
    path = tmp_path / "cut.npz"
    items.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"not a readable \.npz") as caught:
        Embeddings.load(path)
    one_line(caught, path)


def test_a_damaged_compressed_file_is_named(tmp_path):
    path = tmp_path / "damaged.npz"
    rows = np.arange(4000)
    np.savez_compressed(path, embedding=rows[:, None].astype(np.float32), person_id=rows, camera_id=rows)
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a readable \.npz") as caught:
        Embeddings.load(path)
    one_line(caught, path)


def test_names_in_bytes_are_utf_8(tmp_path):
    path = tmp_path / "bytes.npz"
    columns = {"embedding": np.zeros((2, 1)), "person_id": [0, 1], "camera_id": [0, 1]}
    np.savez(path, **columns, modality=b"rgb")
    assert Embeddings.load(path).modality == "rgb"
    np.savez(path, **columns, camera_name=np.char.encode(["hall", "tür"], "utf-8"))
    np.testing.assert_array_equal(Embeddings.load(path).camera_name, ["hall", "tür"])
    np.savez(path, **columns, camera_name=np.char.encode(["hall", "tür"], "latin-1"))
    with pytest.raises(InputError, match="camera_name is no UTF-8 text") as caught:
        Embeddings.load(path)
    one_line(caught, path)


def test_a_missing_file_a_folder_and_a_plain_array_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Embeddings.load(tmp_path / "none.npz")
    with pytest.raises(InputError, match="cannot be read"):
        Embeddings.load(tmp_path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match="not a readable"):
        Embeddings.load(tmp_path / "array.npy")


def test_keys_that_are_not_ours_are_named_and_left(tmp_path, capsys):
    path = tmp_path / "a.npz"
    ids: dict[str, Any] = {key: np.arange(3) for key in ("person_id", "camera_id")}
    np.savez(
        path, embedding=np.eye(3, dtype=np.float32), modality=np.array(["infrared"] * 3), paths=np.arange(3), **ids
    )
    assert Embeddings.load(path).modality == "infrared"
    assert "keys paths are not used" in capsys.readouterr().out
