"""Zero-padding baseline: one network that can tell the modalities apart by the channel that is not zero.

Wu et al., ICCV 2017, doi:10.1109/ICCV.2017.575: grey of the colour image in channel 0, depth in channel 2, zeros
elsewhere. It never sees colours, so it is its own grey control. All else as configs/one_stream.py.

    python -m rgbd_reid_jax.main --config=configs/zero_padding.py --workdir=runs/zero_padding

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
    config: Any = _BASE["baseline"](argument, "zero_padding")
    config.input.zero_padding = True
    return config
