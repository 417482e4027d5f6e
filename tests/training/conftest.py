"""A batch of both modalities and helpers that the objectives' tests share; small problems for the loop."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.frames import IMAGES, identities
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.data.pipeline import training_batches
from rgbd_reid_jax.losses.weighted import LossOptions
from rgbd_reid_jax.training.objectives import identity_objective
from tests.training.small_runs import Runner, counting, lines


@pytest.fixture(scope="session")
def tools():
    """What is not augmented, the input's size, and trees by path."""
    still = Augmentation(crop_area=(1.0, 1.0), crop_ratio=(2.0, 2.0), flip=0.0)
    return types.SimpleNamespace(
        still=still,
        spec=InputSpec(16, 8, "relative"),
        flat=lambda tree: traverse_util.flatten_dict(jax.device_get(tree), sep="/"),
    )


@pytest.fixture(scope="session")
def rows(tiny_frames):
    """Eight rows: four people, each before two cameras, in both modalities."""
    labels, _ = identities(tiny_frames.labels["person_id"])
    indices = np.arange(8)
    return tiny_frames.gather(indices, IMAGES) | {"identity": labels[indices]}


@pytest.fixture(scope="module")
def networks(tiny_model):
    """Two networks by modality, as (parameters, batch statistics), statistics not those of the start."""
    found = {}
    for index, name in enumerate(("rgb", "depth")):
        params, batch_stats = jax.device_get(
            jax.jit(tiny_model.init, static_argnums=(1, 2))(jax.random.key(index), 16, 8)
        )
        random = np.random.default_rng(index)
        batch_stats = jax.tree.map(
            lambda x, r=random: x + r.uniform(-0.3, 0.3, x.shape).astype(np.float32), batch_stats
        )
        params["classifier"]["kernel"] = random.normal(0, 0.3, (8, 4)).astype(np.float32)
        found[name] = params, batch_stats
    return found


@pytest.fixture(scope="module")
def network(tiny_model, tiny_frames, mesh_of):
    """A small network with dropout and augmentation, so that a wrong key or batch shows."""
    model = dataclasses.replace(tiny_model, dropout=0.3)
    losses = {"identity": 1.0}
    objective = identity_objective(model, InputSpec(16, 8, "relative"), "rgb", Augmentation(), losses, LossOptions())
    params, batch_stats = jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 16, 8)
    labels, _ = identities(tiny_frames.labels["person_id"])
    options = {"images": ("rgb",), "columns": {"identity": labels}, "batch_size": 8, "seed": 0}
    return Runner(objective, params, batch_stats, training_batches(tiny_frames, **options), mesh_of(1))


@pytest.fixture(scope="module")
def counter(tiny_frames, mesh_of):
    options = {"images": (), "columns": {"index": np.arange(24)}, "batch_size": 8, "seed": 0}
    return Runner(counting, {"w": jnp.zeros(())}, {}, training_batches(tiny_frames, **options), mesh_of(2))


@pytest.fixture(scope="module")
def uninterrupted(network, tmp_path_factory):
    """(the last state, the recorded lines) of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return network(folder), lines(folder)
