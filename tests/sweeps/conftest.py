"""A small sweep of three methods, and rows with scores worked out by hand."""

from typing import Any

import pytest

from rgbd_reid_jax.sweeps.plan import Method, Run, Sweep

DIRECTIONS = ("rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth")


def sweep_of(*methods: Method, **changes) -> Sweep:
    names = [("ours", ()), ("first", ()), ("second", ("first",))]
    methods = methods or tuple(Method(name, "c.py", {}, reuse, f"the {name}", f"d-{name}") for name, reuse in names)
    runs = (Run(0, "seed=1"), Run(1, "seed=2"), Run(2, "seed=3"))
    values: dict[str, Any] = {"directions": DIRECTIONS, "baselines": ("first", "second"), "figure": "results.png"}
    values |= {"data": "people/quick", "protocol": "cross_camera", "split": "test"}
    return Sweep("trial", "A trial", methods, **{"runs": runs, **values, **changes})


def row_of(method: str, run: Run, cross: float, validation: float | None = None, **changes) -> dict:
    """`cross` is the mAP of the first direction; the others follow from it."""
    scores = {name: cross + 0.1 * place for place, name in enumerate(DIRECTIONS)}
    row = {
        "sweep": "trial",
        "method": method,
        "run": {"seed": run.seed, "knobs": run.knobs},
        "digest": f"d-{method}",
        "dataset": "people/quick/1.0.0",
        "dataset_fingerprint": f"of {run.knobs}",
        "results": {name: {"mAP": value, "rank1": value / 2} for name, value in scores.items()},
        "chance": {name: {"mAP": 0.025, "rank1": 0.0167} for name in DIRECTIONS},
        "clothes": {name: {"same_clothes": {"mAP": 2 * value}} for name, value in scores.items()},
        "validation": {},
        "seconds": {"teacher": 60.0, "evaluation": 30.0},
        "environment": {"python": "3", "jax": "0", "flax": "0", "machine": "cpu", "devices": "1 x cpu", "jobs": 2},
    }
    if validation is not None:
        row["validation"] = {name: {"mAP": validation, "rank1": 0.1} for name in DIRECTIONS}
    return row | changes


@pytest.fixture
def make_sweep():
    """`sweep_of`: the sweep, with changes."""
    return sweep_of


@pytest.fixture
def make_row():
    """`row_of`: a row by method, run and score."""
    return row_of


@pytest.fixture
def three_runs():
    """Rows of three methods on three runs: (rows by method and run, sweep)."""
    sweep = sweep_of()
    scores = {"ours": (0.30, 0.36, 0.33), "first": (0.20, 0.22, 0.24), "second": (0.28, 0.27, 0.26)}
    validation = {"ours": 0.9, "first": 0.5, "second": 0.4}
    rows = {
        (name, run): row_of(name, run, score, validation[name])
        for name, values in scores.items()
        for run, score in zip(sweep.runs, values, strict=True)
    }
    return rows, sweep
