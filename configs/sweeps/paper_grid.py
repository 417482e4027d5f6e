"""The paper's grid: two datasets x two directions x five folds x all methods, for whoever has the data and a GPU.

    python -m rgbd_reid_jax.sweep --sweep=configs/sweeps/paper_grid.py:biwi,BIWI --workdir=runs/biwi --output=runs/biwi
    python -m rgbd_reid_jax.sweep --sweep=configs/sweeps/paper_grid.py:robotpku,PKU --workdir=runs/pku --output=runs/pku

The argument is the dataset, `biwi` or `robotpku`, and after a comma the folder of its own files, which every fold is
built from when it is first needed (docs/datasets.md; the published folds need the prepared layout with splits.json).
Scores of different datasets cannot share a table, so each dataset has a command of its own.

It has not been run: no result can be stated.
"""

import pathlib
import runpy
from typing import Any

_BENCHMARK = runpy.run_path(str(pathlib.Path(__file__).with_name("benchmark.py")))
_NAMES = {"biwi": "BIWI RGBD-ID", "robotpku": "RobotPKU RGBD-ID"}
FOLDS = range(5)


def get_sweep(argument: str = "biwi") -> dict[str, Any]:
    """The sweep of `DATASET[,FOLDER]`."""
    data, _, folder = argument.partition(",")
    if data not in _NAMES:
        raise ValueError(f"argument {argument!r} is unknown; choose one of: {', '.join(_NAMES)}")
    methods = [{**one, "overrides": {"dataset.manual_dir": folder}} for one in _BENCHMARK["methods"](data)]
    return {
        "name": f"paper_{data}",
        "title": f"{_NAMES[data]}, five folds",
        "methods": methods,
        "runs": [{"seed": 0, "knobs": f"fold={fold}"} for fold in FOLDS],
        "directions": ["rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth"],
        "baselines": _BENCHMARK["BASELINES"],
        "figure": f"paper_{data}.png",
    }
