"""One-stream baseline: one network for both modalities, trained on identities.

The baseline of arXiv:1810.11641: RGB and depth images mixed in each batch, cross-entropy. Data, network,
optimizer, augmentation and the total number of updates (teacher's plus student's) are those of
configs/distill.py, so that the two can be compared.

    python -m rgbd_reid_jax.main --config=configs/one_stream.py --workdir=runs/one_stream

Expected result (test people, three runs, docs/results.md): mAP 3.5 .. 5.6 RGB -> depth and 3.6 .. 6.5
depth -> RGB, chance 2.5. Hardware: 2 CPU cores, 1.4 GiB of memory. Wall time: 8 minutes on one of them.
Arguments: as configs/distill.py.
"""

import pathlib
import runpy

import ml_collections

# By its place, so that this file can be used from any folder.
_DISTILL = runpy.run_path(str(pathlib.Path(__file__).with_name("distill.py")))


def get_config(argument: str = "synthetic_rgbd") -> ml_collections.ConfigDict:
    """The configuration of `argument`."""
    config = _DISTILL["get_config"](argument)
    with config.unlocked():
        teacher, student = config.training.teacher, config.training.student
        one_stream = teacher.copy_and_resolve_references()
        one_stream.modality = "both"
        one_stream.steps = teacher.steps + student.steps
        one_stream.score = "eval/rgb_to_depth/mAP"
        one_stream.augmentation = {**student.augmentation.to_dict(), "depth_noise": teacher.augmentation.depth_noise}
        config.method = "one_stream"
        config.stages = ("one_stream", "evaluation", "export", "report")
        config.encoders = {"rgb": "one_stream", "depth": "one_stream"}
        config.training = {"one_stream": one_stream}
    return config
