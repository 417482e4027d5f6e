"""The build of recorded datasets: pools, killed builds, changed sources, frames that are left out, memory."""

import concurrent.futures
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data import dataset
from tfds_builders import chunks
from tfds_builders.recorded import builder as builder_lib
from tfds_builders.recorded.frames import Finding, Frame, Scan
from tfds_builders.rgbd_folder import example_tree, read
from tfds_builders.rgbd_folder.rgbd_folder_dataset_builder import Builder, config_of, prepare

ROOT = pathlib.Path(__file__).parents[2]
PER_CHUNK = 3
FRAMES = 24  # 12 train, 4 validation, 8 test: 4 + 2 + 3 chunks


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(builder_lib, "_FRAMES_PER_CHUNK", PER_CHUNK)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("recorded") / "tree"
    example_tree.write(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tree) -> Any:
    return prepare(config_of("small", {}), tree.parent / "data", tree, workers=1)


@pytest.fixture
def own(tree, tmp_path) -> pathlib.Path:
    """A copy of the tree, to be harmed."""
    return shutil.copytree(tree, tmp_path / "tree")


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The frames that are read in this process from now on."""
    seen = []

    def counted(root, frame, knobs):
        seen.append(frame.file)
        return read.read_frame(root, frame, knobs)

    monkeypatch.setattr(Builder, "read", staticmethod(counted))
    return seen


def build(folder: pathlib.Path, tree: pathlib.Path, workers: int = 1, **knobs: Any) -> Any:
    return prepare(config_of("small", knobs), folder / "data", tree, workers=workers)


def place(folder: pathlib.Path) -> pathlib.Path:
    return folder / "data" / "rgbd_folder" / "small"


def left(folder: pathlib.Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in place(folder).iterdir())


def assert_same_records(one: Any, other: Any) -> None:
    for split in one.info.splits:
        records, others = list(one.as_data_source(split)), list(other.as_data_source(split))
        assert len(records) == len(others)
        for record, same in zip(records, others, strict=True):
            assert record.keys() == same.keys()
            for name, value in record.items():
                np.testing.assert_array_equal(value, same[name], err_msg=f"{split} {name}")


def test_records_are_in_the_order_of_the_scan(tree, whole):
    scan = whole.scan(tree, whole.listing(tree)[1])
    for split, frames in scan.frames.items():
        assert [record["source"].decode() for record in whole.as_data_source(split)] == [frame.rgb for frame in frames]


def test_a_pool_gives_what_one_process_gives(tree, whole, tmp_path):
    pooled = build(tmp_path, tree, workers=2)
    assert_same_records(whole, pooled)
    assert left(tmp_path) == [".lock", "1.0.0"]
    assert dict(pooled.info.metadata) == dict(whole.info.metadata)


def test_a_large_dataset_has_several_shards_and_is_not_held_in_memory(tree, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "SHARD_BYTES", 1)
    monkeypatch.setattr(shuffle, "Shuffler", None)  # holds a split, and imports TensorFlow from 1 GiB on
    built = build(tmp_path, tree)
    assert built.info.splits["train"].shard_lengths == [PER_CHUNK] * 4
    assert_same_records(whole, built)


def test_a_shard_without_a_usable_frame_does_no_harm(own, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "SHARD_BYTES", 1)
    monkeypatch.setattr(builder_lib, "_FRAMES_PER_CHUNK", 2)
    for frame in (own / "train" / "anna" / "door" / "first").glob("*_rgb.jpg"):
        frame.write_bytes(b"")
    built = build(tmp_path, own, bad_share=0.5)
    assert built.info.splits["train"].shard_lengths == [0, 2, 2, 2, 2, 2]
    records, others = (list(one.as_data_source("train")) for one in (built, whole))
    assert [record["source"] for record in records] == [record["source"] for record in others[2:]]


KILLED = f"""
import os, signal, subprocess, sys
from tfds_builders import chunks
from tfds_builders.recorded import builder
from tfds_builders.rgbd_folder.rgbd_folder_dataset_builder import config_of, prepare
if __name__ == "__main__":
    builder._FRAMES_PER_CHUNK = {PER_CHUNK}
    put, count = chunks.ChunkStore.put, [0]
    def dying(self, name, content):
        count[0] += 1
        if count[0] == 6:
            print(*(child.pid for child in builder.multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, name, content)
    chunks.ChunkStore.put = dying
    prepare(config_of("small", {{}}), sys.argv[1] + "/data", sys.argv[2], workers=int(sys.argv[3]))
"""


def _killed(tmp_path: pathlib.Path, tree: pathlib.Path, workers: int) -> str:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path), str(tree), str(workers)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout


def test_a_killed_build_goes_on_where_it_stopped(tree, whole, tmp_path, reads, capsys):
    _killed(tmp_path, tree, 1)
    assert "1.0.0" not in left(tmp_path)
    [store] = place(tmp_path).glob("building-*")
    kept = sorted(path.name for path in store.glob("*.chunk"))
    assert kept == [*(f"train-3x00000{number}.chunk" for number in range(4)), "validation-3x000000.chunk"]
    damaged = store / kept[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])

    resumed = build(tmp_path, tree)
    order = [record["source"].decode() for split in whole.info.splits for record in whole.as_data_source(split)]
    assert reads == order[3:6] + order[15:], "the damaged chunk and what was not reached"
    assert_same_records(whole, resumed)
    assert dict(resumed.info.metadata) == dict(whole.info.metadata)
    assert left(tmp_path) == [".lock", "1.0.0"]
    output = capsys.readouterr().out
    assert "15 of 24 frames were read before" in output
    assert "frame 24/24  100 %" in output


def test_the_processes_of_a_killed_build_end(tree, whole, tmp_path):
    pids = [int(pid) for pid in _killed(tmp_path, tree, 2).split()[-2:]]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while (alive := [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive
    assert_same_records(whole, build(tmp_path, tree))


def _interrupt_at(monkeypatch, name: str) -> None:
    original = files.write_bytes

    def failing(path, content):
        if name in pathlib.Path(path).name:
            raise KeyboardInterrupt
        original(path, content)

    monkeypatch.setattr(files, "write_bytes", failing)


def test_an_interrupt_keeps_what_was_read(own, tmp_path, monkeypatch, reads):
    with monkeypatch.context() as patched:
        _interrupt_at(patched, "test-3x000000")
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, own)
    assert left(tmp_path) == [".building", ".lock", "building"]
    del reads[:]
    build(tmp_path, own)
    assert len(reads) == 8


def test_a_source_that_changed_meanwhile_is_not_mixed(own, tmp_path, monkeypatch, reads):
    """Even where the file that was edited has its name and size still."""
    samples = np.full((60, 80), 2500, ">u2")
    path = own / "train" / "anna" / "door" / "first" / "0_depth.pgm"
    (path.with_suffix(".png")).unlink()
    path.write_bytes(b"P5 80 60 65535\n" + samples.tobytes())
    with monkeypatch.context() as patched:
        _interrupt_at(patched, "test-3x000000")
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, own)
    path.write_bytes(b"P5 80 60 65535\n" + (samples + 100).astype(">u2").tobytes())
    os.utime(path, ns=(10**18, 10**18))  # a coarse clock could give the same time
    del reads[:]
    builder = build(tmp_path, own)
    assert len(reads) == FRAMES
    assert set(np.unique(builder.as_data_source("train")[0]["depth"])) <= {0, 2600}
    assert left(tmp_path) == [".lock", "1.0.0"], "the store of the tree as it was is gone too"


def _spoil(tree: pathlib.Path, split: str, count: int) -> list[str]:
    spoilt = sorted(tree.glob(f"{split}/*/*/*/*_rgb.jpg"))[:count]
    for path in spoilt:
        path.write_bytes(path.read_bytes()[:300])
    return [path.relative_to(tree).as_posix() for path in spoilt]


def test_frames_that_cannot_be_used_are_left_out_and_listed(own, whole, tmp_path, capsys):
    spoilt = [*_spoil(own, "train", 2), *_spoil(own, "test", 1)]
    for workers in (1, 2):
        builder = build(tmp_path / str(workers), own, workers)
        findings = builder.info.metadata["findings"]
        assert [(finding["kind"], finding["file"]) for finding in findings] == [("corrupt", file) for file in spoilt]
        counts = {split: builder.info.splits[split].num_examples for split in builder.info.splits}
        assert counts == {"train": 10, "validation": 4, "test": 7}
        output = capsys.readouterr().out
        for file in spoilt:
            assert f"left out: {file}: it does not decode" in output
        kept = [record for record in whole.as_data_source("train") if record["source"].decode() not in spoilt]
        for record, same in zip(builder.as_data_source("train"), kept, strict=True):
            np.testing.assert_array_equal(record["rgb"], same["rgb"])


def test_too_many_of_them_stop_the_build(own, tmp_path, capsys, reads):
    spoilt = _spoil(own, "train", 6)
    with pytest.raises(InputError) as caught:
        build(tmp_path, own)
    message = str(caught.value)
    assert "6 of the 12 frames of split train cannot be used (first: " in message
    assert spoilt[0] in message
    assert message.endswith("mend the files, or allow it with the knob bad_share=0.51")
    assert "1.0.0" not in left(tmp_path)
    assert not list(place(tmp_path).glob("incomplete.*"))
    assert "left out: 1 more frames of train" in capsys.readouterr().out
    del reads[:]
    assert build(tmp_path, own, bad_share=0.51).info.splits["train"].num_examples == 6
    assert len(reads) == FRAMES - 12, "what the refused build had read was not read again"
    assert not list((tmp_path / "data").glob("**/building-*"))


def test_a_split_without_a_frame_is_no_split(own, tmp_path):
    _spoil(own, "val", 4)
    with pytest.raises(InputError, match=r"4 of the 4 frames of split validation cannot be used .*; mend the files$"):
        build(tmp_path, own, bad_share=1.0)
    assert not (place(tmp_path) / "1.0.0").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_of_them_can_stop_the_build(own, tmp_path, workers):
    [spoilt] = _spoil(own, "test", 1)
    with pytest.raises(
        InputError, match=r"it does not decode .*; mend or remove it, or say bad_frames='skip'"
    ) as caught:
        build(tmp_path, own, workers, bad_frames="fail")
    assert spoilt in str(caught.value)
    assert "\n" not in str(caught.value)


class FakePool:
    """Three processes that read when they are asked; counts chunks that were asked for and not yet taken."""

    def __init__(self, failure: Exception | None = None):
        self.ahead = self.greatest = self.submitted = 0
        self._failure = failure

    def submit(self, function, *arguments):
        self.ahead, self.submitted = self.ahead + 1, self.submitted + 1
        self.greatest = max(self.greatest, self.ahead)
        pool = self

        class Future(concurrent.futures.Future):
            def result(self, timeout=None):
                pool.ahead -= 1
                if pool._failure:
                    raise pool._failure
                return function(*arguments)

        return Future()


@pytest.fixture
def fake_pool(monkeypatch):
    def put(pool: FakePool) -> FakePool:
        monkeypatch.setattr(Builder, "read", staticmethod(read.read_frame))
        monkeypatch.setattr(builder_lib, "_FRAMES_PER_CHUNK", 1)
        monkeypatch.setattr(builder_lib._Reading, "_pool", (pool.submit, 3))
        return pool

    return put


def test_few_chunks_are_read_ahead(tree, tmp_path, fake_pool):
    pool = fake_pool(FakePool())
    build(tmp_path, tree)
    assert pool.submitted == FRAMES
    assert pool.greatest == 6, "twice as many as there are processes, however many chunks there are"


def test_a_process_that_was_killed_is_one_line(tree, tmp_path, fake_pool):
    fake_pool(FakePool(BrokenProcessPool("terminated abruptly")))
    with pytest.raises(InputError, match=r"a process that reads frames of .* run again with fewer --workers"):
        build(tmp_path, tree)
    assert not (place(tmp_path) / "1.0.0").exists()


def test_another_reader_does_not_take_old_data_for_its_own(tree, tmp_path, monkeypatch):
    build(tmp_path, tree)
    monkeypatch.setattr(builder_lib, "READER_VERSION", builder_lib.READER_VERSION + 1)
    with pytest.raises(InputError, match=r"small/1\.0\.0 was built with fingerprint .* delete .* and run again"):
        build(tmp_path, tree)


def test_a_tree_that_is_not_there_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("none", "does not exist or is empty"),
        ("file", "is no folder"),
        ("empty", "does not exist or is empty"),
    ):
        with pytest.raises(InputError) as caught:
            build(tmp_path, tmp_path / name)
        assert f"{tmp_path / name} {words}" in str(caught.value)
        assert "--manual_dir" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"rgbd_folder needs files of yours \(--manual_dir\)"):
        prepare(config_of("small", {}), tmp_path / "data")


def test_what_was_built_with_other_knobs_is_listed(tree, tmp_path):
    """A config without its knobs is another dataset, and nobody remembers knobs."""
    build(tmp_path, tree, title="lab's", bad_share=0.5)
    with pytest.raises(InputError) as caught:
        prepare(config_of("small", {}), tmp_path / "data")
    told = str(caught.value)
    start = told.index("rgbd_folder/small --knobs=")
    (option,) = shlex.split(told[start : told.index("; say the same config")])[1:]
    assert dataset.parse_knobs(option.removeprefix("--knobs=")) == {"title": "lab's", "bad_share": 0.5}


def test_a_dataset_is_not_put_among_its_own_source(own):
    with pytest.raises(InputError, match=r"--data_dir=.*tree/data lies within --manual_dir=.*tree; choose"):
        build(own, own)
    assert not (own / "data").exists()


def _scan(**people: list[int]) -> Scan:
    return Scan({split: [Frame(person, 0, 0, 0, rgb="x.png") for person in ids] for split, ids in people.items()})


def test_a_scan_without_frames_or_with_people_on_two_sides_is_refused():
    builder_lib.check_scan(pathlib.Path("t"), _scan(train=[1, 1, 2], test=[3]))
    with pytest.raises(InputError, match="--manual_dir=t holds no frame that could be used; mend the files"):
        builder_lib.check_scan(pathlib.Path("t"), _scan(train=[], test=[]))
    empty = Scan({}, [Finding("ignored", "notes.txt", "its name fits nothing here")])
    with pytest.raises(InputError, match=r"could be used \(first: notes\.txt: its name fits nothing here\)"):
        builder_lib.check_scan(pathlib.Path("t"), empty)
    with pytest.raises(InputError, match=r"t/x\.png: person 2 is in split train and in test"):
        builder_lib.check_scan(pathlib.Path("t"), _scan(train=[1, 2], test=[2]))


def test_chunks_are_of_one_length(tmp_path):
    """Chunks of another number of frames are not taken for these."""
    assert builder_lib._chunk_name("train", 7) == f"train-{PER_CHUNK}x000007"
    assert chunks.ChunkStore(tmp_path, "x").path("train-3x000007").name == "train-3x000007.chunk"


def test_a_file_that_was_edited_without_another_size_is_told(own, tmp_path, capsys):
    build(tmp_path, own)
    build(tmp_path, own)
    assert "but not the times" not in capsys.readouterr().out
    edited = next(own.rglob("*_depth.png"))
    edited.write_bytes(edited.read_bytes())
    os.utime(edited, ns=(0, 0))
    build(tmp_path, own)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "but not the times" in line]
    assert f"{place(tmp_path)}/1.0.0 was built; if any was changed, delete that folder" in line
