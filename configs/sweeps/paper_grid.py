"""The paper's grid: two datasets x two directions x five folds x all methods, for whoever has the data and a GPU.

The benchmark's methods, and what that leaves out for its time: attention on an RGB teacher and its depth student, and
distillation, in both directions, from the paper's other teacher, of triplets.

    python -m rgbd_reid_jax.sweep --workdir=runs/grid --output=runs/grid
        --sweep=configs/sweeps/paper_grid.py:biwi,BIWI,resnet50.pth
        --sweep=configs/sweeps/paper_grid.py:robotpku,PKU,resnet50.pth

The argument is `DATASET,FOLDER,WEIGHTS`: `biwi` or `robotpku`; the folder of its own files, which every fold is built
from when it is first needed, with the published splits.json (docs/datasets.md: in the prepared layout, of BIWI also
beside Training/ and Testing/); and torchvision's ImageNet weights, from which the paper starts and which are not
downloaded. Without WEIGHTS networks start from random ones; with FOLDER empty the dataset has to be built already.
Either dataset alone is one `--sweep`; scores of different datasets stand in tables of their own.

Ranked by unit vectors: `agw`, attention and `mutual`, whose losses compare directions. By raw distances, as the
paper's: all others. The difference between attention and the distilled pair holds that too; what gates add is the
difference to `attention_none` (`attention_none_running` for gates in the middle).

It has not been run: no result can be stated.
"""

import os
import pathlib
import runpy
from typing import Any

_BENCHMARK = runpy.run_path(str(pathlib.Path(__file__).with_name("benchmark.py")))
_NAMES = {"biwi": "BIWI RGBD-ID", "robotpku": "RobotPKU RGBD-ID"}
FOLDS = range(5)
_BESIDE = {"biwi": ("images", "Training"), "robotpku": ("images",)}  # where a splits.json is read: prepared, BIWI's own


def _others(data: str) -> list[dict[str, Any]]:
    """What the benchmark leaves out."""
    method = _BENCHMARK["method"]
    found = [
        method(f"distill_from_{taught}_triplet", f"distill.py:{data},{option}triplet_teacher", (), "of triplets")
        for taught, option in (("depth", ""), ("rgb", "rgb_teacher,"))
    ]
    for gate in ("none", "pairwise", "self", "middle", "none_running"):
        reuse = ("distill_from_rgb",) if gate == "none" else ("attention_none_from_rgb", "distill_from_rgb")
        found.append(
            method(f"attention_{gate}_from_rgb", f"attention.py:{data},rgb_teacher,{gate}", reuse, "on an RGB teacher")
        )
    return found


def _check_splits(data: str, folder: str) -> None:
    """Raises ValueError where the folder lacks the published folds: other splits are the same in each."""
    root = pathlib.Path(os.path.expanduser(folder))
    found = (path.parent for pattern in ("splits.json", "*/splits.json") for path in root.glob(pattern))
    if not any((place / name).is_dir() for place in found for name in _BESIDE[data]):
        raise ValueError(
            f"{folder} has no splits.json beside {' or '.join(_BESIDE[data])}/, so nothing says who is in which fold; "
            "add the published file"
        )


def get_sweep(argument: str = "biwi") -> dict[str, Any]:
    """The sweep of `DATASET[,FOLDER[,WEIGHTS]]`."""
    data, *files = argument.split(",")
    if data not in _NAMES or len(files) > 2:
        raise ValueError(
            f"argument {argument!r} must be DATASET,FOLDER,WEIGHTS, the dataset one of: {', '.join(_NAMES)}"
        )
    if files and files[0]:
        _check_splits(data, files[0])
    overrides = dict(zip(("dataset.manual_dir", "model.pretrained"), files, strict=False))
    methods = [{**one, "overrides": overrides} for one in (*_BENCHMARK["methods"](data), *_others(data))]
    return {
        "name": f"paper_{data}",
        "title": f"{_NAMES[data]}, five folds",
        "methods": methods,
        "runs": [{"seed": 0, "knobs": f"fold={fold}"} for fold in FOLDS],
        "directions": ["rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth"],
        "baselines": _BENCHMARK["BASELINES"],
        "figure": f"paper_{data}.png",
    }
