"""Whole runs of a tiny network in this process."""

import pathlib
from typing import Any

import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.data.inputs import plain_input
from rgbd_reid_jax.stages import job
from rgbd_reid_jax.training import objectives

TINY = {
    "dataset.config": "tiny",
    "input.height": 16,
    "input.width": 16,
    "input.depth_representation": "metric",
    "model.backbone": "tiny",
    "model.embedding_dim": 8,
    "evaluation.splits": ("test",),
}
STAGE = {
    "steps": 2,
    "batch_size": 8,
    "log_every": 1,
    "evaluate_every": 2,
    "sampling.people": 4,
    "sampling.frames": 2,
}


@pytest.fixture(scope="module")
def tiny_run(tiny_model, tiny_data_dir, mesh_of):
    """Runs the training and evaluation stages of a configuration on one device; gives the exit status and the stages.

    Images are not augmented: that takes the larger part of what there is to compile.
    """

    def start(argument: str, workdir: pathlib.Path, *more: str) -> tuple[int, list[str]]:
        config: Any = cli._load(f"configs/{argument}")
        stages = [stage for stage in config.stages if stage not in ("export", "report")]
        changes = TINY | {f"training.{stage}.{name}": value for stage in stages[:-1] for name, value in STAGE.items()}
        if "middle" in argument:
            changes["training.pair.gate.after"] = 1  # the tiny network has two stages
        if "student" in stages:
            changes["training.student.hints"] = (1, 2)
        arguments = [f"--config.{name}={value}" for name, value in changes.items()]
        places = [f"--config.dataset.data_dir={tiny_data_dir}", f"--workdir={workdir}", f"--stages={','.join(stages)}"]
        return cli.run(["main", f"--config=configs/{argument}", *arguments, *places, *more]), stages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "make_mesh", lambda *_, **__: mesh_of(1))
        patch.setattr(objectives, "train_input", lambda spec, modality, batch, *_: plain_input(spec, modality, batch))
        yield start
