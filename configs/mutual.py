"""Mutual distillation: an RGB and a depth network learn together, each from people and from the other.

Zhang et al., "Deep Mutual Learning", arXiv:1706.00384, across modalities: the teacher's losses on both networks, which
share a classifier, the divergence of their predictions for the same instant both ways, and the distillation loss
between their embeddings, in place of the two steps of teacher and student. Random erasing and all else as
configs/distill.py.

Deviation: cross-entropy also beside the paper's triplet teacher, as predictions are compared.
Deviation (biwi, robotpku, tvrid): the squared error of unit vectors in place of the paper's sum, and unit vectors in
the evaluation (`distillation_beside` in configs/shared/base.py).

    python -m rgbd_reid_jax.main --config=configs/mutual.py --workdir=runs/mutual

Arguments: configs/shared/base.py. Expected result: docs/results.md. Hardware: 2 CPU cores, 1.4 GiB of memory.
Wall time: 7 minutes on one core of a machine with other work.
"""

import pathlib
import runpy
from typing import Any

import ml_collections

# By its place, so that this file can be used from any folder.
_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("shared") / "base.py"))


def get_config(argument: str = "synthetic_rgbd") -> ml_collections.ConfigDict:
    """The configuration of `argument`."""
    config: Any = _BASE["recipe"](argument)
    with config.unlocked():
        stage = _BASE["pair"](config, config.training.teacher.steps + config.training.student.steps)
        stage.losses.update(config.training.teacher.losses.to_dict())
        stage.losses.update({"identity": 1.0, "logits": 1.0, **_BASE["distillation_beside"](config)})
        stage.augmentation.erase = config.training.teacher.augmentation.erase
        config.evaluation.normalise = True  # as its distillation loss
        config.method = "mutual"
        config.stages = ("pair", "evaluation", "export", "report")
        config.encoders = {"rgb": "pair", "depth": "pair"}
        config.training = {"pair": stage}
    return config
