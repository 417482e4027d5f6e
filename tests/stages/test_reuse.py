"""Finished training stages of other runs: taken where they are the same, and only there."""

import copy
import json
import pathlib
import subprocess
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.stages import reuse
from rgbd_reid_jax.stages.workdir import Workdir

REPOSITORY = pathlib.Path(__file__).parents[2]
ORDER = ["teacher", "student", "pair"]
CONFIG = {
    "method": "ours",
    "seed": 0,
    "stages": ["teacher", "student", "pair", "evaluation"],
    "encoders": {"rgb": "student"},
    "export": {"platforms": ["cpu"]},
    "dataset": {"name": "people", "knobs": "seed=1"},
    "input": {"height": 64},
    "model": {"backbone": "small"},
    "training": {"teacher": {"steps": 8}, "student": {"steps": 8}, "pair": {"steps": 4}},
    "evaluation": {"protocol": "market", "normalise": True, "batch_size": 128, "splits": ["test"]},
}


def changed(**values: Any) -> dict[str, Any]:
    """CONFIG with values by dotted name, dots as double underscores."""
    config = copy.deepcopy(CONFIG)
    for name, value in values.items():
        node: Any = config
        *parents, last = name.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


def begin(folder: pathlib.Path, config: Any = CONFIG, fingerprint: str = "abc") -> Workdir:
    """A claimed workdir."""
    workdir = Workdir(folder)
    workdir.claim(config)
    workdir.claim_dataset("people/quick/1.0.0", fingerprint)
    return workdir


def finish(workdir: Workdir, stage: str, step: int = 8) -> None:
    """Leaves what a training stage leaves."""
    for one in (step, step + 4):
        folder = workdir.checkpoints(stage) / str(one)
        folder.mkdir(parents=True)
        (folder / "state").write_text(f"{workdir.path.name} {stage} {one}")
    with open(workdir.path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"stage": stage, "step": one, "loss": 0.5 / one}) + "\n" for one in (1, 2))
    workdir.finish(stage, 12.3, step)
    mark = workdir.require(stage) | {"finished": f"at a time of its own in {workdir.path.name}"}
    workdir.mark(stage).write_text(json.dumps(mark))


@pytest.fixture
def other(tmp_path):
    """A run in `a` that finished all its training stages."""
    with begin(tmp_path / "a") as workdir:
        for stage in ORDER:
            finish(workdir, stage)
        yield workdir


def one_modality(modality: str, **values: Any) -> dict[str, Any]:
    """CONFIG whose teacher sees `modality`, with both ways of input spelled out, and further values."""
    size = {"height": 64, "colour": "rgb", "depth_representation": "relative"}
    return changed(training__teacher={"steps": 8, "modality": modality}, input=size | values)


@pytest.mark.parametrize(
    ("modality", "unseen", "seen"),
    [
        ("depth", {"colour": "grey"}, {"depth_representation": "metric"}),
        ("rgb", {"depth_representation": "metric"}, {"colour": "grey"}),
    ],
)
def test_how_a_modality_enters_that_a_stage_never_sees_is_no_matter(tmp_path, modality, unseen, seen):
    with begin(tmp_path / "a", one_modality(modality)) as there:
        finish(there, "teacher")
        for name, values, taken in (("b", unseen, True), ("c", seen, False)):
            with begin(tmp_path / name, one_modality(modality, **values)) as here:
                reuse.take_stages(here, ["teacher"], [there.path])
                assert here.finished("teacher") == taken


def lines(workdir: Workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir.path / "metrics.jsonl").read_text().splitlines()]


def test_all_that_fits_is_taken_whole(tmp_path, other, capsys):
    with begin(tmp_path / "here", changed(method="theirs", encoders={}, export={}, evaluation__batch_size=64)) as mine:
        reuse.take_stages(mine, ORDER, [other.path])
        for stage in ORDER:
            assert mine.require(stage) == other.require(stage) | {"reused_from": str(other.path)}
            assert (mine.checkpoints(stage) / "8" / "state").read_text() == f"a {stage} 8"
            assert (mine.checkpoints(stage) / "12").is_dir()
        assert lines(mine) == lines(other)
        assert sorted(path.name for path in mine.path.iterdir()) == sorted(path.name for path in other.path.iterdir())
        told = capsys.readouterr().out.splitlines()
        assert told == [f"[{stage}] reused from {other.path}, step 8" for stage in ORDER]
        reuse.take_stages(mine, ORDER, [other.path])
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("config", "taken", "reason"),
    [
        (changed(seed=1), [], "teacher: seed is 0 there, 1 here"),
        (changed(dataset__knobs="seed=2"), [], "teacher: dataset.knobs is 'seed=1' there, 'seed=2' here"),
        (changed(input__height=32), [], "teacher: input.height is 64 there, 32 here"),
        (changed(model__backbone="resnet50"), [], "teacher: model.backbone is 'small' there, 'resnet50' here"),
        (changed(evaluation__protocol="paper"), [], "teacher: evaluation.protocol is 'market' there, 'paper' here"),
        (changed(evaluation__normalise=False), [], "teacher: evaluation.normalise is True there, False here"),
        (changed(training__teacher__steps=9), [], "teacher: training.teacher.steps is 8 there, 9 here"),
        (changed(training__student__steps=9), ["teacher"], None),
        (changed(training__pair__steps=9), ["teacher", "student"], None),
        (changed(precision="high"), [], "teacher: precision is None there, 'high' here"),
        (changed(evaluation__splits=["validation"], stages=ORDER), ORDER, None),
    ],
)
def test_what_determines_a_stage_must_be_the_same(tmp_path, other, capsys, config, taken, reason):
    with begin(tmp_path / "here", config) as mine:
        reuse.take_stages(mine, ORDER, [other.path])
        assert [stage for stage in ORDER if mine.finished(stage)] == taken
        assert [stage for stage in ORDER if mine.checkpoints(stage).exists()] == taken
        words = f"[reuse] nothing in {other.path} fits ({reason})"
        assert (words in capsys.readouterr().out.splitlines()) == (reason is not None)


def test_a_stage_that_differs_may_leave_a_later_one_that_does_not_stand_on_it(tmp_path, capsys):
    order = ["teacher", "baseline"]
    stages = {"stages": order, "training": {"teacher": {"steps": 8}, "baseline": {"steps": 8}}}
    with begin(tmp_path / "a", CONFIG | stages) as there:
        for stage in order:
            finish(there, stage)
    stages["training"] = {"teacher": {"steps": 9}, "baseline": {"steps": 8}}
    with begin(tmp_path / "here", CONFIG | stages) as mine:
        reuse.take_stages(mine, order, [there.path])
        assert [stage for stage in order if mine.finished(stage)] == ["baseline"]
        assert "nothing" not in capsys.readouterr().out


def test_other_data_are_not_taken(tmp_path, other, capsys):
    with begin(tmp_path / "here", fingerprint="xyz") as mine:
        reuse.take_stages(mine, ORDER, [other.path])
        assert not mine.finished("teacher")
    assert "(teacher: dataset.fingerprint is 'abc' there, 'xyz' here)" in capsys.readouterr().out


@pytest.mark.parametrize("here", ["teacher trained", "teacher begun", "student begun"])
def test_a_student_is_taken_with_its_own_teacher_alone(tmp_path, other, here):
    """A teacher that was trained alike is not the one that the student learned from."""
    stage, _, how = here.partition(" ")
    with begin(tmp_path / "here") as mine:
        if how == "trained":
            finish(mine, stage)
        else:
            mine.checkpoints(stage).mkdir(parents=True)
        reuse.take_stages(mine, ORDER, [other.path])
        assert [one for one in ORDER if mine.finished(one)] == ([stage] if how == "trained" else [])


def test_a_stage_passes_through_several_runs(tmp_path, other):
    with begin(tmp_path / "b", changed(training__pair__steps=9)) as middle:
        reuse.take_stages(middle, ORDER, [other.path])
        finish(middle, "pair")
    with begin(tmp_path / "here", changed(training__pair__steps=9)) as mine:
        reuse.take_stages(mine, ORDER, [other.path, middle.path])
        assert mine.require("student")["reused_from"] == str(other.path)
        assert mine.require("pair")["reused_from"] == str(middle.path)


def test_a_pair_that_stood_on_other_stages_is_not_taken(tmp_path, other, capsys):
    order = ["teacher", "pair"]
    with begin(tmp_path / "here", changed(stages=order)) as mine:
        reuse.take_stages(mine, order, [other.path])
        assert [stage for stage in order if mine.finished(stage)] == ["teacher"]
    with begin(tmp_path / "there", changed(stages=["pair"])) as there:
        finish(there, "pair")
    with begin(tmp_path / "here2") as mine:
        mine.checkpoints("teacher").mkdir(parents=True)
        capsys.readouterr()
        reuse.take_stages(mine, ["pair"], [other.path])
        assert "(pair: it stands on other stages there than here (none))" in capsys.readouterr().out


def test_what_is_not_finished_or_gone_is_not_taken(tmp_path, other, capsys):
    other.reopen("teacher")
    with begin(tmp_path / "here") as mine:
        reuse.take_stages(mine, ORDER, [other.path])
        assert "(teacher: not finished there)" in capsys.readouterr().out
        other.finish("teacher", 1.0, 7)
        reuse.take_stages(mine, ORDER, [other.path])
        assert "(teacher: its checkpoint of step 7 is gone)" in capsys.readouterr().out
        assert not (mine.path / "checkpoints").exists()


def test_the_first_folder_that_fits_is_used(tmp_path, other, capsys):
    with begin(tmp_path / "b", changed(seed=1)) as misfit:
        finish(misfit, "teacher")
    with begin(tmp_path / "c") as third:
        finish(third, "teacher")
    with begin(tmp_path / "here") as mine:
        reuse.take_stages(mine, ORDER, [misfit.path, other.path, third.path])
        assert mine.require("teacher")["reused_from"] == str(other.path)
    told = capsys.readouterr().out
    assert f"nothing in {misfit.path} fits (teacher: seed is 1 there, 0 here)" in told
    assert str(third.path) not in told


def test_later_stages_are_out_of_date_after_a_stage_was_taken(tmp_path, other):
    with begin(tmp_path / "here") as mine:
        mine.finish("evaluation", 1.0)
        reuse.take_stages(mine, ORDER, [other.path])
        assert not mine.finished("evaluation")


def test_what_a_killed_copy_left_is_made_good(tmp_path, other):
    with begin(tmp_path / "here") as mine:
        (mine.scratch / "half").mkdir(parents=True)
        (mine.path / "metrics.jsonl").write_text(json.dumps({"stage": "teacher", "step": 1}) + '\n{"stage": "tea')
        reuse.take_stages(mine, ORDER, [other.path])
        assert lines(mine) == lines(other)
        assert not (mine.checkpoints("teacher") / "half").exists()
        assert not mine.scratch.exists()


@pytest.mark.parametrize(
    ("name", "words"), [("absent", "is no folder"), ("empty", "no workdir"), ("here", "own workdir")]
)
def test_folders_that_are_no_other_run_are_refused(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    with begin(tmp_path / "here") as mine:
        settings = types.SimpleNamespace(stages=ORDER, training=CONFIG["training"])
        job: Any = types.SimpleNamespace(settings=settings, workdir=mine)
        with pytest.raises(InputError, match=words) as error:
            reuse.reuse_stages(job, [tmp_path / name])
        assert f"--reuse={tmp_path / name}" in str(error.value)
        for stage in ORDER:
            finish(mine, stage)
        reuse.reuse_stages(job, [tmp_path / name])  # lacks nothing, so it does not look


STEPS = 8
SMALL = [
    "--config.dataset.config=tiny",
    "--config.model.backbone=tiny",
    "--config.training.student.hints=(1,2)",  # the tiny network has two stages
    *(
        f"--config.training.{stage}.{name}={value}"
        for stage in ("teacher", "student")
        for name, value in (
            *(("steps", STEPS), ("batch_size", 16), ("log_every", 1), ("evaluate_every", 4)),
            *(("sampling.people", 4), ("sampling.frames", 4)),
        )
    ),
]


@pytest.mark.slow
def test_a_student_of_a_reused_teacher_is_the_student_of_the_run_that_trained_both(job_env, tmp_path):
    """Bit for bit, through the command."""

    def run(name: str, *arguments: str) -> str:
        words = [sys.executable, "-m", "rgbd_reid_jax.main", "--config=configs/distill.py", *SMALL, *arguments]
        words += [f"--workdir={tmp_path / name}", "--stages=teacher,student"]
        done = subprocess.run(
            words, cwd=REPOSITORY, env=job_env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("both")
    (tmp_path / "both" / "stages" / "student.json").unlink()
    told = run("again", f"--reuse={tmp_path / 'both'}")
    assert f"[teacher] reused from {tmp_path / 'both'}" in told
    assert "[teacher] step" not in told
    assert f"[student] step {STEPS}/{STEPS}" in told
    for stage in ("teacher", "student"):
        states = []
        for name in ("both", "again"):
            with Checkpoints(tmp_path / name / "checkpoints" / stage) as checkpoints:
                states.append(checkpoints.restore_parts(STEPS))
        jax.tree.map(np.testing.assert_array_equal, *states)
