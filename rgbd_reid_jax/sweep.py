"""Compares methods over seeds.

    python -m rgbd_reid_jax.sweep --sweep=configs/sweeps/benchmark.py --workdir=runs/sweep --output=docs

Trains and evaluates every method of a sweep file on every pair of seeds, one row of `results_rows.jsonl` for each, and
makes tables and a figure of the rows (docs/sweep.md). What has a row is not run again.

Exit status: 0, 2 for input that cannot be used or where a run failed (one line each says what), 130 when interrupted.
"""

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.command import Parser
from rgbd_reid_jax.core.errors import InputError, Interrupted, disk_full
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.core.signals import interrupts_kept

if TYPE_CHECKING:
    from rgbd_reid_jax.sweeps.plan import Sweep, Task
    from rgbd_reid_jax.sweeps.run import Outcome
    from rgbd_reid_jax.sweeps.statistics import Rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with interrupts_kept():
            return _run(_options(arguments))
    except InputError as error:
        return _complain(f"error: {error}", 2)
    except Interrupted as stop:
        return _complain(str(stop), 130)
    except KeyboardInterrupt:
        return _complain("interrupted; rows of finished runs are kept, run the same command to go on", 130)
    except OSError as error:
        where = disk_full(error)
        if where is None:
            raise
        return _complain(f"error: the disk is full{where}; free space and run the same command again", 2)


def _complain(text: str, status: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return status


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: a flag is missing, unknown, or has a value that it cannot take.
    """
    parser = Parser("python -m rgbd_reid_jax.sweep", description="Compares methods over seeds; docs/sweep.md.")
    add = parser.add_argument
    text = "defines get_sweep(): methods, runs, directions; given several times, one after the other"
    add("--sweep", metavar="FILE[:ARGUMENT]", action="append", help=text)
    add(
        "--workdir",
        type=os.path.expanduser,
        metavar="DIR",
        help="where the runs' workdirs and logs lie: DIR/SWEEP/METHOD/RUN and RUN.log",
    )
    add("--output", type=os.path.expanduser, metavar="DIR", help="where rows, results.json, results.md and images/ lie")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time, each on its share of the CPUs (default 1)")
    add("--only", default="", metavar="METHOD,...", help="run these methods alone; the tables have all")
    add("--list", action="store_true", help="tell what is done and what is to do, and run nothing")
    add("--table", action="store_true", help="write tables and figure from the rows, and run nothing")
    options = parser.parse_args(arguments)
    for flag in ("sweep", "output", "workdir"):
        if not getattr(options, flag) and not (flag == "workdir" and (options.list or options.table)):
            raise InputError(f"--{flag} is missing; --help lists the flags")
    if "," in (options.workdir or ""):
        raise InputError(f"--workdir={options.workdir} holds a comma, which parts the folders of --reuse; give another")
    return options


def _run(options: argparse.Namespace) -> int:
    """Lists, makes tables, or runs what is still to be run."""
    import jax  # mistakes on the command line need not wait for it

    from rgbd_reid_jax.sweeps import plan, run

    jax.config.update("jax_platforms", "cpu")  # configurations are only read here: accelerators belong to the runs
    only, output = [name for name in options.only.split(",") if name], pathlib.Path(options.output)
    parts = [_part(sweep, only, output) for sweep in plan.read_sweeps(options.sweep)]
    run.shares(options.jobs)
    if options.list:
        for part in parts:
            for task in part.tasks:
                print(f"{'to do' if task in part.pending else 'done':5}  {task.label}")
            print(part.summary)
        return 0
    if options.table:
        _table(parts, output)
        return 0
    return _train(parts, pathlib.Path(options.workdir), output, options.jobs)


def _check_writable(output: pathlib.Path) -> None:
    """Raises InputError, before any work, where no row could be kept; makes the folder."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        if disk_full(error) is not None:
            raise
        why = error.strerror or error
        raise InputError(f"--output={output} cannot be written ({why}); give a folder that can be") from error


class _Part(NamedTuple):
    """One of the sweeps: what is asked for, the rows that it has, and what is still to be run."""

    sweep: "Sweep"
    tasks: "list[Task]"
    done: "Rows"
    pending: "list[Task]"

    @property
    def summary(self) -> str:
        return f"{self.sweep.name}: {len(self.pending)} of {len(self.tasks)} runs are to do"


def _part(sweep: "Sweep", only: list[str], output: pathlib.Path) -> _Part:
    from rgbd_reid_jax.sweeps import plan, rows, tables

    tables.check_page(output, sweep)
    tasks = plan.tasks_of(sweep, only)
    done, stale = rows.rows_of(sweep, rows.read_rows(output))
    if stale:
        where = f"{sweep.name!r} in {output / rows.FILE}"
        say("sweep", f"{stale} rows of sweep {where} are of other settings, or lack a direction, and are left out")
    return _Part(sweep, tasks, done, [task for task in tasks if (task.method.name, task.run) not in done])


def _table(parts: list[_Part], output: pathlib.Path) -> None:
    """Writes tables and figures of the sweeps that have rows.

    Raises:
        InputError: none has any.
    """
    from rgbd_reid_jax.sweeps import rows

    if not any(part.done for part in parts):
        names = ", ".join(repr(part.sweep.name) for part in parts)
        raise InputError(f"{output / rows.FILE} has no rows of sweep {names}; run it first")
    _check_writable(output)
    for part in parts:
        if part.done:
            _write(part.sweep, output)


def _train(parts: list[_Part], workdir: pathlib.Path, output: pathlib.Path, jobs: int) -> int:
    """Runs what is pending, sweep by sweep; each has a folder of its own in `workdir`."""
    from rgbd_reid_jax.sweeps import rows, run

    bases = [workdir / part.sweep.name for part in parts]
    for part, base in zip(parts, bases, strict=True):
        run.check_workdirs(part.pending, base)
    _check_writable(output)
    outcome = run.Outcome([], [])
    for part, base in zip(parts, bases, strict=True):

        def finished(task: "Task", sweep: "Sweep" = part.sweep, base: pathlib.Path = base) -> None:
            rows.add_row(output, rows.row_of(sweep, task, task.workdir(base), jobs))
            _write(sweep, output)

        say("sweep", part.summary)
        one = run.run_tasks(part.pending, base, finished, jobs=jobs)
        outcome = run.Outcome(outcome.failed + one.failed, outcome.skipped + one.skipped)
        if part.done and not part.pending:
            _write(part.sweep, output)
    return _verdict(outcome)


def _write(sweep: "Sweep", output: pathlib.Path) -> None:
    """Tables and figure of the rows that are there."""
    from rgbd_reid_jax.sweeps import figure, rows, tables

    with rows.locked(output):
        done, _ = rows.rows_of(sweep, rows.read_rows(output))
        tables.write_tables(output, sweep, done)
        if sweep.cross:
            files.write_bytes(output / tables.IMAGES / sweep.figure, figure.draw(sweep, done))


def _verdict(outcome: "Outcome") -> int:
    """Names what failed and what was skipped; the exit status."""
    if not outcome.failed:
        return 0
    count = len(outcome.failed)
    text = f"{count} run{'s' * (count != 1)} failed ({', '.join(outcome.failed)})"
    if outcome.skipped:
        text += f"; skipped for want of them: {', '.join(outcome.skipped)}"
    return _complain(f"error: {text}; mend what they say and run the same command again", 2)


if __name__ == "__main__":
    sys.exit(main())
