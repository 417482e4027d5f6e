"""Building through TFDS: what is in the records, killed builds, damaged chunks."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from tfds_builders import chunks, schema
from tfds_builders import prepare as prepare_lib
from tfds_builders.chunks import pack
from tfds_builders.synthetic_rgbd import contact_sheet, store
from tfds_builders.synthetic_rgbd.config import SPLITS, custom_config, fingerprint, named_config
from tfds_builders.synthetic_rgbd.synthetic_rgbd_dataset_builder import Builder, prepare

ROOT = pathlib.Path(__file__).parents[2]
PEOPLE_PER_CHUNK = 2
CHUNKS = 3 + 2 + 2  # of 6 + 4 + 4 people


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(store, "_FRAMES_PER_CHUNK", PEOPLE_PER_CHUNK * 8)


def _folder(data_dir) -> pathlib.Path:
    return pathlib.Path(data_dir) / "synthetic_rgbd" / "tiny"


def _assert_same_records(one: Any, other: Any) -> None:
    """Equal content in equal order; the bytes of files may differ, as protobuf orders a map anew in each process."""
    for split in SPLITS:
        records, others = one.as_data_source(split), other.as_data_source(split)
        assert len(records) == len(others)
        for index in range(len(records)):
            assert records[index].keys() == others[index].keys()
            for name, value in records[index].items():
                np.testing.assert_array_equal(value, others[index][name], err_msg=f"{split} {index} {name}")


@pytest.fixture
def rendered(monkeypatch):
    """Names of the chunks that are rendered from now on."""
    names = []
    original = store.render_chunk

    def counted(config, split, index):
        names.append((split, int(index[0])))
        return original(config, split, index)

    monkeypatch.setattr(store, "render_chunk", counted)
    return names


def test_records_hold_what_the_schema_says(tiny_data_dir):
    config = named_config("tiny")
    builder: Any = prepare("tiny", tiny_data_dir)
    assert builder.info.metadata["fingerprint"] == fingerprint(config)
    assert set(builder.info.features) == set(schema.frame_features())
    seen = {name: set() for name in ("person_id", "recording_id", "clothes_id")}
    for split in SPLITS:
        source = builder.as_data_source(split)
        _, images = store.render_arrays(config, split, np.arange(config.people(split)))
        assert len(source) == config.num_frames(split) == len(images.rgb)
        ids = {name: set() for name in seen}
        for index, record in enumerate(source):
            assert record["rgb"].shape == (64, 32, 3)
            assert record["depth"].dtype == np.uint16
            assert np.array_equal(record["rgb"], images.rgb[index]), "records keep their order"
            assert np.array_equal(record["depth"][..., 0], images.depth[index])
            assert np.array_equal(record["mask"][..., 0], images.mask[index])
            assert set(np.unique(record["mask"])) == {0, 255}
            assert record["recording_type"] in (schema.STANDING, schema.WALKING)
            top, left, bottom, right = record["person_box"]
            assert 0 <= top < bottom <= 64
            assert 0 <= left < right <= 32
            assert np.all(record["intrinsics"][:2] > 0)
            for name in ids:
                ids[name].add(int(record[name]))
        for name, values in ids.items():
            assert not values & seen[name], f"{name} is shared between splits"
            seen[name] |= values
    assert len(seen["person_id"]) == 14


def test_nothing_but_the_dataset_is_left(tiny_data_dir):
    assert sorted(p.name for p in _folder(tiny_data_dir).iterdir()) == [".lock-1.1.0", "1.1.0"]


def test_a_large_dataset_has_several_shards_of_the_same_records(tmp_path, tiny_data_dir, monkeypatch):
    monkeypatch.setattr(chunks, "SHARD_BYTES", 1)
    monkeypatch.setattr(shuffle, "Shuffler", None)  # holds a split, and imports TensorFlow from 1 GiB on
    built = prepare("tiny", tmp_path)
    assert built.info.splits["train"].shard_lengths == [PEOPLE_PER_CHUNK * 8] * 3
    _assert_same_records(prepare("tiny", tiny_data_dir), built)


def test_reading_and_building_need_no_tensorflow(tmp_path):
    program = (
        "import sys; from tfds_builders.synthetic_rgbd.synthetic_rgbd_dataset_builder import Builder; "
        "b = Builder(config='tiny', data_dir=sys.argv[1], file_format='array_record'); "
        "assert b.name == 'synthetic_rgbd'; assert 'tensorflow' not in sys.modules; "
        "from tfds_builders.synthetic_rgbd.config import custom_config; "
        "c = Builder(config=custom_config('tiny', seed=3), data_dir=sys.argv[1]); print(c.data_path)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("synthetic_rgbd/tiny-seed3/1.1.0")


KILLED = f"""
import os, signal, sys
from tfds_builders.synthetic_rgbd import store
from tfds_builders.synthetic_rgbd.synthetic_rgbd_dataset_builder import prepare
store._FRAMES_PER_CHUNK = {PEOPLE_PER_CHUNK * 8}
original = store.ChunkStore.get
def get(self, split, number):
    if split == "validation" and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, split, number)
store.ChunkStore.get = get
prepare("tiny", sys.argv[1])
"""


def test_a_killed_build_goes_on_where_it_stopped(tmp_path, tiny_data_dir, rendered, capsys):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    left = sorted(p.name for p in _folder(tmp_path).iterdir())
    assert any(name.startswith("incomplete.") for name in left)
    assert "1.1.0" not in left
    # One of the chunks that were written is damaged as well.
    kept = _folder(tmp_path) / f"building-{fingerprint(named_config('tiny'))}"
    assert len(list(kept.iterdir())) == 4
    damaged = kept / f"train-{PEOPLE_PER_CHUNK}x00001.chunk"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))

    resumed = prepare("tiny", tmp_path)
    assert rendered == [("train", 2), ("validation", 2), ("test", 0), ("test", 2)]
    assert sorted(p.name for p in _folder(tmp_path).iterdir()) == [".lock-1.1.0", "1.1.0"]
    output, errors = capsys.readouterr()
    assert "64 of 112 frames were rendered before" in output
    assert "frame 112/112  100 %" in output
    assert all(line.startswith("[dataset] ") for line in output.splitlines()), "TFDS prints nothing of its own"
    assert errors == ""
    _assert_same_records(resumed, prepare("tiny", tiny_data_dir))


def test_finished_parts_need_no_more_space(tmp_path, monkeypatch):
    needed = []
    monkeypatch.setattr(prepare_lib, "prepare", lambda *_, bytes_needed, **__: needed.append(bytes_needed))
    prepare("tiny", tmp_path)
    kept = _folder(tmp_path) / f"building-{fingerprint(named_config('tiny'))}"
    kept.mkdir(parents=True)
    (kept / "train-2x00000.chunk").write_bytes(bytes(1000))
    prepare("tiny", tmp_path)
    assert needed[0] - needed[1] == 1000


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_nothing_that_is_trusted(tmp_path, monkeypatch, failure, rendered):
    original = files.write_bytes

    def failing(path, content):
        if "validation" in pathlib.Path(path).name:
            raise failure
        original(path, content)

    monkeypatch.setattr(files, "write_bytes", failing)
    with pytest.raises(InputError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        prepare("tiny", tmp_path)
    if isinstance(failure, OSError):
        assert "is full" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(_folder(tmp_path).glob("1.1.0"))
    assert not list(_folder(tmp_path).glob("incomplete.*"))
    monkeypatch.setattr(files, "write_bytes", original)
    del rendered[:]
    builder = prepare("tiny", tmp_path)
    assert rendered[0] == ("validation", 0)
    assert builder.info.splits["test"].num_examples == 32


def test_a_truncated_chunk_is_no_chunk(tmp_path):
    config = named_config("tiny")
    chunks = store.ChunkStore(config, tmp_path)
    whole = chunks.get("test", 0)
    path = chunks.path("test", 0)
    assert chunks.frames_rendered == 16
    content = path.read_bytes()
    for cut in (b"", content[:10], content[:-1], content[:32]):
        path.write_bytes(cut)
        again = chunks.get("test", 0)
        assert pack(again) == pack(whole)
        assert path.read_bytes() == content
    assert chunks.frames_rendered == 16 * 5
    same = chunks.get("test", 0)
    assert chunks.frames_rendered == 16 * 5
    assert pack(same) == pack(whole)


def test_other_knobs_have_another_store_and_folder(tmp_path):
    other = custom_config("tiny", body_spread=1.7)
    assert store.ChunkStore(other, tmp_path).folder != store.ChunkStore(named_config("tiny"), tmp_path).folder
    assert (
        Builder(config=other, data_dir=str(tmp_path)).data_path != Builder(config="tiny", data_dir=tmp_path).data_path
    )


def test_a_config_of_ones_own_is_opened_without_a_warning(tmp_path, caplog, monkeypatch):
    config = custom_config("tiny", seed=3)
    Builder(config=config, data_dir=str(tmp_path))
    assert "Using custom data configuration" in caplog.text, "TFDS's own way"
    caplog.clear()
    monkeypatch.setattr(Builder, "download_and_prepare", lambda builder, **_: pathlib.Path(builder.data_dir).mkdir())
    monkeypatch.setattr(prepare_lib, "count_records", lambda _: {})
    for _ in ("built", "reused"):
        assert prepare(config, tmp_path).builder_config is config
    assert not caplog.records
    Builder(config=config, data_dir=str(tmp_path / "other"))
    assert "Using custom data configuration" in caplog.text, "other users of TFDS still see it"


def test_changed_code_or_knobs_under_an_old_name_are_refused(tiny_data_dir, monkeypatch):
    from tfds_builders.synthetic_rgbd import config as config_lib

    monkeypatch.setattr(config_lib, "RENDERER_VERSION", config_lib.RENDERER_VERSION + 1)
    with pytest.raises(InputError, match=r"tiny/1\.1\.0 was built with fingerprint .* delete .* and run again"):
        prepare("tiny", tiny_data_dir)


def test_contact_sheet_shows_the_people(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    arguments = ["--config=tiny", "--people=2", "--frames=2", "--scale=2", f"--output={out}"]
    assert contact_sheet.main(arguments) == 0
    sheet = cv2.imread(str(out))
    assert sheet is not None
    assert sheet.shape == (2 * (3 * 64 * 2 + 14), 4 * (2 * 32 + 1) * 2, 3)
    assert contact_sheet.main([*arguments, "--scale=0"]) == 2
    assert capsys.readouterr().err == "contact_sheet: --scale=0 must be at least 1\n"
    assert contact_sheet.main([*arguments, "--output=/dev/null/x.png"]) == 2
    assert "--output=/dev/null/x.png cannot be written" in capsys.readouterr().err
    assert contact_sheet.main([*arguments, "--knobs=nonsense=1"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_a_folder_of_the_users_own_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--manual_dir=.*mine: synthetic_rgbd is rendered and reads no files; leave"):
        prepare("tiny", tmp_path, tmp_path / "mine")
    assert not list(tmp_path.iterdir())
