"""What is too large for the devices of a run: one line, of a training stage with a batch that fits them."""

import re
from unittest import mock

import jax
import pytest
from jax.sharding import Mesh

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import OutOfMemory
from rgbd_reid_jax.planning import fitting, program
from rgbd_reid_jax.stages import table, training
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.settings import parse_settings
from rgbd_reid_jax.stages.workdir import Workdir

TEACHER, STUDENT = "--config.training.teacher", "--config.training.student"
_LIMIT = 17.5e6  # bytes of one of eight devices: 24 rows take 16.8 MB, 32 take 18.3


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path, tiny_data_dir, too_large):
    """The line that a run ends with whose teacher finds no memory at a `place`, on devices with `limit` bytes."""

    def run(limit, *arguments, place="train"):
        monkeypatch.setattr(training, place, too_large)
        monkeypatch.setattr(fitting, "memory_of", lambda devices: limit)
        words = ["main", "--config=configs/distill.py", "--config.dataset.config=tiny", f"--workdir={tmp_path / 'run'}"]
        words += [f"--config.dataset.data_dir={tiny_data_dir}", f"{TEACHER}.batch_size=48", f"{STUDENT}.batch_size=48"]
        assert cli.run([*words, "--config.export.platforms=('cpu',)", *arguments]) == 2
        out, errors = capsys.readouterr()
        assert len(errors.splitlines()) == 1
        assert "stage teacher with training.teacher.batch_size=48 needs more memory than its devices have" in errors
        return out, errors

    return run


def fake_program(monkeypatch):
    """Steps that take 1 GB and 0.1 GB a row, without compiling them; the batches that were tried."""
    tried = []

    def compiled(settings, stage, where, batch, data):
        tried.append(batch)
        if batch > 40:
            raise program.TooLarge("Ran out of memory")
        return type("Program", (), {"peak": 1e9 + 1e8 * batch}), where

    monkeypatch.setattr(fitting, "compile_step", compiled)
    return tried


@pytest.mark.parametrize(
    ("limit", "arguments", "words"),
    [
        (3.0e9, ["sampling.name=shuffle"], ["a batch of 16 fits: --config.training.teacher.batch_size=16"]),
        (4.3e9, ["sampling.name=shuffle"], ["a batch of 32 fits: --config.training.teacher.batch_size=32"]),
        (4.3e9, ["sampling.people=4", "sampling.frames=12"], ["24 fits", "batch_size=24", "sampling.people=2"]),
        (1.0e9, ["sampling.name=shuffle"], ["not even a batch of 8 fits"]),
        (None, ["sampling.name=shuffle"], ["choose a smaller batch, or --config.training.teacher.micro_batches=2"]),
    ],
)
def test_the_batch_that_fits_is_named(refused, monkeypatch, limit, arguments, words):
    tried = fake_program(monkeypatch)
    _, line = refused(limit, *(f"{TEACHER}.{one}" for one in arguments))
    assert all(word in line for word in words), line
    assert all(batch % 8 == 0 and batch < 48 for batch in tried)  # of eight devices
    assert bool(tried) == (limit is not None)


@pytest.mark.parametrize(("fsdp", "come", "told"), [(1, True, True), (1, False, False), (8, True, False)])
def test_of_several_processes_the_first_one_looks_with_its_own_devices(refused, monkeypatch, fsdp, come, told):
    """Four devices of eight; the number is of all. Parameters that all eight share are on none of them whole."""
    tried, devices, asked = fake_program(monkeypatch), jax.devices(), []
    here = mock.PropertyMock(return_value=devices[:4])
    monkeypatch.setattr(Mesh, "local_devices", here)
    monkeypatch.setattr(fitting.distributed, "all_come", lambda *_: come)
    monkeypatch.setattr(fitting.distributed, "on_first", lambda work, name="": asked.append(name) or work())
    _, line = refused(3.0e9, f"{TEACHER}.sampling.name=shuffle", f"--config.mesh.fsdp={fsdp}")
    assert ("a batch of 40 fits: --config.training.teacher.batch_size=40" in line) == told
    assert (fitting._NAME in asked) == bool(tried) == told
    assert all(batch % 4 == 0 and batch < 24 for batch in tried)


def test_the_initial_state_may_be_what_is_too_large(refused, monkeypatch):
    fake_program(monkeypatch)
    _, line = refused(3.0e9, f"{TEACHER}.sampling.name=shuffle", place="create_state")
    assert "a batch of 16 fits: --config.training.teacher.batch_size=16" in line


def test_the_same_workdir_takes_the_batch_that_fits(refused, monkeypatch, tmp_path):
    fake_program(monkeypatch)
    refused(3.0e9, f"{TEACHER}.sampling.name=shuffle")
    with Workdir(tmp_path / "run") as workdir:
        workdir.claim({"seed": 5})  # another configuration: nothing was computed


def test_another_stage_is_named_without_a_batch(monkeypatch, capsys, tmp_path, too_large):
    monkeypatch.setitem(table.STAGES, "evaluation", too_large)
    assert cli.run(["main", "--config=configs/distill.py", f"--workdir={tmp_path}", "--stages=evaluation"]) == 2
    words = "error: stage evaluation needs more memory than its devices have; end other programs that use them, or"
    assert capsys.readouterr().err.startswith(words)


def test_by_the_compilers_own_count(refused):
    out, line = refused(_LIMIT, f"{TEACHER}.sampling.name=shuffle")
    found = re.findall(rf"a batch of (\d+) takes ([\d.]+) of {_LIMIT / 1e6:.1f} MB", out)
    peaks = {int(rows): float(size) for rows, size in found}
    most = max(rows for rows, size in peaks.items() if size < _LIMIT / 1e6)
    assert min(rows for rows, size in peaks.items() if size > _LIMIT / 1e6) == most + 8
    assert f"a batch of {most} fits" in line


def test_a_student_all_of_whose_layers_train_is_told_what_fits(
    monkeypatch, without_augmentation, tmp_path, tiny_data_dir
):
    """`freeze=()` is no table at all, and is accepted as one."""
    monkeypatch.setattr(fitting, "memory_of", lambda devices: 1e9)
    given = ["--config=configs/distill.py", "--config.dataset.config=tiny", "--config.model.backbone=tiny"]
    given += [f"--config.dataset.data_dir={tiny_data_dir}", "--config.training.student.freeze=()"]
    given += ["--config.training.student.hints=(1,2)"]  # the tiny network has two stages
    content = cli.configuration(given)
    with Workdir(tmp_path) as workdir:
        line = fitting.message(Job(parse_settings(content), workdir, content), OutOfMemory("student", 16))
    assert line.endswith("a batch of 8 fits: --config.training.student.batch_size=8")
