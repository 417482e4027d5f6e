"""Two-stream baseline: each modality has the network's first parts for itself, the rest is shared.

Wu et al., ICCV 2017, doi:10.1109/ICCV.2017.575; Ye et al., arXiv:2001.04193, whose networks part in the stem. How many
of the five parts (stem, four stages) are apart is `model.own_parts`. All else as configs/one_stream.py.

    python -m rgbd_reid_jax.main --config=configs/two_stream.py --workdir=runs/two_stream
    python -m rgbd_reid_jax.main --config=configs/two_stream.py --config.model.own_parts=3 --workdir=runs/two_stream_3

Arguments: configs/shared/base.py. Expected result: docs/results.md. Hardware: 2 CPU cores, 1.4 GiB of memory.
Wall time: 7 to 9 minutes on one core.
"""

import pathlib
import runpy
from typing import Any

import ml_collections

# By its place, so that this file can be used from any folder.
_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("shared") / "base.py"))


def get_config(argument: str = "synthetic_rgbd") -> ml_collections.ConfigDict:
    """The configuration of `argument`."""
    config: Any = _BASE["baseline"](argument, "two_stream")
    config.model.own_parts = 1
    return config
