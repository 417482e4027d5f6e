"""Intervals and paired differences, worked out by hand."""

import pytest

from rgbd_reid_jax.sweeps.statistics import differences, interval, reference, t_975


def test_quantiles_of_student_s_t():
    """Beside scipy where it is there: JAX and scikit-learn bring it."""
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 32), 40, 100, 10_000):
        assert t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-4), freedom


def test_an_interval_by_hand():
    # mean 3, deviations -2, 0, 2: s = sqrt(8 / 2) = 2; half = 4.3027 * 2 / sqrt(3)
    found = interval([1.0, 3.0, 5.0])
    half = 4.3027 * 2 / 3**0.5
    assert found == pytest.approx({"mean": 3.0, "low": 3.0 - half, "high": 3.0 + half})
    assert interval([2.0]) == {"mean": 2.0, "low": None, "high": None}
    assert interval([2.0, 2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0}


def test_paired_differences_by_hand(three_runs):
    rows, _ = three_runs
    # ours - first: 0.10, 0.14, 0.09 in each direction; mean 0.11, squares 1, 9, 4 (1e-4): s = sqrt(14e-4 / 2)
    found, count = differences(rows, "ours", "first", ("rgb_to_depth", "depth_to_rgb"))
    half = 4.3027 * (14e-4 / 2) ** 0.5 / 3**0.5
    assert count == 3
    assert list(found) == ["rgb_to_depth", "depth_to_rgb", "mean"]
    for one in found.values():
        assert one == pytest.approx({"mean": 0.11, "low": 0.11 - half, "high": 0.11 + half})


def test_a_difference_takes_the_runs_that_both_have(three_runs):
    rows, sweep = three_runs
    del rows["ours", sweep.runs[0]], rows["first", sweep.runs[1]]
    found, count = differences(rows, "ours", "first", ("rgb_to_depth",))
    assert count == 1
    assert found["mean"]["mean"] == pytest.approx(0.09)
    assert found["mean"]["low"] is None
    del rows["first", sweep.runs[2]]
    assert differences(rows, "ours", "first", ("rgb_to_depth",)) == ({}, 0)


def test_validation_people_choose_the_reference(three_runs, make_sweep):
    rows, sweep = three_runs
    assert reference(sweep, rows) == "first"  # "second" is better on test people, "ours" is no baseline
    assert reference(make_sweep(baselines=()), rows) is None


def test_the_reference_is_chosen_on_the_runs_that_all_baselines_have(three_runs, make_row):
    rows, sweep = three_runs
    first, second, third = sweep.runs
    rows["second", first] = make_row("second", first, 0.2, 0.6)  # better than first's 0.5, as is the third run,
    rows["second", third] = make_row("second", third, 0.2, 0.9)
    del rows["first", third]  # which does not count now; 0.6 and 0.4 do, as much as twice 0.5
    rows["second", second] = make_row("second", second, 0.2, 0.39)
    assert reference(sweep, rows) == "first"
    rows["second", second] = make_row("second", second, 0.2, 0.41)
    assert reference(sweep, rows) == "second"
    for run in sweep.runs:
        rows.pop(("first", run), None)
    assert reference(sweep, rows) == "second"  # the others have no row
