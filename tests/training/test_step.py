"""One update: gradients, frozen parameters, overfitting one batch, and the same result on any number of devices."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from rgbd_reid_jax.core.mesh import replicated, shard_batch
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.frames import IMAGES, identities
from rgbd_reid_jax.data.inputs import InputSpec, plain_input
from rgbd_reid_jax.losses.weighted import LossOptions
from rgbd_reid_jax.training import objectives
from rgbd_reid_jax.training.freeze import merge, norms, partition
from rgbd_reid_jax.training.loop import make_step
from rgbd_reid_jax.training.optimizer import OptimizerSpec, make_optimizer
from rgbd_reid_jax.training.state import create_state

_SPEC = InputSpec(16, 8, "relative")
_STILL = Augmentation(crop_area=(1.0, 1.0), crop_ratio=(2.0, 2.0), flip=0.0)
_ALL = ((".*", "train"),)
_IDENTITY, _PLAIN, _SMOOTHED = {"identity": 1.0}, LossOptions(), LossOptions(smoothing=0.1)
_RULES_OF_ALL = ((r"(backbone|classifier)/.*", "train"), (r"(embedding|embedding_bn)/.*", "freeze"))
_RULES = ((r"backbone/(conv1|bn1|layer1_0)/.*", "train"), (r"(backbone/layer2_0|embedding|embedding_bn)/.*", "freeze"))


def flat(tree) -> Any:
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


@pytest.fixture(scope="module")
def batch(tiny_frames):
    labels, _ = identities(tiny_frames.labels["person_id"])
    indices = np.arange(16)
    target = np.random.default_rng(0).uniform(0, 2, (24, 8)).astype(np.float32)
    return tiny_frames.gather(indices, IMAGES) | {"identity": labels[indices], "target": target[indices]}


@pytest.fixture(scope="module")
def network(tiny_model):
    """(parameters, batch statistics) as numpy arrays."""
    return jax.device_get(jax.jit(tiny_model.init, static_argnums=(1, 2))(jax.random.key(0), 16, 8))


def start(network, optimizer, rules=_ALL) -> Any:
    params, batch_stats = network
    if rules is not _ALL:
        params = {name: value for name, value in params.items() if name != "classifier"}
    trainable, frozen = partition(params, rules)
    return create_state(jax.random.key(5), trainable, frozen, batch_stats, optimizer)


def test_a_step_follows_the_gradient_of_the_objective(tiny_model, network, batch):
    objective = objectives.identity_objective(tiny_model, _SPEC, "depth", Augmentation(), _IDENTITY, _SMOOTHED)
    optimizer = optax.sgd(1.0)
    before = start(network, optimizer)
    after, figures = jax.jit(make_step(objective, optimizer))(before, batch)
    key = jax.random.fold_in(jax.random.key(5), 0)  # the state's key and the number of the step

    def loss(params):
        return objective(params, network[1], batch, key)

    (value, (stats, _)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(network[0])
    assert float(figures["loss"]) == pytest.approx(float(value), rel=1e-5)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in flat(gradient).values()))
    assert float(figures["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
    for path, leaf in flat(after.trainable).items():
        moved = flat(network[0])[path] - leaf
        np.testing.assert_allclose(moved, flat(gradient)[path], atol=1e-4, err_msg=path)
    for path, leaf in flat(after.batch_stats).items():
        np.testing.assert_allclose(leaf, flat(stats)[path], rtol=1e-5, atol=1e-7, err_msg=path)
    assert int(after.step) == 1
    np.testing.assert_array_equal(after.key, before.key)
    # Finite differences along the gradient: f(p + h g) - f(p - h g) = 2 h |g|^2.
    value_of = jax.jit(lambda params: loss(params)[0])
    ahead, behind = (
        float(value_of(jax.tree.map(lambda p, g, h=h: p + h * g, network[0], gradient))) for h in (1e-3, -1e-3)
    )
    assert ahead - behind == pytest.approx(2e-3 * norm**2, rel=0.02)


def test_random_numbers_change_with_the_step(tiny_model, network, batch):
    objective = objectives.identity_objective(tiny_model, _SPEC, "depth", Augmentation(), _IDENTITY, _SMOOTHED)
    optimizer = optax.sgd(1.0)
    step = jax.jit(make_step(objective, optimizer))
    before = start(network, optimizer)
    first, same, other = (
        float(step(dataclasses.replace(before, step=jnp.asarray(number, jnp.int32)), batch)[1]["loss"])
        for number in (0, 0, 1)
    )
    assert first == same != other


@pytest.mark.parametrize("frozen_norm", ["batch", "running"])
def test_frozen_parameters_stay_bit_for_bit_and_have_no_slots(tiny_model, network, batch, frozen_norm):
    optimizer = make_optimizer(OptimizerSpec(learning_rate=0.01, weight_decay=0.1), 5)
    before = jax.device_get(start(network, optimizer, _RULES))
    running = norms(before.frozen) if frozen_norm == "running" else frozenset()
    objective = objectives.distillation_objective(
        tiny_model.without_classifier(),
        _SPEC,
        "rgb",
        Augmentation(),
        {"sum_squared": 1.0},
        _PLAIN,
        running=running,
    )
    step = jax.jit(make_step(objective, optimizer))
    state = before
    for _ in range(4):
        state, _ = step(state, batch)
    frozen, stats = flat(before.frozen), flat(before.batch_stats)
    assert {path.split("/")[-2] for path in frozen} >= {"conv2", "bn2", "downsample_conv", "embedding", "embedding_bn"}
    for path, leaf in flat(state.frozen).items():
        np.testing.assert_array_equal(leaf, frozen[path], err_msg=path)
    for path, leaf in flat(state.trainable).items():
        assert (leaf != flat(before.trainable)[path]).any(), path
    for path, leaf in flat(state.batch_stats).items():
        assert np.array_equal(leaf, stats[path]) == (path.rsplit("/", 1)[0] in running), path
    slots = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(slots) == sorted(leaf.shape for leaf in flat(before.trainable).values())


def test_frozen_parameters_cost_no_gradient(tiny_model, network, batch, monkeypatch):
    """By the compiler's count, and by its operations' names: below what trains there is no backward pass at all."""
    monkeypatch.setattr(objectives, "train_input", lambda spec, modality, batch, *_: plain_input(spec, modality, batch))
    (lower, _), (upper, _) = _RULES
    flops, backward = {}, {}
    for name, rules in (
        ("none", ((f"{lower}|{upper}", "train"),)),
        ("upper", _RULES),
        ("lower", ((lower, "freeze"), (upper, "train"))),
    ):
        state = start(network, optax.sgd(0.1), rules)
        model = tiny_model.without_classifier()
        running = norms(state.frozen)
        objective = objectives.distillation_objective(
            model, _SPEC, "rgb", _STILL, {"sum_squared": 1.0}, _PLAIN, running=running
        )
        program = jax.jit(make_step(objective, optax.sgd(0.1))).lower(state, batch).compile()
        cost: Any = program.cost_analysis()
        flops[name] = cost["flops"]
        text = str(program.as_text())
        backward[name] = set(re.findall(r'op_name="[^"]*transpose\(jvp[^"]*backbone/(\w+)/', text))
    assert backward["none"] == backward["upper"] == {"conv1", "bn1", "layer1_0", "layer2_0"}
    assert backward["lower"] == {"layer2_0"}
    assert flops["upper"] < 0.85 * flops["none"]
    assert flops["lower"] < 0.75 * flops["none"]


def overfit(objective, network, batch, steps, rules=_ALL):
    optimizer = make_optimizer(OptimizerSpec("adamw", learning_rate=0.05, weight_decay=0.0), steps)
    state = start(network, optimizer, rules)
    step = jax.jit(make_step(objective, optimizer))
    losses, figures = [], {}
    for _ in range(steps):
        state, figures = step(state, batch)
        losses.append(float(figures["loss"]))
    return losses, figures


def test_identities_of_one_batch_are_learnt(tiny_model, network, batch):
    objective = objectives.identity_objective(tiny_model, _SPEC, "depth", _STILL, _IDENTITY, _PLAIN)
    losses, figures = overfit(objective, network, batch, 50)
    assert losses[0] == pytest.approx(np.log(4), abs=0.05)
    assert losses[-1] < 0.05
    assert float(figures["accuracy"]) == 1.0


def test_networks_that_learn_people_may_keep_running_statistics(tiny_model, network, batch):
    running = norms(partition(network[0], _RULES_OF_ALL)[1])
    options = (tiny_model, _SPEC, "depth", _STILL, _IDENTITY, _PLAIN)
    _, (stats, _) = jax.jit(objectives.identity_objective(*options, running=running))(
        *network, batch, jax.random.key(0)
    )
    kept = {path: (leaf == flat(network[1])[path]).all() for path, leaf in flat(stats).items()}
    assert {path.rsplit("/", 1)[0] for path, same in kept.items() if same} == running
    assert not all(kept.values())


def test_targets_of_one_batch_are_learnt(tiny_model, network, batch):
    model = tiny_model.without_classifier()
    target = np.tile(np.eye(4, dtype=np.float32), (1, 2))[batch["identity"]]
    objective = objectives.distillation_objective(model, _SPEC, "rgb", _STILL, {"normalised_squared": 1.0}, _PLAIN)
    losses, figures = overfit(objective, network, batch | {"target": target}, 60, ((".*", "train"),))
    assert losses[-1] < 0.1 * losses[0]
    assert float(figures["twin_cosine"]) > 0.95


def test_one_stream_mixes_rows_of_rgb_with_rows_of_depth_in_turn(tiny_model, network, batch):
    objective = objectives.identity_objective(tiny_model, _SPEC, "both", _STILL, _IDENTITY, _PLAIN)
    loss, (stats, _) = jax.jit(objective)(*network, batch, jax.random.key(0))
    mixed = np.zeros((32, 16, 8, 3), np.float32)
    for first, modality in enumerate(("rgb", "depth")):
        mixed[first::2] = jax.jit(plain_input, static_argnums=(0, 1))(_SPEC, modality, batch)
    output, expected_stats = jax.jit(tiny_model.train)(*network, mixed, jax.random.key(0))
    log_probability = jax.nn.log_softmax(output.logits)
    expected = -np.mean([log_probability[row, batch["identity"][row // 2]] for row in range(32)])
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    for path, leaf in flat(stats).items():
        np.testing.assert_allclose(leaf, flat(expected_stats)[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_dropout_acts_on_the_distilled_embedding(tiny_model, network, batch):
    model = dataclasses.replace(tiny_model.without_classifier(), dropout=0.5)
    params = {name: value for name, value in network[0].items() if name != "classifier"}
    objective = objectives.distillation_objective(model, _SPEC, "rgb", _STILL, {"sum_squared": 1.0}, _PLAIN)
    loss = jax.jit(objective)
    values = [float(loss(params, network[1], batch, jax.random.key(seed))[0]) for seed in (0, 1)]
    assert values[0] != values[1]


def test_one_and_eight_devices_give_equal_states(tiny_model, network, batch, mesh_of):
    augmentation = Augmentation(gain=0.2, channel_shuffle=0.5)
    objective = objectives.identity_objective(tiny_model, _SPEC, "rgb", augmentation, _IDENTITY, _PLAIN)
    optimizer = make_optimizer(OptimizerSpec(learning_rate=0.02), 4)
    found = []
    for mesh in (mesh_of(1), mesh_of(8)):
        state = jax.device_put(start(network, optimizer), replicated(mesh))
        step = jax.jit(make_step(objective, optimizer))
        rows = shard_batch(batch, mesh)
        assert len(rows["rgb"].sharding.device_set) == mesh.size
        for _ in range(4):
            state, figures = step(state, rows)
        found.append((jax.device_get(state), float(figures["loss"])))
    (one, one_loss), (many, many_loss) = found
    assert many_loss == pytest.approx(one_loss, rel=1e-5)
    trees = [merge(state.trainable, state.frozen) | {"statistics": state.batch_stats} for state in (one, many)]
    for path, leaf in flat(trees[0]).items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(flat(trees[1])[path], leaf, rtol=1e-5, atol=1e-5 * scale + 1e-6, err_msg=path)


def test_state_starts_at_zero(network):
    optimizer = optax.sgd(0.1)
    state = start(network, optimizer)
    assert state.step.dtype == jnp.int32
    assert int(state.step) == 0
    np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(5)))
