"""Who may use a workdir, for what configuration and data, and what its marks say."""

import errno
import fcntl
import json

import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages.workdir import Workdir


def test_foreign_files_are_left_as_they_are(tmp_path):
    (tmp_path / ".lock").write_text("of another program")
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"holds other files \(notes\.txt"):
        Workdir(tmp_path)
    assert (tmp_path / ".lock").read_text() == "of another program"


def test_a_refused_folder_gets_no_lock(tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(InputError):
        Workdir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_lock_that_is_there_is_not_emptied(tmp_path):
    (tmp_path / ".lock").write_text("kept")
    with Workdir(tmp_path):
        assert (tmp_path / ".lock").read_text() == "kept"


def test_two_runs_cannot_share_a_workdir(tmp_path):
    with Workdir(tmp_path), pytest.raises(InputError, match="in use by another run"):
        Workdir(tmp_path)
    Workdir(tmp_path).__exit__()


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Workdir(tmp_path) as workdir:
        workdir.claim({"seed": 0})
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("begun", ["stages", "checkpoints/teacher/10", None])
def test_another_configuration_is_refused_once_something_was_computed(tmp_path, begun):
    with Workdir(tmp_path) as workdir:
        workdir.claim({"seed": 0, "dataset": {"name": "people", "data_dir": "here"}})
        workdir.claim({"seed": 0, "dataset": {"name": "people", "data_dir": "there"}})  # places may change
        other = {"seed": 1, "dataset": {"name": "people"}}
        (tmp_path / "checkpoints" / "teacher").mkdir(parents=True)  # a stage that found no memory leaves it empty
        if begun:
            (tmp_path / begun).mkdir(parents=True)
            with pytest.raises(InputError, match=r"another configuration's run \(seed is 0 there, 1 here\)"):
                workdir.claim(other)
        else:
            workdir.claim(other)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == (0 if begun else 1)


def test_frames_embedded_at_once_may_change(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.claim({"evaluation": {"batch_size": 64, "splits": ["test"]}})
        (tmp_path / "stages").mkdir()
        workdir.claim({"evaluation": {"batch_size": 32, "splits": ["test"]}})
        assert json.loads((tmp_path / "config.json").read_text())["evaluation"]["batch_size"] == 32
        with pytest.raises(InputError, match=r"\(evaluation\.splits is \['test'\] there, \[\] here\); choose another"):
            workdir.claim({"evaluation": {"batch_size": 16, "splits": []}})


@pytest.mark.parametrize("begun", ["stages", "checkpoints/teacher/10", None])
def test_other_data_are_refused_once_something_was_computed(tmp_path, begun):
    with Workdir(tmp_path) as workdir:
        workdir.claim({})
        workdir.claim_dataset("people/tiny/1.0.0", "abc")
        if begun:
            (tmp_path / begun).mkdir(parents=True)
            workdir.claim_dataset("people/tiny/1.0.0", "abc")
            with pytest.raises(InputError, match=r"other data \(fingerprint is 'abc' there, 'xyz' here\)"):
                workdir.claim_dataset("people/tiny/1.0.0", "xyz")
        else:
            workdir.claim_dataset("people/tiny/1.0.0", "xyz")
    wanted = {"name": "people/tiny/1.0.0", "fingerprint": "abc" if begun else "xyz"}
    assert json.loads((tmp_path / "dataset.json").read_text()) == wanted


def test_marks(tmp_path):
    with Workdir(tmp_path) as workdir:
        with pytest.raises(InputError, match=r"stage teacher is not done .* run it first \(--stages=teacher\)"):
            workdir.require("teacher")
        workdir.finish("teacher", 12.34, 800)
        workdir.finish("report", 1.0)
        assert workdir.require("teacher")["step"] == 800
        assert "step" not in workdir.require("report")
        assert workdir.seconds() == {"teacher": 12.3, "report": 1.0}
        workdir.reopen("teacher")
        assert not workdir.finished("teacher")
        assert workdir.finished("report")


@pytest.mark.parametrize(("content", "words"), [(None, "is missing, though"), (b"{", "is not valid JSON")])
def test_lost_results_are_told_with_the_mark_that_stands_in_their_way(tmp_path, content, words):
    with Workdir(tmp_path) as workdir:
        workdir.finish("evaluation", 1.0)
        if content is not None:
            workdir.results.write_bytes(content)
        with pytest.raises(InputError, match=rf"results\.json {words}.*; delete .*stages/evaluation\.json and run"):
            workdir.read_results()


def test_a_damaged_configuration_is_told_with_a_mend_that_works(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with Workdir(tmp_path) as workdir, pytest.raises(InputError, match=r"is not valid JSON .*choose another --workdir"):
        workdir.claim({"seed": 0})
