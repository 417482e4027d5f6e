"""Processes of a sweep: order, dependencies, CPUs, failures and a polite end."""

import json
import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError, Interrupted
from rgbd_reid_jax.stages.workdir import plain
from rgbd_reid_jax.sweeps import run
from rgbd_reid_jax.sweeps.plan import Method, Task, tasks_of

LINUX = hasattr(os, "sched_getaffinity")


def python(code: str):
    """A command for `run_tasks` that runs a line of Python with `name`, `seed` and `base` at hand."""

    def command(task: Task, base: pathlib.Path) -> list[str]:
        known = f"name, seed, base = {task.method.name!r}, {task.run.seed}, {str(base)!r}"
        return [sys.executable, "-c", f"import os, sys, time, signal\n{known}\n{code}"]

    return command


def test_all_are_run_in_order_and_told_of(make_sweep, tmp_path, capsys):
    told = []
    tasks = tasks_of(make_sweep())
    outcome = run.run_tasks(tasks, tmp_path, told.append, command=python("print('I am', name, seed)"))
    assert told == tasks
    assert (outcome.failed, outcome.skipped) == ([], [])
    log = (tmp_path / "ours" / "seed0-seed_1.log").read_text().splitlines()
    assert log[0].startswith(f"$ {sys.executable} -c")
    assert log[-1] == "I am ours 0"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[sweep] ours seed0-seed_1: started (1 of 9)"
    assert "8 to go" in lines[1]
    assert "runs/h" in lines[1]
    assert "ETA 0:00" in lines[-1]


def test_what_is_reused_is_done_first_also_with_several_at_a_time(make_sweep, tmp_path):
    code = "other = f'{base}/first/done{seed}'\nif name == 'second': assert os.path.exists(other)\n"
    code += "if name == 'first': time.sleep(0.3); open(other, 'w')"
    told = []
    outcome = run.run_tasks(tasks_of(make_sweep()), tmp_path, told.append, jobs=2, command=python(code))
    assert outcome.failed == []
    assert len(told) == 9


def test_a_failure_takes_along_those_that_need_it_and_no_others(make_sweep, tmp_path, capsys):
    methods = [
        Method(name, "c.py", {}, reuse, "") for name, reuse in (("a", ()), ("b", ("a",)), ("c", ("b",)), ("d", ()))
    ]
    tasks = [task for task in tasks_of(make_sweep(*methods)) if task.run.seed < 2]
    told = []
    code = "print('first line')\nif (name, seed) == ('a', 0): print('the reason'); print(); sys.exit(7)"
    outcome = run.run_tasks(tasks, tmp_path, told.append, command=python(code))
    assert outcome.failed == ["a seed0-seed_1"]
    assert outcome.skipped == ["b seed0-seed_1", "c seed0-seed_1"]
    assert [task.label for task in told] == ["d seed0-seed_1", *(f"{name} seed1-seed_2" for name in "abcd")]
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"error: a seed0-seed_1 failed, exit status 7: the reason (all of it: {tmp_path / 'a' / 'seed0-seed_1.log'})"
    ]
    assert "c seed0-seed_1: skipped, as b seed0-seed_1 failed or was skipped" in captured.out


def test_results_that_cannot_be_used_and_signals_are_failures(make_sweep, tmp_path, capsys):
    def finished(_):
        raise InputError("no results")

    tasks = tasks_of(make_sweep())[:2]
    code = "if name == 'first': os.kill(os.getpid(), signal.SIGKILL)"
    outcome = run.run_tasks(tasks, tmp_path, finished, command=python(code))
    assert len(outcome.failed) == 2
    errors = capsys.readouterr().err
    assert "ours seed0-seed_1 failed, no results" in errors
    assert "first seed0-seed_1 failed, ended by SIGKILL: " in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_lets_the_processes_save_their_work(make_sweep, tmp_path, number):
    """Each process gets one SIGINT, writes a file, and is waited for."""
    code = "def save(*_):\n    time.sleep(0.2); open(f'{base}/{name}.saved', 'a').write('x'); sys.exit(130)\n"
    code += "signal.signal(signal.SIGINT, save)\nopen(f'{base}/{name}.ready', 'w')\ntime.sleep(60)"
    tasks = [task for task in tasks_of(make_sweep()) if task.method.name != "second"]

    def interrupt():
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("*.ready"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    jobs = 2 if not LINUX else min(2, len(os.sched_getaffinity(0)))
    if jobs < 2:
        pytest.skip("one CPU")
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted, match=rf"stopped by {number.name}; 0 of 6 runs are done"):
        run.run_tasks(tasks, tmp_path, lambda _: None, jobs=jobs, command=python(code))
    thread.join()
    assert {path.name: path.read_text() for path in tmp_path.glob("*.saved")} == {"ours.saved": "x", "first.saved": "x"}


@pytest.mark.skipif(not LINUX, reason="CPUs are shared out on Linux alone")
def test_each_of_several_has_its_own_cpus(make_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 6, 7})
    assert run.shares(1) == [None]
    assert run.shares(2) == [{0, 1}, {4, 6, 7}]
    assert run.shares(5) == [{0}, {1}, {4}, {6}, {7}]
    with pytest.raises(InputError, match="--jobs=6 is more than the 5 CPUs"):
        run.shares(6)
    with pytest.raises(InputError, match="--jobs=0 must be at least 1"):
        run.shares(0)
    monkeypatch.undo()
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("one CPU")
    told = []
    code = "print(sorted(os.sched_getaffinity(0))); time.sleep(0.3)"
    run.run_tasks(tasks_of(make_sweep())[:2], tmp_path, told.append, jobs=2, command=python(code))
    assert os.sched_getaffinity(0) == mine
    lists = [task.log(tmp_path).read_text().splitlines()[-1] for task in told]
    half = sorted(mine)[: len(mine) // 2], sorted(mine)[len(mine) // 2 :]
    assert sorted(lists) == sorted(map(str, half))


def test_the_command_names_the_workdirs_that_are_there(make_sweep, tmp_path):
    method = Method("c", "c.py", {"training.teacher.steps": 3}, ("a", "b"), "", stages=("teacher", "evaluation"))
    task = Task(method, make_sweep().runs[0])
    command = run.command_of(task, tmp_path)
    assert command[1:] == [
        *("-m", "rgbd_reid_jax.main", f"--workdir={tmp_path}/c/seed0-seed_1", "--config=c.py", "--config.seed=0"),
        *("--config.dataset.knobs=seed=1", "--config.training.teacher.steps=3", "--stages=teacher,evaluation"),
    ]
    (tmp_path / "a" / "seed0-seed_1").mkdir(parents=True)  # no workdir yet
    (tmp_path / "b" / "seed0-seed_1").mkdir(parents=True)
    (tmp_path / "b" / "seed0-seed_1" / "config.json").touch()
    assert run.command_of(task, tmp_path)[1:] == [*command[1:], f"--reuse={tmp_path}/b/seed0-seed_1"]


def test_a_workdir_of_other_settings_is_named_before_any_work(make_sweep, tmp_path):
    methods = [Method("a", "configs/distill.py", {"training.teacher.steps": 8}, (), "")]
    task = tasks_of(make_sweep(*methods))[0]
    run.check_workdirs([task], tmp_path)
    folder = task.workdir(tmp_path)
    (folder / "stages").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a/seed0-seed_1 holds a run without config\.json; delete that folder"):
        run.check_workdirs([task], tmp_path)
    smaller = [*task.method.arguments(task.run), "--config.evaluation.batch_size=64"]  # rounding alone, and less memory
    (folder / "config.json").write_text(json.dumps(plain(cli.configuration(smaller))))
    run.check_workdirs([task], tmp_path)
    (folder / "config.json").write_text('{"seed": 5}')
    with pytest.raises(InputError, match=r"a/seed0-seed_1 holds a run of other settings \(.* delete that folder"):
        run.check_workdirs([task], tmp_path)
