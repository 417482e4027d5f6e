"""`python -m rgbd_reid_jax.sweep`: what it lists, writes, refuses, and a whole sweep of two small methods."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rgbd_reid_jax import sweep
from rgbd_reid_jax.sweeps import run
from rgbd_reid_jax.sweeps.plan import read_sweep
from rgbd_reid_jax.sweeps.rows import add_row, read_rows

REPOSITORY = pathlib.Path(__file__).parents[2]
CONFIG = str(REPOSITORY / "configs" / "distill.py")
STEPS = {
    f"training.{stage}.{name}": value
    for stage in ("teacher", "student")
    for name, value in (
        *(("steps", 4), ("batch_size", 16), ("log_every", 1), ("evaluate_every", 4)),
        *(("sampling.people", 4), ("sampling.frames", 4)),
    )
}


def content(**changes) -> dict:
    """A sweep of two methods on two runs; the second one takes the first one's teacher."""
    tiny = {"dataset.config": "tiny", "model.backbone": "tiny", "training.student.hints": (1, 2)}  # it has two stages
    small = tiny | STEPS
    methods = [
        {"name": "whole", "config": CONFIG, "overrides": small, "note": "teacher and student"},
        {"name": "short", "config": CONFIG, "overrides": small | {"training.student.steps": 2}, "reuse": ["whole"]},
    ]
    runs = [{"seed": 0, "knobs": "seed=0"}, {"seed": 1, "knobs": "seed=0"}]
    directions = ["rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth"]
    found = {"name": "trial", "title": "A trial", "methods": methods, "runs": runs, "directions": directions}
    return found | {"baselines": ["whole"]} | changes


@pytest.fixture
def flags(tmp_path):
    """Writes a sweep file; the flags that name it and the output."""

    def make(**changes) -> list[str]:
        (tmp_path / "sweep.py").write_text(f"def get_sweep():\n    return {content(**changes)!r}\n")
        return [f"--sweep={tmp_path / 'sweep.py'}", f"--output={tmp_path / 'docs'}"]

    return make


def fill(flags: list[str], make_row, count: int) -> None:
    """Rows of the first `count` runs of both methods."""
    found = read_sweep(flags[0].partition("=")[2])
    for seeds in found.runs[:count]:
        for method in found.methods:
            row = make_row(method.name, seeds, 0.1, 0.2, digest=method.digest)
            add_row(pathlib.Path(flags[1].partition("=")[2]), row)


def test_what_is_done_is_listed_and_tables_are_made_of_it(tmp_path, flags, make_row, capsys):
    words = flags()
    assert sweep.main([*words, "--table"]) == 2
    assert "docs/results_rows.jsonl has no rows of sweep 'trial'; run it first" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()
    fill(words, make_row, 1)
    assert sweep.main([*words, "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("done   whole seed0-seed_0", "done   short seed0-seed_0"),
        *("to do  whole seed1-seed_0", "to do  short seed1-seed_0"),
        "trial: 2 of 4 runs are to do",
    ]
    assert sweep.main([*words, "--list", "--only=short"]) == 0
    assert "1 of 2 runs are to do" in capsys.readouterr().out
    assert sweep.main([*words, "--table"]) == 0
    assert len(json.loads((tmp_path / "docs" / "results.json").read_text())) == 8
    assert "| whole | 1 | 10.0 |" in (tmp_path / "docs" / "results.md").read_text()
    assert (tmp_path / "docs" / "images" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_other_settings_are_left_out_in_one_line(tmp_path, flags, make_row, capsys):
    fill(flags(), make_row, 2)
    words = flags(
        methods=[one | {"overrides": one["overrides"] | {"model.dropout": 0.1}} for one in content()["methods"]]
    )
    assert sweep.main([*words, "--list"]) == 0
    out = capsys.readouterr().out
    assert f"4 rows of sweep 'trial' in {tmp_path / 'docs' / 'results_rows.jsonl'} are of other settings" in out
    assert "4 of 4 runs are to do" in out


def test_what_has_rows_is_not_run_even_where_the_workdirs_are_gone(tmp_path, flags, make_row, capsys):
    words = [*flags(), f"--workdir={tmp_path / 'runs'}"]
    fill(words, make_row, 2)
    assert sweep.main(words) == 0
    assert "0 of 4 runs are to do" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "docs" / "results.md").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--workdir is missing"),
        (["--workdir=a,b"], "--workdir=a,b holds a comma"),
        (["--workdir=runs", "--only=hole"], "--only: method 'hole' is not in the sweep; did you mean 'whole'"),
        (["--workdir=runs", "--jobs=0"], "--jobs=0 must be at least 1"),
        (["--workdir=runs", "--jobs=two"], "invalid int value: 'two'; --help lists the flags"),
        (["--workdir=runs", "--nolist"], "--nolist; --help lists the flags"),
    ],
)
def test_mistakes_are_one_line(flags, capsys, arguments, words):
    assert sweep.main([*flags(), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


def test_several_sweeps_run_one_after_the_other(tmp_path, flags, make_row, monkeypatch, capsys):
    """Each with a folder of its own; one that fails does not keep the next from running."""
    words = [*flags(), f"--workdir={tmp_path / 'runs'}"]
    fill(words, make_row, 1)
    other = tmp_path / "other.py"
    other.write_text(f"def get_sweep():\n    return {content(name='other', figure='other.png')!r}\n")
    began = []

    def run_tasks(tasks, base, finished, **_):
        began.append((base, [task.label for task in tasks]))
        return run.Outcome([tasks[0].label] if base.name == "trial" else [], [])

    monkeypatch.setattr(run, "run_tasks", run_tasks)
    words.append(f"--sweep={other}")
    assert sweep.main(words) == 2
    second_run = ["whole seed1-seed_0", "short seed1-seed_0"]
    assert began == [
        (tmp_path / "runs" / "trial", second_run),
        (tmp_path / "runs" / "other", ["whole seed0-seed_0", "short seed0-seed_0", *second_run]),
    ]
    found = capsys.readouterr()
    assert "error: 1 run failed (whole seed1-seed_0); mend" in found.err
    assert [line for line in found.out.splitlines() if "to do" in line] == [
        "[sweep] trial: 2 of 4 runs are to do",
        "[sweep] other: 4 of 4 runs are to do",
    ]
    assert sweep.main([*words, "--table"]) == 0
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "sweep:trial begin" in page
    assert "sweep:other" not in page


def test_a_page_that_cannot_take_the_tables_is_refused_before_any_work(tmp_path, flags, capsys):
    words = flags()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text("<!-- sweep:trial begin -->\n")
    assert sweep.main([*words, f"--workdir={tmp_path / 'runs'}"]) == 2
    assert "results.md must hold" in capsys.readouterr().err
    (tmp_path / "docs" / "results.md").unlink()
    (tmp_path / "docs" / "results.json").write_text("{}")
    assert sweep.main([*words, f"--workdir={tmp_path / 'runs'}"]) == 2
    assert "results.json holds no list of results; choose another --output" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_output_that_is_no_folder_is_refused_before_any_work(tmp_path, flags, monkeypatch, capsys):
    monkeypatch.setattr(run, "run_tasks", lambda *_, **__: pytest.fail("it was run"))
    words = flags()
    (tmp_path / "docs").write_text("a file")
    assert sweep.main([*words, f"--workdir={tmp_path / 'runs'}"]) == 2
    assert f"--output={tmp_path / 'docs'} cannot be written" in capsys.readouterr().err


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "rgbd_reid_jax.sweep", *words]


@pytest.mark.slow
def test_a_whole_sweep(tmp_path, flags, job_env, capsys):
    words = [*flags(runs=[{"seed": 0, "knobs": ""}]), f"--workdir={tmp_path / 'runs'}"]
    done = subprocess.run(command(*words), env=job_env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[sweep] short seed0: ended after" in done.stdout
    reused = (tmp_path / "runs" / "trial" / "short" / "seed0.log").read_text()
    assert f"[teacher] reused from {tmp_path / 'runs' / 'trial' / 'whole' / 'seed0'}" in reused
    assert "[export]" not in reused
    first, second = read_rows(tmp_path / "docs")
    assert (first["method"], second["method"]) == ("whole", "short")
    assert first["seconds"]["teacher"] == second["seconds"]["teacher"]
    assert first["dataset"] == second["dataset"]
    assert set(first["results"]) == set(first["validation"]) == set(first["queries"])
    results = json.loads((tmp_path / "runs" / "trial" / "whole" / "seed0" / "results.json").read_text())
    entry = json.loads((tmp_path / "docs" / "results.json").read_text())[0]
    assert entry["mAP"]["mean"] == results["results"]["rgb_to_depth"]["mAP"]
    assert "Differences in mAP to `whole`" in (tmp_path / "docs" / "results.md").read_text()
    shutil.rmtree(tmp_path / "runs")
    assert sweep.main(words) == 0
    assert "0 of 2 runs are to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failing_run_and_an_interruption(tmp_path, flags, job_env):
    """A run that cannot be done ends the sweep with 2; after a signal the same command goes on."""
    words = [*flags(runs=[{"seed": 0, "knobs": ""}]), f"--workdir={tmp_path / 'runs'}"]
    folder = tmp_path / "runs" / "trial" / "whole" / "seed0"
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    done = subprocess.run(command(*words), env=job_env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    first, last = done.stderr.strip().splitlines()
    assert "whole seed0 failed, exit status 2: error: workdir" in first
    assert "holds other files (notes.txt" in first
    assert "1 run failed (whole seed0); skipped for want of them: short seed0" in last
    assert not (tmp_path / "docs" / "results.md").exists()
    (folder / "notes.txt").unlink()
    process = subprocess.Popen(command(*words), env=job_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "runs" / "trial" / "whole" / "seed0.log", time.monotonic() + 120
    while "[dataset]" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.strip() == "stopped by SIGTERM; 0 of 2 runs are done, run the same command to go on with the others"
    assert "run the same command to go on" in log.read_text().splitlines()[-1]
