"""Files are whole or absent, and broken JSON is named."""

import hashlib
import os

import pytest

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_the_folder_and_replaces_the_content(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    files.write_bytes(path, b"old and longer")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_no_temporary_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "file.bin"
    files.write_bytes(path, b"old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_the_target_is_untouched_until_all_is_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    files.write_bytes(path, b"old")
    seen = []
    fsync = os.fsync

    def watch(descriptor):
        seen.append((path.read_bytes(), os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    files.write_bytes(path, b"newer")
    assert seen == [(b"old", 5)]


def test_json_round_trip_keeps_order_and_text(tmp_path):
    path = tmp_path / "file.json"
    content = {"b": [1, 2.5, None], "a": {"ü": "é"}}
    files.write_json(path, content)
    assert files.read_json(path) == content
    assert list(files.read_json(path)) == ["b", "a"]
    assert path.read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"nonsense", b"[" * 100_000])
def test_bad_json_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is not valid JSON .*; mend it$") as caught:
        files.read_json(path, "mend it")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_json_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        files.read_json(tmp_path / "none.json")


@pytest.mark.parametrize("size", [0, 3, (1 << 20) + 1])
def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path, size):
    path = tmp_path / "file.bin"
    path.write_bytes(b"x" * size)
    assert files.sha256(path) == hashlib.sha256(b"x" * size).hexdigest()


def test_text_is_utf_8(tmp_path):
    files.write_text(tmp_path / "file.txt", "é")
    assert (tmp_path / "file.txt").read_bytes() == b"\xc3\xa9"
