"""One line of JSON for each finished run: `results_rows.jsonl`, which is kept in git where workdirs are not."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.sweeps.plan import Run, Sweep, Task

FILE = "results_rows.jsonl"
_SCORES = ("mAP", "rank1", "rank5", "rank10", "mINP")
_CHANCE = ("mAP", "rank1")
_KEYS = (
    *("sweep", "method", "run", "digest", "dataset", "dataset_fingerprint"),
    *("results", "chance", "clothes", "validation", "seconds", "environment"),
)

Row = Mapping[str, Any]


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Within, no other sweep changes the files that sweeps share in `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_rows(folder: pathlib.Path) -> list[Row]:
    """All rows of `folder`, none where there is no file.

    Raises:
        InputError: a line is no row.
    """
    path = folder / FILE
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            Run(**row["run"])
            lacking = [key for key in _KEYS if key not in row]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            reason = " ".join(f"{type(error).__name__} {error}".split())
            raise InputError(f"{path} line {number} is no row ({reason}); mend that line or delete it") from error
        if lacking:
            raise InputError(f"{path} line {number} lacks {', '.join(lacking)}; mend that line or delete it")
        found.append(row)
    return found


def add_row(folder: pathlib.Path, row: Row) -> None:
    """Writes a row in the place of that of the same sweep, method and run, or at the end."""
    with locked(folder):
        rows = {_key(one): one for one in read_rows(folder)}
        rows[_key(row)] = row
        files.write_text(folder / FILE, "".join(json.dumps(one) + "\n" for one in rows.values()))


def rows_of(sweep: Sweep, rows: Iterable[Row]) -> tuple[dict[tuple[str, Run], Row], int]:
    """The rows that a sweep has already, and how many rows of its name are of other settings.

    Args:
        sweep: methods with digests, and runs.
        rows: of any sweeps.

    Returns:
        ({(method, run): row}, number of rows of this sweep's name that it does not ask for, or that lack a direction).

    Raises:
        InputError: rows with the same knobs are of different data.
    """
    wanted = {(method.name, run): method.digest for method in sweep.methods for run in sweep.runs}
    mine = [row for row in rows if row["sweep"] == sweep.name]
    found = {
        _key(row)[1:]: row
        for row in mine
        if wanted.get(_key(row)[1:]) == row["digest"] and set(sweep.directions) <= set(row["results"])
    }
    _check_same_data(sweep, found)
    return found, len(mine) - len(found)


def _check_same_data(sweep: Sweep, rows: Mapping[tuple[str, Run], Row]) -> None:
    """Raises InputError where a dataset was changed between two runs with the same knobs."""
    firsts: dict[str, tuple[str, Row]] = {}
    for (method, run), row in rows.items():
        other, first = firsts.setdefault(run.knobs, (f"{method} {run.label}", row))
        one, two = ("{dataset} ({dataset_fingerprint})".format(**each) for each in (first, row))
        if one != two:
            raise InputError(
                f"rows of sweep {sweep.name!r} are of different data, {one} in {other} and {two} in {method} "
                f"{run.label}, so they cannot be compared; delete the lines of the older data from {FILE} and their "
                "workdirs, and run the same command again"
            )


def _key(row: Row) -> tuple[str, str, Run]:
    return row["sweep"], row["method"], Run(**row["run"])


def row_of(sweep: Sweep, task: Task, workdir: pathlib.Path, jobs: int) -> Row:
    """The row of a finished run.

    Args:
        sweep: whose run it is.
        task: which.
        workdir: what it left.
        jobs: how many runs shared the machine.

    Raises:
        InputError: it left no results.
    """
    mend = f"delete {workdir} and run the same command again"
    if not (workdir / "results.json").exists():
        raise InputError(f"{workdir} holds no results.json; {mend}")
    results = files.read_json(workdir / "results.json", mend)
    marks = [files.read_json(path, mend) for path in (workdir / "stages").glob("*.json")]
    seconds = {mark["stage"]: mark["seconds"] for mark in sorted(marks, key=lambda mark: mark["finished"])}
    machine, directions = results["environment"], sweep.directions
    return {
        "sweep": sweep.name,
        "method": task.method.name,
        "run": {"seed": task.run.seed, "knobs": task.run.knobs},
        "digest": task.method.digest,
        "dataset": results["dataset"],
        "dataset_fingerprint": results["dataset_fingerprint"],
        "protocol": results["protocol"],
        "split": results["split"],
        "results": _chosen(results["results"], directions, _SCORES),
        "chance": _chosen(results["chance"], directions, _CHANCE),
        "clothes": {name: results["clothes"][name] for name in directions if name in results.get("clothes", {})},
        "validation": _chosen(results.get("other_splits", {}).get("validation", {}), directions, _CHANCE),
        "queries": {name: results["queries"][name]["num_query"] for name in directions},
        "seconds": seconds,
        "environment": {
            "python": machine["python"],
            **{name: machine["packages"][name] for name in ("jax", "flax")},
            "machine": machine["machine"],
            "devices": machine["devices"],
            "jobs": jobs,
        },
    }


def _chosen(scores: Mapping[str, Any], directions: Iterable[str], names: Iterable[str]) -> dict[str, Any]:
    """Some scores of some directions, where they are."""
    return {
        direction: {name: scores[direction][name] for name in names if name in scores[direction]}
        for direction in directions
        if direction in scores
    }
