"""Rows are kept, replaced and refused by line number."""

import json

import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.sweeps.plan import Task
from rgbd_reid_jax.sweeps.rows import FILE, add_row, read_rows, row_of, rows_of


def test_a_row_takes_the_place_of_its_older_self(tmp_path, make_sweep, make_row):
    first, second, third = make_sweep().runs
    assert read_rows(tmp_path / "absent") == []
    for run in (first, second):
        add_row(tmp_path, make_row("ours", run, 0.1))
    add_row(tmp_path, make_row("ours", first, 0.2, digest="other"))
    add_row(tmp_path, make_row("ours", third, 0.3))
    add_row(tmp_path, make_row("ours", third, 0.4, sweep="another"))
    rows = read_rows(tmp_path)
    assert [row["run"]["seed"] for row in rows] == [0, 1, 2, 2]
    assert [row["digest"] for row in rows] == ["other", "d-ours", "d-ours", "d-ours"]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_rows_of_other_settings_are_left_out_and_counted(make_sweep, make_row):
    sweep = make_sweep()
    run = sweep.runs[0]
    rows = [
        make_row("ours", run, 0.1),
        make_row("first", run, 0.1, digest="older"),
        make_row("gone", run, 0.1),
        make_row("second", run, 0.1, sweep="another"),
    ]
    found, stale = rows_of(sweep, rows)
    assert list(found) == [("ours", run)]
    assert stale == 2


def test_a_row_without_a_direction_that_is_asked_for_is_left_out(make_sweep, make_row):
    sweep = make_sweep()
    row = make_row("ours", sweep.runs[0], 0.1)
    del row["results"]["depth_to_rgb"]
    assert rows_of(sweep, [row]) == ({}, 1)
    assert rows_of(make_sweep(directions=("rgb_to_depth",)), [row])[1] == 0


def test_rows_of_other_data_are_refused(make_sweep, make_row):
    """Where the knobs are the same; another seed of the data is other data by itself."""
    sweep = make_sweep()
    first, second, _ = sweep.runs
    rows = [make_row("ours", first, 0.1), make_row("ours", second, 0.1)]
    assert len(rows_of(sweep, rows)[0]) == 2
    changed = make_row("first", first, 0.1, dataset_fingerprint="later")
    with pytest.raises(InputError) as error:
        rows_of(sweep, [*rows, changed])
    assert "people/quick/1.0.0 (of seed=1) in ours seed0-seed_1 and people/quick/1.0.0 (later) in first" in str(
        error.value
    )
    assert rows_of(sweep, [*rows, changed | {"digest": "older"}])[1] == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is no row"),
        ("[]", "line 2 is no row"),
        ("", "line 2 is no row"),
        ('{"run": {"seed": 0, "nobs": ""}}', "line 2 is no row"),
        ('{"sweep": "s", "run": {"seed": 0}}', "line 2 lacks method, digest"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, make_sweep, make_row, line, words):
    add_row(tmp_path, make_row("ours", make_sweep().runs[0], 0.1))
    with open(tmp_path / FILE, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=words) as error:
        read_rows(tmp_path)
    assert FILE in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_row_of_a_workdir(tmp_path, make_sweep):
    sweep = make_sweep(directions=("rgb_to_depth",))
    task = Task(sweep.methods[0], sweep.runs[1])
    with pytest.raises(InputError, match=r"holds no results\.json"):
        row_of(sweep, task, tmp_path, 2)
    scores = {"mAP": 0.1, "rank1": 0.2, "rank5": 0.3, "rank10": 0.4, "mAP_trapezoid": 0.5, "mINP": 0.6}
    both = dict.fromkeys(("rgb_to_depth", "rgb_to_rgb"), scores)
    results = {
        **{"dataset": "people/quick/1.0.0", "dataset_fingerprint": "ab", "protocol": "cross_camera", "split": "test"},
        **{"results": both, "chance": both, "clothes": {"rgb_to_depth": {"same_clothes": scores}}},
        **{"other_splits": {"validation": both}, "queries": {name: {"num_query": 7} for name in both}},
        "environment": {
            **{"python": "3.11", "machine": "x86_64", "devices": "1 x cpu", "processes": 1},
            "packages": {"jax": "1", "flax": "2", "numpy": "3"},
        },
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "stages").mkdir()
    for stage, second in (("teacher", 1), ("evaluation", 2)):
        mark = {"stage": stage, "seconds": 10.0 * second, "finished": f"2020-01-01T00:00:0{second}+0000"}
        (tmp_path / "stages" / f"{stage}.json").write_text(json.dumps(mark))
    assert row_of(sweep, task, tmp_path, 2) == {
        **{"sweep": "trial", "method": "ours", "run": {"seed": 1, "knobs": "seed=2"}, "digest": "d-ours"},
        **{"dataset": "people/quick/1.0.0", "dataset_fingerprint": "ab", "protocol": "cross_camera", "split": "test"},
        "results": {"rgb_to_depth": {"mAP": 0.1, "rank1": 0.2, "rank5": 0.3, "rank10": 0.4, "mINP": 0.6}},
        "chance": {"rgb_to_depth": {"mAP": 0.1, "rank1": 0.2}},
        "clothes": {"rgb_to_depth": {"same_clothes": scores}},
        "validation": {"rgb_to_depth": {"mAP": 0.1, "rank1": 0.2}},
        "queries": {"rgb_to_depth": 7},
        "seconds": {"teacher": 10.0, "evaluation": 20.0},
        "environment": {
            **{"python": "3.11", "jax": "1", "flax": "2", "machine": "x86_64", "devices": "1 x cpu", "jobs": 2}
        },
    }
