"""What convolutions compute from frozen kernels alone is computed once, and changes no step but by rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.mesh import replicated, shard_batch, shardings
from rgbd_reid_jax.core.modalities import MODALITIES
from rgbd_reid_jax.data.inputs import plain_input
from rgbd_reid_jax.models.convolution import PREPARED
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.step import parted, preparation, stage_step
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.training import objectives
from rgbd_reid_jax.training.loop import make_step
from rgbd_reid_jax.training.state import create_state

UPPER = ((r"backbone/(conv1|bn1|layer[12]_0)/.*", "train"), (r"(backbone/layer[34]_0|gem_|embedding).*", "freeze"))
SMALL = (
    "--config.input.height=32",
    "--config.input.width=16",
    "--config.training.student.losses.maps=0.0",
    f"--config.training.student.freeze={UPPER!r}",
)


UPPERMOST = {"layer3_0/conv2", "layer4_0/conv1", "layer4_0/conv2"}
TEACHER = UPPERMOST | {"layer2_0/conv2"}


@pytest.mark.parametrize(
    ("argument", "stage", "side", "found", "more", "devices"),
    [
        ("distill.py", "student", "", UPPERMOST, ("model.remat=True", "training.student.micro_batches=2"), 4),
        ("attention.py:synthetic_rgbd,middle", "pair", "depth/", TEACHER, (), 1),
    ],
)
def test_frozen_kernels_are_prepared_once(
    tiny_frames, mesh_of, monkeypatch, argument, stage, side, found, more, devices
):
    monkeypatch.setattr(objectives, "train_input", lambda spec, modality, batch, *_: plain_input(spec, modality, batch))
    words = [f"--config=configs/{argument}", *SMALL, *(f"--config.{word}" for word in more)]
    words.append(f"--config.training.{stage}.optimizer.name=sgd")  # Adam divides small gradients by themselves
    settings = read_settings(cli.configuration(words), tuple(STAGES))
    step = stage_step(settings, stage, 4)
    network: Any = jax.jit(step.network.init, static_argnums=(1, 2))(jax.random.key(0), 32, 16)
    if step.pair is not None:
        encoders: Any = dict.fromkeys(MODALITIES, network)
        network = step.pair.init(encoders, jax.random.key(1))
    trainable, frozen, running = parted(settings.training[stage], network[0])
    mesh = mesh_of(devices)
    prepare = preparation(settings, step, settings.training[stage].modality, frozen, mesh)
    assert prepare is not None
    prepared = jax.jit(prepare, out_shardings=replicated(mesh))(*network)
    filled = {path for path, tiles in traverse_util.flatten_dict(prepared).items() if tiles}
    places = {"/".join(part for part in path[:-1] if part != PREPARED) for path in filled}
    assert places == {f"{side}backbone/{place}" for place in found}
    state = create_state(jax.random.key(2), trainable, frozen, network[1], step.optimizer)
    state = jax.device_put(state, shardings(state, mesh))
    labels = np.arange(8, dtype=np.int32) // 2
    columns = {"identity": labels, "target": np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32)}
    batch = tiny_frames.gather(np.arange(8), step.images) | {name: columns[name] for name in step.columns}
    batch = shard_batch(batch, mesh)
    take = jax.jit(make_step(step.objective(running), step.optimizer, mesh))
    plain, given, wrong = (
        take(state, batch, prepared=one) for one in ({}, prepared, jax.tree.map(jnp.zeros_like, prepared))
    )
    for name in ("loss", "gradient_norm"):
        assert float(given[1][name]) == pytest.approx(float(plain[1][name]), rel=1e-4)
        assert float(wrong[1][name]) != pytest.approx(float(plain[1][name]), rel=1e-2)
    # Nothing prepared is kept in a checkpoint, and weights move alike.
    assert jax.tree.structure(given[0]) == jax.tree.structure(plain[0])
    moved, other = (jax.tree.map(jnp.subtract, one[0].trainable, trainable) for one in (given, plain))
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, moved, other))
    assert float(apart) < 1e-3 * float(optax.tree.norm(other))


def test_nothing_is_prepared_where_nothing_is_frozen(mesh_of):
    settings = read_settings(cli.configuration(["--config=configs/distill.py", *SMALL]), tuple(STAGES))
    step = stage_step(settings, "teacher", 4)
    assert preparation(settings, step, "depth", {}, mesh_of(1)) is None
