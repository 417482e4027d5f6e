"""Runs a sweep's tasks as processes of their own: some at a time, in order, to the end of those that can be done.

A task starts when those that it needs are done. One that fails takes those that need it along, and no others.
"""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rgbd_reid_jax import cli
from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError, Interrupted
from rgbd_reid_jax.core.progress import format_seconds, say
from rgbd_reid_jax.core.signals import StopRequest
from rgbd_reid_jax.stages.workdir import computed, differences
from rgbd_reid_jax.sweeps.plan import Task

_POLL_S = 0.1
_TAIL_BYTES = 8192


@dataclasses.dataclass
class Outcome:
    """Labels of the tasks that failed, and of those that were skipped because of them."""

    failed: list[str]
    skipped: list[str]


@dataclasses.dataclass
class _Child:
    """A running task: its process, the CPUs that it may use, and since when it runs."""

    task: Task
    process: subprocess.Popen
    cpus: frozenset[int] | None
    began: float


def command_of(task: Task, base: pathlib.Path) -> list[str]:
    """The command of a task; of the methods that it reuses, it is given the workdirs that are there now.

    Args:
        task: what to run.
        base: the sweep's workdir.
    """
    others = [base / name / task.run.label for name in task.method.reuse]
    there = [str(other) for other in others if (other / "config.json").is_file()]
    flags = [*task.method.arguments(task.run), f"--stages={','.join(task.method.stages)}"]
    flags += [f"--reuse={','.join(there)}"] if there else []
    return [sys.executable, "-m", "rgbd_reid_jax.main", f"--workdir={task.workdir(base)}", *flags]


def check_workdirs(tasks: Sequence[Task], base: pathlib.Path) -> None:
    """Raises InputError, before any work, where a task's workdir holds a run of other settings."""
    for task in tasks:
        folder = task.workdir(base)
        if not any((folder / name).exists() for name in ("checkpoints", "stages")):
            continue
        content = computed(cli.configuration(task.method.arguments(task.run)))
        mend = "delete that folder or choose another --workdir"
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds a run without config.json; {mend}")
        found = differences(computed(files.read_json(folder / "config.json", mend)), content)
        if found:
            raise InputError(f"{folder} holds a run of other settings ({found[0]}); {mend}")


def shares(jobs: int) -> list[frozenset[int] | None]:
    """The CPUs of each of `jobs` processes: equal shares of this process's, or None where it keeps all of them.

    Raises:
        InputError: there are fewer CPUs than processes.
    """
    if jobs < 1:
        raise InputError(f"--jobs={jobs} must be at least 1")
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * jobs
    cpus = sorted(os.sched_getaffinity(0))
    if jobs > len(cpus):
        raise InputError(f"--jobs={jobs} is more than the {len(cpus)} CPUs of this process; give at most that many")
    return [frozenset(cpus[len(cpus) * job // jobs : len(cpus) * (job + 1) // jobs]) for job in range(jobs)]


def run_tasks(
    tasks: Sequence[Task],
    base: pathlib.Path,
    finished: Callable[[Task], None],
    *,
    jobs: int = 1,
    command: Callable[[Task, pathlib.Path], list[str]] = command_of,
) -> Outcome:
    """Runs tasks, `jobs` at a time.

    Args:
        tasks: in the order in which they start where nothing hinders them.
        base: the sweep's workdir; logs lie beside the runs' folders.
        finished: is told of each task that is done; an `InputError` of it means that the task failed.
        jobs: how many run at a time; with several, each is given its share of the CPUs (Linux).
        command: the command line of a task, asked for when it starts.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the processes were stopped, what they finished is kept.
        InputError: `jobs` cannot be had.
    """
    free, running, waiting = shares(jobs), list[_Child](), list(tasks)
    outcome, total, done, began = Outcome([], []), len(tasks), 0, time.perf_counter()
    with StopRequest() as stop:
        try:
            while (waiting or running) and not stop.requested:
                for task in _startable(waiting, running, outcome)[: len(free)]:
                    waiting.remove(task)
                    running.append(_start(task, base, free.pop(0), command))
                    say("sweep", f"{task.label}: started ({total - len(waiting)} of {total})")
                for child in [one for one in running if one.process.poll() is not None]:
                    running.remove(child)
                    free.append(child.cpus)
                    done += _settle(child, base, finished, outcome)
                    left = len(waiting) + len(running)
                    say("sweep", f"{child.task.label}: {_pace(child, done, left, time.perf_counter() - began)}")
                time.sleep(_POLL_S)
            halted = bool(waiting or running)
        finally:
            _stop(running)
    if halted:
        raise Interrupted(
            f"stopped by {stop.name}; {done} of {total} runs are done, run the same command to go on with the others"
        )
    return outcome


def _startable(waiting: list[Task], running: Sequence[_Child], outcome: Outcome) -> list[Task]:
    """The waiting tasks that need none that is waiting or running; those that need one that failed are skipped."""
    lost = {*outcome.failed, *outcome.skipped}
    pending = {task.label for task in waiting} | {child.task.label for child in running}
    found = []
    for task in list(waiting):
        needs = {f"{name} {task.run.label}" for name in task.method.reuse}
        if needs & lost:
            waiting.remove(task)
            outcome.skipped.append(task.label)
            lost.add(task.label)
            say("sweep", f"{task.label}: skipped, as {', '.join(sorted(needs & lost))} failed or was skipped")
        elif not needs & pending:
            found.append(task)
    return found


def _start(
    task: Task, base: pathlib.Path, cpus: frozenset[int] | None, command: Callable[[Task, pathlib.Path], list[str]]
) -> _Child:
    """Starts a task in a session of its own, so that Ctrl-C reaches it once, through this process, and not twice."""
    words, log = command(task, base), task.log(base)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file, _on(cpus):
        file.write(f"$ {shlex.join(words)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    return _Child(task, process, cpus, time.perf_counter())


@contextlib.contextmanager
def _on(cpus: frozenset[int] | None) -> Iterator[None]:
    """Processes that this thread starts within may use these CPUs alone."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _settle(child: _Child, base: pathlib.Path, finished: Callable[[Task], None], outcome: Outcome) -> bool:
    """Whether a task whose process has ended is done; else it is told of, and counted as failed."""
    status, log = child.process.returncode, child.task.log(base)
    try:
        if status:
            how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            raise InputError(f"{how}: {_last_line(log)} (all of it: {log})")
        finished(child.task)
    except InputError as error:
        outcome.failed.append(child.task.label)
        print(f"error: {child.task.label} failed, {error}", file=sys.stderr, flush=True)
        return False
    return True


def _pace(child: _Child, done: int, left: int, elapsed: float) -> str:
    """How long a run took, how many are done per hour, and how long the others will take."""
    words = [f"ended after {format_seconds(time.perf_counter() - child.began)}", f"{left} to go"]
    if done:
        words += [f"{3600 * done / elapsed:.1f} runs/h", f"ETA {format_seconds(left * elapsed / done)}"]
    return "  ".join(words)


def _last_line(log: pathlib.Path) -> str:
    """The last line of a log that says something."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it printed nothing")


def _stop(running: Sequence[_Child]) -> None:
    """Interrupts what still runs and waits until it has saved its work; a second Ctrl-C kills it."""
    for child in running:
        child.process.send_signal(signal.SIGINT)
    try:
        for child in running:
            child.process.wait()
    except KeyboardInterrupt:
        for child in running:
            child.process.kill()
            child.process.wait()
        raise
