"""How many rows batch norm needs: the main job with statistics of parts of each batch of 64 (docs/scaling.md).

    python -m rgbd_reid_jax.sweep --sweep=configs/sweeps/norm_groups.py --workdir=runs/parts --output=runs/parts

Two network seeds on one data seed. Nothing was chosen by it.
"""

from typing import Any

ROWS = (64, 32, 16, 8, 4)


def get_sweep() -> dict[str, Any]:
    """The sweep."""
    methods = [
        {
            "name": f"rows_{rows}",
            "config": "configs/distill.py",
            "overrides": {f"training.{stage}.norm_groups": 64 // rows for stage in ("teacher", "student")},
            "note": f"statistics of {rows} rows",
        }
        for rows in ROWS
    ]
    return {
        "name": "norm_groups",
        "title": "Batch norm over parts of a batch of 64, synthetic_rgbd/quick, test people",
        "methods": methods,
        "runs": [{"seed": seed, "knobs": "seed=1"} for seed in range(2)],
        "directions": ["rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth"],
        "baselines": ["rows_64"],
        "figure": "norm_groups.png",
    }
