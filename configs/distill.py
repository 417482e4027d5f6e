"""Cross-modal distillation: a depth teacher, distilled into an RGB student.

Paper: Hafner, Bhuiyan, Kooij, Granger, "Cross-Modal Distillation for RGB-Depth Person Re-Identification",
arXiv:1810.11641, doi:10.1016/j.cviu.2021.103352.

    python -m rgbd_reid_jax.main --config=configs/distill.py --workdir=runs/distill
    python -m rgbd_reid_jax.main --config=configs/distill.py:synthetic_rgbd,rgb_teacher --workdir=runs/rgb_teacher
    python -m rgbd_reid_jax.main --config=configs/distill.py:biwi --config.dataset.manual_dir=BIWI --workdir=runs/biwi

Arguments: configs/shared/base.py. Without one: the embedded dataset synthetic_rgbd/quick at 64x32 and a small
residual network. With `biwi`, `robotpku` or `tvrid`: the paper's recipe (ResNet-50, 256x128, batch 64), which needs the
dataset's files (docs/datasets.md) and an accelerator. It has not been run on these: no expected result can be stated,
and the paper's tables are not quoted here.

Expected result: docs/results.md. Hardware: 2 CPU cores, 1.4 GiB of memory. Wall time: 10 minutes, installation
from a package cache included.
"""

import pathlib
import runpy

import ml_collections

# By its place, so that this file can be used from any folder.
_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("shared") / "base.py"))


def get_config(argument: str = "synthetic_rgbd") -> ml_collections.ConfigDict:
    """The configuration of `argument`."""
    return _BASE["recipe"](argument)
