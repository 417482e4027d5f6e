"""Two encoders and their gate: untrained gates change nothing, trained ones give the distances that loops give."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.inputs import plain_input
from rgbd_reid_jax.losses.distillation import logits_divergence
from rgbd_reid_jax.losses.gated import PAIR_LOSSES
from rgbd_reid_jax.losses.weighted import LossOptions
from rgbd_reid_jax.models.pair import GateSpec, Pair
from rgbd_reid_jax.training.freeze import merge, norms, partition
from rgbd_reid_jax.training.hard_pairs import hardest
from rgbd_reid_jax.training.loop import make_step
from rgbd_reid_jax.training.objectives import pair_objective
from rgbd_reid_jax.training.optimizer import OptimizerSpec, make_optimizer
from rgbd_reid_jax.training.state import create_state

_KEY = jax.random.key(4)
_KINDS = ("none", "self", "pairwise", "middle")
_OPTIONS = LossOptions(smoothing=0.1, margin=0.4, temperature=0.3)


def made(tiny_model, networks, kind, trained=False) -> tuple[Pair, Any, Any]:
    """A pair that starts from both networks, with gates as they start or with random weights."""
    pair = Pair(tiny_model.without_classifier(), GateSpec(kind, rank=2, after=1), num_identities=4)
    made: Any = pair.init(networks, jax.random.key(1))
    params, batch_stats = made
    if trained:
        random = np.random.default_rng(5)
        for name in ("gate_rgb", "gate_depth"):
            params[name] = jax.tree.map(lambda x: random.normal(0, 0.7, x.shape).astype(np.float32), params[name])
    return pair, params, batch_stats


@pytest.fixture(scope="module")
def every_norm(networks, tools):
    """Batch-norm layers of both encoders."""
    layers = {path.rsplit("/", 1)[0] for path in tools.flat(networks["rgb"][1])}
    return frozenset(f"{name}/{layer}" for name in ("rgb", "depth") for layer in layers)


def test_untrained_gates_change_no_loss(tiny_model, networks, rows, tools, every_norm):
    losses: dict[str, float] = dict.fromkeys(
        ("pair_softmax", "pair_triplet", "identity", "logits", "contrastive", "hetero_centre"), 1.0
    )
    found = {}
    for kind in _KINDS:
        pair, params, batch_stats = made(tiny_model, networks, kind)
        objective = pair_objective(
            pair, tools.spec, Augmentation(), losses, _OPTIONS, normalise=True, running=every_norm
        )
        loss, (stats, figures) = objective(params, batch_stats, rows, _KEY)
        found[kind] = {"loss": float(loss)} | {name: float(value) for name, value in figures.items()}
        for path, leaf in tools.flat(stats).items():
            np.testing.assert_array_equal(leaf, tools.flat(batch_stats)[path], err_msg=path)
    assert set(losses) <= set(found["none"])
    for kind in _KINDS:
        assert found[kind] == pytest.approx(found["none"], rel=1e-5, abs=1e-6), kind


def test_dropout_is_for_the_classifier_alone(tiny_model, networks, rows, tools, every_norm):
    """Two networks with masks of their own would never be at one."""
    model = dataclasses.replace(tiny_model, dropout=0.5)
    losses = {"normalised_squared": 1.0, "pair_softmax": 1.0, "identity": 1.0}
    pair, params, batch_stats = made(model, networks, "none")
    objective = pair_objective(pair, tools.spec, tools.still, losses, _OPTIONS, normalise=True, running=every_norm)
    one, other = (objective(params, batch_stats, rows, jax.random.key(seed))[1][1] for seed in (0, 1))
    assert {name for name in losses if float(one[name]) != float(other[name])} == {"identity"}


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kind", ["self", "pairwise", "middle"])
def test_gated_distances_are_those_of_a_loop(tiny_model, networks, rows, tools, every_norm, kind, normalise):
    pair, params, batch_stats = made(tiny_model, networks, kind, trained=True)
    losses = {"pair_triplet": 1.0, "pair_softmax": 2.0}
    objective = pair_objective(pair, tools.spec, tools.still, losses, _OPTIONS, normalise=normalise, running=every_norm)
    _, (_, figures) = objective(params, batch_stats, rows, _KEY)

    def scaled(x):
        x = np.asarray(x, np.float64)
        return x / np.sqrt((x**2).sum(axis=1, keepdims=True) + 1e-6) if normalise else x

    gate: Any = pair.gate_of()
    own, maps, gates = {}, {}, {}
    for name in ("rgb", "depth"):
        images = plain_input(tools.spec, name, rows)
        own[name] = scaled(pair.network.embed(params[name], batch_stats[name], images, name))
        maps[name] = np.asarray(pair.network.lower(params[name], batch_stats[name], images, name, 2))
        summary = jnp.asarray(maps[name].mean(axis=(1, 2)) if kind == "middle" else own[name], jnp.float32)
        gates[name] = np.asarray(gate(params[f"gate_{name}"], summary), np.float64)
        assert np.ptp(gates[name]) > 0.2
    squared = np.zeros((8, 8))
    for i in range(8):
        for j in range(8):
            q, g, b, a = own["rgb"][i], own["depth"][j], gates["rgb"][i], gates["depth"][j]
            if kind == "self":
                squared[i, j] = ((q * b - g * a) ** 2).sum()
            elif kind == "pairwise":
                squared[i, j] = ((q * a - g * b) ** 2).sum()
            else:
                squared[i, j] = ((q - g) ** 2).sum()
    if kind == "middle":  # what each image's map becomes under the gate of the other one's
        for i, j in zip(*(np.asarray(one) for one in hardest(jnp.asarray(squared), rows["identity"])), strict=True):
            one, other = maps["rgb"][i] * gates["depth"][j], maps["depth"][j] * gates["rgb"][i]
            q = scaled(pair.network.upper(params["rgb"], batch_stats["rgb"], one[None].astype(np.float32), "rgb", 2))
            g = scaled(
                pair.network.upper(params["depth"], batch_stats["depth"], other[None].astype(np.float32), "depth", 2)
            )
            squared[i, j] = ((q - g) ** 2).sum()
    options = {"pair_triplet": {"margin": 0.4}, "pair_softmax": {"temperature": 0.3}}
    for name in losses:
        expected, _ = PAIR_LOSSES[name](jnp.asarray(squared), rows["identity"], **options[name])
        assert float(figures[name]) == pytest.approx(float(expected), rel=2e-3, abs=1e-5), name


def test_predictions_of_one_instant_learn_from_each_other(tiny_model, networks, rows, tools, every_norm):
    """Both networks share the classifier, that of the depth network."""
    pair, params, batch_stats = made(tiny_model, networks, "none")
    objective = pair_objective(
        pair, tools.spec, tools.still, {"logits": 1.0, "identity": 1.0}, _OPTIONS, normalise=True, running=every_norm
    )
    _, (_, figures) = objective(params, batch_stats, rows, _KEY)
    classifier = networks["depth"][0]["classifier"]
    logits = {}
    for name in ("rgb", "depth"):
        embedding = pair.network.embed(params[name], batch_stats[name], plain_input(tools.spec, name, rows), name)
        logits[name] = jnp.asarray(np.asarray(embedding) @ classifier["kernel"] + classifier["bias"])
    there, back = (
        float(logits_divergence(logits[one], logits[two], 4.0)) for one, two in (("rgb", "depth"), ("depth", "rgb"))
    )
    assert float(figures["logits"]) == pytest.approx((there + back) / 2, rel=1e-4)
    right = [(np.asarray(one).argmax(axis=1) == rows["identity"]).mean() for one in logits.values()]
    assert float(figures["accuracy"]) == pytest.approx(np.mean(right), abs=1e-6)


@pytest.mark.parametrize("kind", ["self", "pairwise", "middle"])
def test_gradients_reach_both_gates_and_both_encoders(tiny_model, networks, rows, tools, kind):
    pair, params, batch_stats = made(tiny_model, networks, kind)
    objective = pair_objective(pair, tools.spec, Augmentation(), {"pair_softmax": 1.0}, _OPTIONS, normalise=True)
    slopes = tools.flat(jax.grad(lambda params: objective(params, batch_stats, rows, _KEY)[0])(params))
    for name in ("rgb", "depth"):
        for path in (f"gate_{name}/expand/kernel", f"gate_{name}/expand/bias", f"{name}/backbone/conv1/kernel"):
            assert np.abs(slopes[path]).max() > 1e-6, path
        assert np.abs(slopes[f"gate_{name}/reduce/kernel"]).max() == 0, "until its expansion is not 0 any more"
    assert np.abs(slopes["classifier/kernel"]).max() == 0, "no loss looks at it"


def test_a_frozen_encoder_stays_bit_for_bit_while_the_other_moves(tiny_model, networks, rows, tools):
    pair, params, batch_stats = made(tiny_model, networks, "pairwise")
    rules = ((r"depth/.*", "freeze"), (r"(rgb|gate_rgb|gate_depth|classifier)/.*", "train"))
    trainable, frozen = partition(params, rules)
    running = norms(frozen)
    assert "depth/backbone/bn1" in running
    assert all(layer.startswith("depth/") for layer in running)
    losses = {"pair_softmax": 1.0, "identity": 1.0}
    objective = pair_objective(pair, tools.spec, Augmentation(), losses, _OPTIONS, normalise=True, running=running)
    optimizer = make_optimizer(OptimizerSpec("adamw", learning_rate=0.01, weight_decay=0.0), 3)
    state = create_state(jax.random.key(0), trainable, frozen, batch_stats, optimizer)
    step = jax.jit(make_step(objective, optimizer))
    for _ in range(3):
        state, _ = step(state, rows)
    before, after = tools.flat(params), tools.flat(merge(state.trainable, state.frozen))
    for path, leaf in after.items():
        assert np.array_equal(leaf, before[path]) == path.startswith("depth/"), path
    before, after = tools.flat(batch_stats), tools.flat(state.batch_stats)
    for path, leaf in after.items():
        assert np.array_equal(leaf, before[path]) == path.startswith("depth/"), path
