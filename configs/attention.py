"""Cross-modal attention on top of distilled encoders, our readings (rgbd_reid_jax/models/pair.py), and its controls.

CVIU 2022, doi:10.1016/j.cviu.2021.103352. Teacher and student as in configs/distill.py, then the student is trained on
together with a gate between both, by the distillation loss and a re-identification loss over all pairs of RGB and depth
images of a batch. The teacher's weights stay: training them too cost 4 points of mAP on validation people
(docs/results.md); `--config.training.pair.freeze='()'` does it.

    python -m rgbd_reid_jax.main --config=configs/attention.py --workdir=runs/attention
    python -m rgbd_reid_jax.main --config=configs/attention.py:synthetic_rgbd,middle --workdir=runs/middle
    python -m rgbd_reid_jax.main --config=configs/attention.py --reuse=runs/distill --workdir=runs/attention

Arguments: configs/shared/base.py, with one more option, the gate: `pairwise` (also without one), `middle`, and the
controls `self` (each encoder gates itself), `none` (the training alone) and `none_running` (the same with the running
statistics of batch norms, which the gate in the middle trains with). What each is worth: docs/results.md.

Deviation (biwi, robotpku, tvrid): AdamW with one cycle, as the paper's student has a rate at which no new gate would
learn, and unit vectors in the evaluation, as gates choose directions.

Expected result: docs/results.md. Hardware: 2 CPU cores, 1.4 GiB of memory. Wall time: 9 to 12 minutes
on one core (none, pairwise; a gate in the middle ranks pair by pair, which took about 12 minutes more).
"""

import pathlib
import runpy
from typing import Any

import ml_collections

# By its place, so that this file can be used from any folder.
_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("shared") / "base.py"))
_GATES = ("none", "none_running", "self", "pairwise", "middle")
_ADAMW = {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 1e-2, "schedule": "one_cycle"}


def get_config(argument: str = "synthetic_rgbd") -> ml_collections.ConfigDict:
    """The configuration of `argument`."""
    options = argument.split(",")
    known = (*_BASE["OPTIONS"], *_GATES)
    for option in options[1:]:
        if option not in known:
            raise ValueError(f"option {option!r} of {argument!r} is unknown; choose one of: {', '.join(known)}")
    gates = [option for option in options if option in _GATES]
    config: Any = _BASE["recipe"](",".join(option for option in options if option not in _GATES))
    with config.unlocked():
        stage = _BASE["pair"](config, config.training.student.steps // 2)
        stage.start = config.encoders.to_dict()
        chosen = gates[-1] if gates else "pairwise"
        stage.gate.kind = chosen.removesuffix("_running")
        stage.losses.update({"pair_softmax": 1.0, **_BASE["distillation_beside"](config)})
        if config.training.student.optimizer.name == "adamw":
            stage.optimizer.learning_rate = config.training.student.optimizer.learning_rate / 25
        else:
            stage.optimizer.update(_ADAMW)
            config.evaluation.normalise = True
        stage.evaluate_every = stage.steps // 4
        stage.patience = 2
        taught, own = config.training.teacher.modality, config.training.student.modality
        gates_train = () if stage.gate.kind == "none" else (("gate_.*", "train"),)
        stage.freeze = ((f"{taught}/.*", "freeze"), (f"{own}/.*", "train"), *gates_train)
        stage.frozen_norm = "running"
        if chosen in ("middle", "none_running"):  # layers above a gate see gated maps beside plain ones
            stage.trained_norm = "running"
        config.method = f"attention_{chosen}"
        config.stages = ("teacher", "student", "pair", "evaluation", "export", "report")
        config.encoders = {"rgb": "pair", "depth": "pair"}
        config.training.pair = stage
    return config
