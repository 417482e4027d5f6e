"""What convolutions compute from frozen kernels alone is computed once, and changes no step but by rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.modalities import MODALITIES
from rgbd_reid_jax.models.convolution import PREPARED
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.step import parted, preparation, stage_step
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.training.loop import make_step
from rgbd_reid_jax.training.state import create_state

UPPER = ((r"backbone/(conv1|bn1|layer[12]_0)/.*", "train"), (r"(backbone/layer[34]_0|gem_|embedding).*", "freeze"))
SMALL = (
    "--config.input.height=32",
    "--config.input.width=16",
    "--config.training.student.losses.maps=0.0",
    f"--config.training.student.freeze={UPPER!r}",
)


@pytest.mark.parametrize(
    ("argument", "stage", "found"),
    [
        ("distill.py", "student", {"backbone/layer3_0/conv2", "backbone/layer4_0/conv1", "backbone/layer4_0/conv2"}),
        (
            "attention.py:synthetic_rgbd,pairwise",
            "pair",
            {
                f"depth/backbone/{layer}"
                for layer in ("layer2_0/conv2", "layer3_0/conv2", "layer4_0/conv1", "layer4_0/conv2")
            },
        ),
    ],
)
def test_frozen_kernels_are_prepared_once(tiny_frames, mesh_of, argument, stage, found):
    settings = read_settings(cli.configuration([f"--config=configs/{argument}", *SMALL]), tuple(STAGES))
    step = stage_step(settings, stage, 4)
    network: Any = jax.jit(step.network.init, static_argnums=(1, 2))(jax.random.key(0), 32, 16)
    if step.pair is not None:
        network = step.pair.init(dict.fromkeys(MODALITIES, network), jax.random.key(1))
    trainable, frozen, running = parted(settings.training[stage], network[0])
    prepared = jax.jit(preparation(settings, step, settings.training[stage].modality, frozen, mesh_of(1)))(*network)
    filled = {path for path, tiles in traverse_util.flatten_dict(prepared).items() if tiles}
    assert {"/".join(part for part in path[:-1] if part != PREPARED) for path in filled} == found
    state = create_state(jax.random.key(2), trainable, frozen, network[1], step.optimizer)
    labels = np.arange(8, dtype=np.int32) // 2
    columns = {"identity": labels, "target": np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32)}
    batch = tiny_frames.gather(np.arange(8), step.images) | {name: columns[name] for name in step.columns}
    take = jax.jit(make_step(step.objective(running), step.optimizer))
    plain, given, wrong = (
        take(state, batch, prepared=one) for one in ({}, prepared, jax.tree.map(jnp.zeros_like, prepared))
    )
    for name in ("loss", "gradient_norm"):
        assert float(given[1][name]) == pytest.approx(float(plain[1][name]), rel=1e-4)
        assert float(wrong[1][name]) != pytest.approx(float(plain[1][name]), rel=1e-2)
    assert jax.tree.structure(given[0]) == jax.tree.structure(plain[0])  # nothing prepared is kept in a checkpoint
