"""One-stream baseline: one network for both modalities, trained on identities.

The baseline of arXiv:1810.11641: RGB and depth images mixed in each batch, with the losses of configs/distill.py's
teacher. Data, network, optimizer, augmentation and the number of images trained on (teacher's plus student's) are those
of that configuration too.

    python -m rgbd_reid_jax.main --config=configs/one_stream.py --workdir=runs/one_stream

Arguments: configs/shared/base.py. Expected result: docs/results.md. Hardware: 2 CPU cores, 1.4 GiB of memory.
Wall time: 7 to 9 minutes on one core.
"""

import pathlib
import runpy

import ml_collections

# By its place, so that this file can be used from any folder.
_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("shared") / "base.py"))


def get_config(argument: str = "synthetic_rgbd") -> ml_collections.ConfigDict:
    """The configuration of `argument`."""
    return _BASE["baseline"](argument, "one_stream")
