"""AGW-style strong baseline of visible-infrared re-identification, on RGB and depth.

Ye et al., arXiv:2001.04193: two streams that part in the stem, last stride 1, GeM pooling, BNNeck, cross-entropy with
the weighted regularised triplet loss over batches of P people x K rows of both modalities; channel exchange (Ye et al.,
ICCV 2021, doi:10.1109/ICCV48922.2021.01331) and random erasing.

    python -m rgbd_reid_jax.main --config=configs/agw.py --workdir=runs/agw

Deviation: no non-local attention blocks; optimizer, network and number of images are those of configs/one_stream.py,
which has GeM, BNNeck and the weighted triplet loss too on the embedded dataset. There it differs by the two streams, by
rows whose images are of different instants and cameras, and by channel exchange.

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
    config: Any = _BASE["baseline"](argument, "agw")
    config.model.update({"own_parts": 1, "last_stride": 1, "pool": "gem", "neck": "bnneck"})
    config.evaluation.normalise = True
    stage = config.training.baseline
    stage.sampling.name = "pk_cross_modal"
    stage.losses.update({"identity": 1.0, "weighted_triplet": 1.0})
    stage.augmentation.update({"channel_exchange": 0.3, "erase": 0.5})
    return config
