"""The generic part of building: manifests, free space, locks. On copies of one small dataset."""

import errno
import json
import shutil
import threading
from typing import Any

import pytest
from tensorflow_datasets.core.utils import tqdm_utils

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import prepare as prepare_lib


@pytest.fixture
def dataset(tmp_path):
    """A version folder with a manifest and two files."""
    folder = tmp_path / "name" / "config" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "data.array_record-00000-of-00001").write_bytes(bytes(range(256)) * 8)
    (folder / "dataset_info.json").write_text("{}")
    prepare_lib.write_manifest(folder, "cafe", {"train": 3})
    return folder


class FakeBuilder:
    """Builds nothing; stands for any TFDS builder."""

    def __init__(self, folder, failure=None):
        self.folder, self.failure, self.built = folder, failure, 0
        self.info, self.splits = self, {}

    def download_and_prepare(self, file_format, download_config):
        assert not tqdm_utils._active
        if self.failure:
            raise self.failure
        self.built += 1
        self.folder.mkdir(parents=True)
        (self.folder / "data").write_bytes(b"x")


def fake_builder(folder, failure=None) -> Any:
    return FakeBuilder(folder, failure)


def test_a_whole_dataset_is_reused(dataset):
    builder = fake_builder(dataset)
    assert prepare_lib.prepare(lambda: builder, dataset, fingerprint="cafe") is builder
    assert builder.built == 0


def _flip(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))


def _edit_manifest(key, value):
    def edit(path):
        manifest = json.loads((path.parent / "manifest.json").read_text())
        manifest[key] = value
        (path.parent / "manifest.json").write_text(json.dumps(manifest))

    return edit


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_flip, ["data.array_record", "damaged"]),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), ["data.array_record", "2047 bytes instead of 2048"]),
        (lambda path: path.unlink(), ["data.array_record", "is missing"]),
        (lambda path: (path.parent / "manifest.json").unlink(), ["manifest.json", "is missing"]),
        (lambda path: (path.parent / "manifest.json").write_text("{"), ["manifest.json", "damaged"]),
        (_edit_manifest("files", [1]), ["manifest.json", "damaged"]),
        (_edit_manifest("files", {"a": {"bytes": 1}}), ["manifest.json", "damaged"]),
        (_edit_manifest("fingerprint", "beef"), ["fingerprint beef", "cafe"]),
    ],
)
def test_damage_is_named_with_its_mend(dataset, harm, words):
    harm(dataset / "data.array_record-00000-of-00001")
    with pytest.raises(InputError) as caught:
        prepare_lib.prepare(lambda: pytest.fail("a damaged dataset is not opened"), dataset, fingerprint="cafe")
    for word in [*words, f"delete {dataset} and run again"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_building_writes_a_manifest_and_removes_what_a_killed_build_left(tmp_path):
    folder = tmp_path / "name" / "1.0.0"
    stale = tmp_path / "name" / "incomplete.ABC123_1.0.0"
    stale.mkdir(parents=True)
    other = tmp_path / "name" / "incomplete.ABC123_2.0.0"
    other.mkdir()
    builder = fake_builder(folder)
    prepare_lib.prepare(lambda: builder, folder, fingerprint="cafe")
    assert builder.built == 1
    assert not stale.exists()
    assert other.exists()
    prepare_lib.verify(folder, "cafe")
    prepare_lib.prepare(lambda: builder, folder, fingerprint="cafe")
    assert builder.built == 1


def test_a_build_killed_before_its_manifest_is_built_again(tmp_path):
    folder = tmp_path / "name" / "1.0.0"
    folder.mkdir(parents=True)
    prepare_lib._marker(folder).write_text("cafe\n")
    builder = fake_builder(folder)
    prepare_lib.prepare(lambda: builder, folder, fingerprint="cafe")
    assert builder.built == 1


def test_too_little_space_is_said_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    folder = tmp_path / "name" / "1.0.0"
    builder = fake_builder(folder)
    with pytest.raises(InputError, match=r"has 5 MB free and the build needs 80 MB; free some space or choose"):
        prepare_lib.prepare(lambda: builder, folder, fingerprint="cafe", bytes_needed=80_000_000)
    assert builder.built == 0


def _wrapped(error):
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("Failed to encode example") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        _wrapped(OSError(errno.ENOSPC, "x")),
        ValueError("write failed: No space left on device"),
    ],
)
def test_a_full_disk_is_one_line_however_deep(tmp_path, failure):
    folder = tmp_path / "name" / "1.0.0"
    with pytest.raises(InputError, match=r"the disk of .*name is full; free some space and run again"):
        prepare_lib.prepare(lambda: fake_builder(folder, failure), folder, fingerprint="cafe")
    assert tqdm_utils._active


def test_other_failures_stay_what_they_are(tmp_path):
    folder = tmp_path / "name" / "1.0.0"
    with pytest.raises(ZeroDivisionError):
        prepare_lib.prepare(lambda: fake_builder(folder, ZeroDivisionError()), folder, fingerprint="cafe")


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "config" / "1.0.0"
    with pytest.raises(InputError, match=r"cannot write to .*file/config .*choose another data_dir"):
        prepare_lib.prepare(lambda: fake_builder(folder), folder, fingerprint="cafe")


def test_a_second_builder_waits_for_the_first(tmp_path, capsys):
    folder = tmp_path / "name" / "1.0.0"
    builder = fake_builder(folder)
    ready = threading.Event()

    def second():
        ready.set()
        prepare_lib.prepare(lambda: builder, folder, fingerprint="cafe")

    thread = threading.Thread(target=second)
    with prepare_lib.locked(folder, "dataset"):
        thread.start()
        ready.wait()
        thread.join(timeout=0.3)
        assert thread.is_alive()
        assert builder.built == 0
    thread.join(timeout=30)
    assert builder.built == 1
    assert "another process builds" in capsys.readouterr().out


def test_readers_of_a_finished_dataset_do_not_wait(dataset):
    builder, found = fake_builder(dataset), []
    thread = threading.Thread(
        target=lambda: found.append(prepare_lib.prepare(lambda: builder, dataset, fingerprint="cafe")), daemon=True
    )
    with prepare_lib.locked(dataset, "dataset"):
        thread.start()
        thread.join(timeout=30)
    assert found == [builder]


def test_a_finished_dataset_on_a_read_only_disk_is_reused(dataset, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(prepare_lib, "open", refuse, raising=False)
    left = dataset.parent / f"incomplete.XYZ_{dataset.name}"  # of a killed build; it cannot be removed here
    left.mkdir()
    builder = fake_builder(dataset)
    assert prepare_lib.prepare(lambda: builder, dataset, fingerprint="cafe") is builder
    assert left.exists()
    with pytest.raises(InputError, match=r"cannot write to .* \(Read-only file system\); choose another data_dir"):
        prepare_lib.prepare(lambda: builder, dataset.parent / "2.0.0", fingerprint="cafe")
