"""Gates and pairs of encoders: fresh gates change nothing, trained ones follow their summary; who starts from what."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.models.pair import Gate, GateSpec, Pair, gate_width

_KEY = jax.random.key(3)
_SUMMARY = jnp.asarray(np.random.default_rng(0).normal(2, 3, (40, 6)), jnp.float32)


def random_gate(rank, dropout=0.0) -> tuple[Gate, Any]:
    """A gate of 6 channels whose weights are all random."""
    gate = Gate(GateSpec("pairwise", rank, dropout), 6)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), gate.init(_KEY))
    return gate, params


@pytest.mark.parametrize("kind", ["self", "pairwise", "middle"])
@pytest.mark.parametrize(("rank", "dropout"), [(0, 0.0), (3, 0.0), (3, 0.5)])
def test_a_fresh_gate_is_exactly_1(kind, rank, dropout):
    gate = Gate(GateSpec(kind, rank, dropout), 6)
    params = gate.init(_KEY)
    for key in (None, jax.random.key(1)):
        found = gate(params, _SUMMARY, key)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, np.ones((40, 6)))


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (2, 2), (0, 5)])
def test_the_rank_is_that_of_the_matrix(rank, expected):
    """Of 6 channels the layer norm leaves 5."""
    gate, params = random_gate(rank)
    found = np.asarray(gate(params, _SUMMARY), np.float64)
    assert 0 < found.min() < 0.9
    assert 1.1 < found.max() < 2
    logits = np.log(found / (2 - found))
    values = np.linalg.svd(logits - logits.mean(axis=0), compute_uv=False)
    assert int((values > 1e-3 * values[0]).sum()) == expected


def test_a_gate_by_hand():
    gate, params = random_gate(2)
    x = np.asarray(_SUMMARY, np.float64)
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    z = x @ params["reduce"]["kernel"] @ params["expand"]["kernel"] + params["expand"]["bias"]
    np.testing.assert_allclose(gate(params, _SUMMARY), 2 / (1 + np.exp(-z)), rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_step_makes_a_gate_follow_its_summary(rank):
    gate = Gate(GateSpec("pairwise", rank), 6)
    params = gate.init(_KEY)
    wanted = 1 + 0.3 * jnp.sign(_SUMMARY - 2)

    def loss(params):
        return jnp.mean((gate(params, _SUMMARY) - wanted) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.abs(gradient["expand"]["kernel"]).max() > 0
    trained = jax.tree.map(lambda leaf, slope: leaf - 0.5 * slope, params, gradient)
    assert float(loss(trained)) < float(value)
    assert np.ptp(gate(trained, _SUMMARY), axis=0).min() > 1e-3


def test_dropout_is_for_training_alone():
    gate, params = random_gate(0, dropout=0.5)
    still = [np.asarray(gate(params, _SUMMARY)) for _ in range(2)]
    np.testing.assert_array_equal(still[0], still[1])
    one, same, other = (np.asarray(gate(params, _SUMMARY, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    assert (one != still[0]).any()


@pytest.mark.parametrize(
    ("model", "kind", "after", "width"),
    [
        (Model("resnet50"), "pairwise", 2, 128),
        (Model("resnet50", embedding_dim=0, neck="bnneck"), "self", 2, 2048),
        (Model("small", embedding_dim=0, neck="bnneck"), "pairwise", 2, 128),
        (Model("vit_small14", embedding_dim=0, neck="bnneck"), "pairwise", 2, 384),
        (Model("resnet50"), "middle", 2, 512),
        (Model("resnet50"), "middle", 3, 1024),
        (Model("resnet18"), "middle", 3, 256),
        (Model("small"), "middle", 1, 32),
    ],
)
def test_width_is_that_of_what_is_gated(model, kind, after, width):
    spec = GateSpec(kind, after=after)
    assert gate_width(model, spec) == width
    size = (56, 28) if model.backbone.startswith("vit") else (64, 32)

    def seen() -> Any:
        params, batch_stats = model.init(_KEY, *size)
        images = jnp.zeros((2, *size, 3))
        if kind == "middle":
            return model.lower(params, batch_stats, images, "rgb", spec.part)
        return model.embed(params, batch_stats, images)

    assert jax.eval_shape(seen).shape[-1] == width


@pytest.mark.parametrize(("backbone", "after"), [("resnet50", 4), ("resnet50", 0), ("small", 9)])
def test_a_stage_that_cannot_be_gated_is_named(backbone, after):
    with pytest.raises(InputError, match=rf"gate\.after={after}: {backbone} has stages 1 \.\. 4, .* choose 1 \.\. 3"):
        gate_width(Model(backbone), GateSpec("middle", after=after))


def test_networks_that_make_no_pair_are_refused():
    with pytest.raises(InputError, match=r"model\.own_parts must be 0 in stage pair"):
        Pair(Model("small", own_parts=1), GateSpec())
    with pytest.raises(InputError, match="a gate of kind 'middle' needs a ResNet, not vit_small14; choose pairwise"):
        Pair(Model("vit_small14"), GateSpec("middle"))


def encoders_of(model, classified):
    """Two encoders, of whom some have a classifier."""
    found = {}
    for index, name in enumerate(("rgb", "depth")):
        params, batch_stats = model.init(jax.random.key(index), 16, 8)
        kept = {path: leaf for path, leaf in params.items() if path != "classifier" or name in classified}
        found[name] = kept, batch_stats
    return found


@pytest.mark.parametrize("kind", ["none", "self", "pairwise", "middle"])
@pytest.mark.parametrize(("classified", "taken"), [(("rgb", "depth"), "depth"), (("rgb",), "rgb"), ((), None)])
def test_a_pair_starts_from_its_encoders(tiny_model, kind, classified, taken):
    encoders = encoders_of(tiny_model, classified)
    pair = Pair(tiny_model.without_classifier(), GateSpec(kind, rank=2, after=1), num_identities=4)
    params, batch_stats = pair.init(encoders, _KEY)
    gates = set() if kind == "none" else {"gate_rgb", "gate_depth"}
    assert set(params) == {"rgb", "depth", "classifier"} | gates
    for name in ("rgb", "depth"):
        expected = {path: leaf for path, leaf in encoders[name][0].items() if path != "classifier"}
        assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), params[name], expected))
        assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), batch_stats[name], encoders[name][1]))
    for name in gates:
        assert params[name]["expand"]["kernel"].shape == (2, 4 if kind == "middle" else 8)
    if taken:
        np.testing.assert_array_equal(params["classifier"]["kernel"], encoders[taken][0]["classifier"]["kernel"])
    else:
        assert params["classifier"]["kernel"].shape == (8, 4)
        assert 0.0003 < np.std(params["classifier"]["kernel"]) < 0.003
        np.testing.assert_array_equal(params["classifier"]["bias"], 0.0)
    alone, _ = dataclasses.replace(pair, num_identities=None).init(encoders, _KEY)
    assert set(alone) == {"rgb", "depth"} | gates


def test_the_two_gates_start_apart(tiny_model):
    pair = Pair(tiny_model.without_classifier(), GateSpec("pairwise", rank=2))
    params, _ = pair.init(encoders_of(tiny_model, ()), _KEY)
    assert (np.asarray(params["gate_rgb"]["reduce"]["kernel"]) != params["gate_depth"]["reduce"]["kernel"]).any()


def test_a_fresh_classifier_has_a_bias_where_the_networks_has_one(tiny_model):
    neck = dataclasses.replace(tiny_model, neck="bnneck")
    params, _ = Pair(neck.without_classifier(), GateSpec(), num_identities=4).init(encoders_of(neck, ()), _KEY)
    assert set(params["classifier"]) == {"kernel"}
