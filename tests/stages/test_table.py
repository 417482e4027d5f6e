"""Which stages are run, in which order."""

import types
from typing import Any

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages import table, training
from rgbd_reid_jax.stages.workdir import Workdir

ORDER = ("teacher", "student", "evaluation", "export", "report")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job whose stages only tell, in `ran`, that they were run; training chooses step 7."""
    ran = []

    def stage(name: str):
        def run(_: Any) -> int | None:
            ran.append(name)
            return 7 if name in ("teacher", "student") else None

        return run

    monkeypatch.setattr(table, "STAGES", {name: stage(name) for name in ORDER})
    settings: Any = types.SimpleNamespace(stages=ORDER, training={})
    with Workdir(tmp_path) as workdir:
        yield types.SimpleNamespace(settings=settings, workdir=workdir, ran=ran)


def test_stages_run_in_the_configuration_s_order(job):
    table.run_stages(job, ["report", "student", "teacher"])
    assert job.ran == ["teacher", "student", "report"]


def test_done_stages_are_passed_over(job, capsys):
    table.run_stages(job, ORDER)
    table.run_stages(job, ORDER)
    assert job.ran == list(ORDER)
    assert capsys.readouterr().out.count("already done") == 5


def test_what_follows_a_stage_that_is_done_again_is_done_again(job):
    table.run_stages(job, ORDER)
    job.workdir.reopen("evaluation")
    table.run_stages(job, ORDER)
    assert job.ran[len(ORDER) :] == ["evaluation", "export", "report"]


def test_what_is_out_of_date_and_not_asked_for_is_done_by_a_later_run(job):
    table.run_stages(job, ORDER)
    job.workdir.reopen("evaluation")
    table.run_stages(job, ["evaluation"])
    assert not job.workdir.finished("report")
    table.run_stages(job, ORDER)
    assert job.ran[len(ORDER) :] == ["evaluation", "export", "report"]


def test_a_training_stage_s_mark_holds_the_chosen_step(job):
    table.run_stages(job, ORDER)
    assert job.workdir.require("student")["step"] == 7
    assert "step" not in job.workdir.require("evaluation")


def test_devices_matter_only_to_stages_that_are_still_to_be_done(job):
    job.settings.training = {"teacher": types.SimpleNamespace(batch_size=12, micro_batches=1)}
    job.mesh = types.SimpleNamespace(size=8)
    with pytest.raises(InputError, match=r"training\.teacher\.batch_size=12"):
        table.check_devices(job, ORDER)
    job.workdir.finish("teacher", 1.0, 7)
    table.check_devices(job, ORDER)


@pytest.mark.parametrize("checkpoint", [None, "8"])
def test_a_new_teacher_is_not_trained_beside_an_old_student(job, checkpoint):
    job.settings.training = dict.fromkeys(("teacher", "student"), types.SimpleNamespace(steps=16, patience=0))
    job.workdir.checkpoints("student").mkdir(parents=True)
    if checkpoint:
        (job.workdir.checkpoints("teacher") / checkpoint).mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoints/student stands on another teacher .* delete"):
        training.run_teacher(job)


def test_people_are_numbered_alike_only_if_they_are_the_same():
    found: list[Any] = [
        types.SimpleNamespace(labels={"person_id": np.array(people)}) for people in ([3, 5, 5], [3, 4, 5], [5, 3, 3])
    ]
    one, other, again = found
    assert training._same_people(one, again)
    assert not training._same_people(one, other)
