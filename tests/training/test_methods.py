"""Every method learns one batch; in half precision it stays finite; devices change nothing but rounding."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.core.mesh import shard_batch, shardings
from rgbd_reid_jax.core.modalities import other
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.inputs import InputSpec, plain_input
from rgbd_reid_jax.losses.weighted import LossOptions
from rgbd_reid_jax.models.pair import GateSpec, Pair
from rgbd_reid_jax.training import objectives
from rgbd_reid_jax.training.freeze import norms, partition
from rgbd_reid_jax.training.loop import compiled_step, make_step
from rgbd_reid_jax.training.optimizer import OptimizerSpec, make_optimizer
from rgbd_reid_jax.training.state import create_state

_SPEC = InputSpec(16, 8, "relative")
_OPTIONS = LossOptions()
_MUTUAL = {"identity": 1.0, "logits": 1.0, "contrastive": 1.0}


class Problems:
    """Objectives by method, on the tiny network: (objective, parameters, batch statistics, batch)."""

    def __init__(self, model, rows):
        self.model, self.rows = model, rows

    def batch(self, spec=_SPEC):
        """The rows, with a target for each person, and the plain inputs."""
        inputs = {f"{name} input": np.asarray(plain_input(spec, name, self.rows)) for name in ("rgb", "depth")}
        return self.rows | {"target": np.tile(np.eye(4, dtype=np.float32), (1, 2))[self.rows["identity"]]} | inputs

    def identity(self, modality, losses, *, zero_padding=False, **changes):
        """A teacher or a baseline."""
        model = dataclasses.replace(self.model, **changes)
        spec = dataclasses.replace(_SPEC, zero_padding=zero_padding)
        objective = objectives.identity_objective(model, spec, modality, Augmentation(), losses, _OPTIONS)
        return objective, *model.init(jax.random.key(0), 16, 8), self.batch(spec)

    def student(self, losses, *, running=frozenset(), **changes):
        """A student; for hints its teacher has the weights that it starts from."""
        model = dataclasses.replace(self.model, **changes)
        network = model.init(jax.random.key(0), 16, 8)
        make, given = objectives.distillation_objective, {"teacher": jax.device_get(network)}
        objective = make(model, _SPEC, "rgb", Augmentation(), losses, _OPTIONS, hints=(1, 2), running=running)

        def taught(params, batch_stats, batch, key, _=None):
            return objective(params, batch_stats, batch, key, given)

        return taught, *network, self.batch()

    def pair(self, kind, losses, *, start=0, **changes):
        model = dataclasses.replace(self.model.without_classifier(), **changes)
        pair = Pair(model, GateSpec(kind, rank=2, after=1), 4 if "identity" in losses else None)
        objective = objectives.pair_objective(pair, _SPEC, Augmentation(), losses, _OPTIONS, normalise=True)
        encoders = {
            name: model.init(jax.random.key(index), 16, 8) for index, name in enumerate(("rgb", "depth"), start)
        }
        return objective, *pair.init(encoders, jax.random.key(start + 2)), self.batch()


@pytest.fixture
def problems(tiny_model, rows, monkeypatch):
    """The problems, on plain inputs: crops and the like, half of what there is to compile, have tests of their own."""

    def prepared(spec, modality, batch, key, augmentation):
        return batch[f"{modality} input"]

    monkeypatch.setattr(objectives, "train_input", prepared)
    return Problems(tiny_model, rows)


METHODS = {
    "teacher by identities": lambda make: make.identity("rgb", {"identity": 1.0}),
    "teacher by triplets": lambda make: make.identity("depth", {"triplet": 1.0}, neck="triplet", num_identities=None),
    "teacher by both": lambda make: make.identity("depth", {"identity": 1.0, "triplet": 1.0}),
    "one stream": lambda make: make.identity("both", {"identity": 1.0}),
    "two streams": lambda make: make.identity("both", {"identity": 1.0}, own_parts=1),
    "zero padding": lambda make: make.identity("both", {"identity": 1.0}, zero_padding=True),
    "AGW": lambda make: make.identity(
        "both", {"identity": 1.0, "weighted_triplet": 1.0}, own_parts=1, neck="bnneck", pool="gem"
    ),
    "student": lambda make: make.student({"contrastive": 1.0, "identity": 1.0}),
    "student with hints": lambda make: make.student({"contrastive": 1.0, "maps": 1.0}),
    **{
        f"attention {kind}": lambda make, kind=kind: make.pair(kind, {"pair_softmax": 1.0})
        for kind in ("none", "self", "pairwise", "middle")
    },
    "mutual": lambda make: make.pair("none", _MUTUAL),
}


def state_of(params, batch_stats, optimizer) -> Any:
    return create_state(jax.random.key(5), params, {}, batch_stats, optimizer)


@pytest.mark.parametrize("name", METHODS)
def test_one_batch_is_learnt(problems, name):
    objective, params, batch_stats, batch = METHODS[name](problems)
    optimizer = make_optimizer(OptimizerSpec("adamw", learning_rate=0.03, weight_decay=0.0), 40)
    state = state_of(params, batch_stats, optimizer)
    step = jax.jit(make_step(objective, optimizer))
    losses = []
    for _ in range(40):
        state, figures = step(state, batch)
        losses.append(float(figures["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.3 * losses[0], losses


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_the_paper_s_student_learns_its_teacher_s_batch_through_frozen_upper_layers(problems, modality):
    """Of either modality, from the weights of a teacher that sees the other one; the paper's table for half the stages.

    Frozen batch norms take the batch's statistics, as in the paper's code; so does the teacher, which is untrained.
    """
    model = problems.model.without_classifier()
    rules = (
        (r"backbone/(conv1|bn1|layer1_\d+)/.*", "train"),
        (r"(backbone/layer2_\d+|embedding|embedding_bn)/.*", "freeze"),
    )
    params, batch_stats = model.init(jax.random.key(0), 16, 8)
    batch = problems.batch()
    taught, _ = jax.jit(model.train)(params, batch_stats, batch[f"{other(modality)} input"], jax.random.key(0))
    batch["target"] = taught.embedding
    objective = objectives.distillation_objective(
        model, _SPEC, modality, Augmentation(), {"sum_squared": 1.0}, _OPTIONS
    )
    optimizer = make_optimizer(OptimizerSpec("adamw", learning_rate=0.03, weight_decay=0.0), 80)
    state: Any = create_state(jax.random.key(5), *partition(params, rules), batch_stats, optimizer)
    step = jax.jit(make_step(objective, optimizer))
    losses = []
    for _ in range(80):
        state, figures = step(state, batch)
        losses.append(float(figures["loss"]))
    assert losses[-1] < 0.3 * losses[0], losses


@pytest.mark.parametrize(
    "make",
    [
        lambda make: make.identity("both", {"identity": 1.0}, own_parts=1, compute_dtype="bfloat16"),
        lambda make: make.student({"contrastive": 1.0, "maps": 30.0}, compute_dtype="bfloat16"),
        lambda make: make.pair("middle", {"pair_triplet": 1.0, "identity": 1.0}, compute_dtype="bfloat16"),
    ],
    ids=["baseline", "student", "pair"],
)
def test_half_precision_is_finite(problems, tools, make):
    objective, params, batch_stats, batch = make(problems)
    compute = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, (stats, _)), slopes = compute(params, batch_stats, batch, jax.random.key(0))
    assert loss.dtype == jnp.float32
    assert np.isfinite(float(loss))
    for path, leaf in tools.flat({"statistics": stats, "slopes": slopes}).items():
        assert leaf.dtype == np.float32, path
        assert np.isfinite(leaf).all(), path
    assert sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(slopes)) > 0.01


def test_hints_of_a_batch_in_parts_are_those_of_the_whole(problems, tools):
    """With running statistics, where parts have no statistics of their own to differ by."""
    params, _ = problems.model.init(jax.random.key(0), 16, 8)
    running, found = norms(params), []
    for count in (1, 2):
        losses = {"mean_squared": 1.0, "maps": 30.0}
        objective, *network, batch = problems.student(losses, running=running, micro_batches=count)
        compute = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (_, (_, figures)), slopes = compute(*network, batch, jax.random.key(0))
        assert figures["maps"] > 0.01
        found.append(tools.flat({"figures": figures, "slopes": slopes}))
    whole, parts = found
    for path, leaf in whole.items():
        np.testing.assert_allclose(parts[path], leaf, rtol=1e-4, atol=1e-4, err_msg=path)


@pytest.mark.parametrize(
    "make",
    [
        lambda make: make.identity("depth", {"identity": 1.0, "triplet": 1.0}),
        lambda make: make.student({"contrastive": 1.0, "sum_squared": 1.0}),
        # Little of it: directions of places with hardly any activity turn fast.
        lambda make: make.student({"sum_squared": 1.0, "maps": 0.01}),
        lambda make: make.identity("both", {"identity": 1.0, "weighted_triplet": 1.0}, own_parts=1),
        # From start 0 a step meets a kink of ReLU or a maximum on some processors: there rounding decides the gradient.
        lambda make: make.pair("middle", {"pair_softmax": 1.0, "identity": 1.0}, start=10),
    ],
    ids=["teacher", "student", "student with hints", "baseline", "pair"],
)
def test_one_and_eight_devices_take_equal_steps_in_the_memory_of_their_state(problems, tools, mesh_of, make):
    objective, *network, batch = make(problems)
    params, batch_stats = jax.device_get(network)  # a step takes what it is given
    optimizer = make_optimizer(OptimizerSpec(learning_rate=1e-4), 20)  # small, so that rounding stays rounding
    found = []
    for mesh in (mesh_of(1), mesh_of(8, 2)):
        state = state_of(params, batch_stats, optimizer)
        state = jax.device_put(state, shardings(state, mesh))
        kept = state.trainable.get("rgb", state.trainable)["backbone"]["layer2_0"]["conv1"]["kernel"]
        assert kept.addressable_shards[0].data.size * mesh.shape["fsdp"] == kept.size
        sharded = shard_batch(batch, mesh)
        assert len(sharded["rgb"].sharding.device_set) == mesh.size
        step = compiled_step(objective, optimizer, state, mesh).lower(state, sharded).compile()
        on_each = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
        assert step.memory_analysis().alias_size_in_bytes >= on_each  # the new state lies where the old one lay
        before, losses = jax.tree.map(lambda leaf: leaf.sharding, state), []
        for _ in range(20):
            donated = state
            state, figures = step(donated, sharded)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
            losses.append(float(figures["loss"]))
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
        found.append((losses, tools.flat({"params": state.trainable, "statistics": state.batch_stats})))
    (one_losses, one), (many_losses, many) = found
    assert many_losses == pytest.approx(one_losses, rel=1e-5)
    for path, leaf in one.items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(many[path], leaf, rtol=1e-5, atol=1e-5 * scale + 1e-6, err_msg=path)
