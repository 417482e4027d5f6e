"""The weighted sum against the single losses: which views they get, which options, and what is never computed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.losses import weighted
from rgbd_reid_jax.losses.distillation import (
    DISTILLATION_LOSSES,
    bank_similarity,
    contrastive,
    logits_divergence,
    map_error,
    mean_cosine,
)
from rgbd_reid_jax.losses.gated import PAIR_LOSSES, pair_softmax, pair_triplet
from rgbd_reid_jax.losses.identity import accuracy, identity_loss
from rgbd_reid_jax.losses.metric import METRIC_LOSSES
from rgbd_reid_jax.losses.weighted import LOSSES, LossOptions, Views, weighted_loss

_OPTIONS = LossOptions(0.1, 0.7, 0.3, 16.0, 0.5, 2.0)
_IDENTITY = np.array([0, 0, 1, 1, 2, 2], np.int32)
_IN_TURN = np.repeat(_IDENTITY, 2), np.tile(np.arange(2, dtype=np.int32), 6)


@pytest.fixture(scope="module")
def views() -> Any:
    """All there is of six rows of both modalities, three people."""
    random = np.random.default_rng(0)

    def rows(*shape):
        return jnp.asarray(random.normal(0, 1, shape), jnp.float32)

    return Views(
        jnp.asarray(_IDENTITY),
        feature=rows(12, 5),
        logits=rows(12, 3),
        both=True,
        twins=(rows(6, 5), rows(6, 5)),
        twin_logits=(rows(6, 3), rows(6, 3)),
        squared=rows(6, 6) ** 2,
        bank=rows(20, 5),
        maps=([rows(6, 3, 2, 4)], [rows(6, 3, 2, 4)]),
    )


def value_of(weights, views, options=_OPTIONS):
    """The sum and its figures, operation by operation: what one call compiled serves the next."""
    return jax.device_get(weighted_loss(weights, options, views))


def alone(name, views):
    """One loss, called directly with the options that it should get."""
    if name == "identity":
        return identity_loss(views.logits, jnp.asarray(_IN_TURN[0]), 0.1)
    if name == "logits":
        own, other = views.twin_logits
        return logits_divergence(own, other, 2.0)
    if name == "bank_similarity":
        own, other = views.twins
        return bank_similarity(own, other, views.bank, temperature=0.5)
    if name == "maps":
        return map_error(*views.maps)
    if name in PAIR_LOSSES:
        options = {"pair_triplet": {"margin": 0.7}, "pair_softmax": {"temperature": 0.5}}[name]
        return PAIR_LOSSES[name](views.squared, views.identity, **options)[0]
    if name in DISTILLATION_LOSSES:
        options = {"temperature": 0.5} if name == "contrastive" else {}
        return DISTILLATION_LOSSES[name](*views.twins, views.identity, **options)
    options = {"margin": 0.7}
    if name.removeprefix("cross_modal_") in ("soft_triplet", "weighted_triplet", "hetero_centre"):
        options = {}
    if name.endswith("circle"):
        options = {"margin": 0.3, "scale": 16.0}
    return METRIC_LOSSES[name](views.feature, *(jnp.asarray(one) for one in _IN_TURN), **options)[0]


@pytest.fixture(scope="module")
def every(views):
    """(the sum of all losses with weights 1, 2, 3, ..., its figures, the losses one by one)."""
    weights = {name: index + 1.0 for index, name in enumerate(LOSSES)}
    total, figures = value_of(weights, views)
    single = jax.device_get({name: alone(name, views) for name in LOSSES})
    return weights, total, figures, single


def test_the_sum_is_that_of_the_single_losses_times_their_weights(every):
    weights, total, figures, single = every
    for name in LOSSES:
        assert float(figures[name]) == pytest.approx(float(single[name]), rel=1e-5, abs=1e-6), name
    assert float(total) == pytest.approx(sum(weight * single[name] for name, weight in weights.items()), rel=1e-5)


def test_figures_are_named_after_their_loss(every, views):
    figures = every[2]
    own = set(figures) - set(LOSSES)
    assert {name for name in own if "/" not in name} == {"accuracy", "twin_cosine"}
    assert {name.split("/")[0] for name in own - {"accuracy", "twin_cosine"}} == set(METRIC_LOSSES) | set(PAIR_LOSSES)
    assert {"triplet/positive", "pair_softmax/share", "hetero_centre/people", "pair_triplet/active"} <= own
    labels = jnp.asarray(_IN_TURN[0])
    assert float(figures["accuracy"]) == pytest.approx(float(accuracy(views.logits, labels)))
    assert float(figures["twin_cosine"]) == pytest.approx(float(mean_cosine(*views.twins)), rel=1e-5)


def test_a_single_loss_has_no_figure_of_its_own_name(views):
    total, figures = value_of({"triplet": 2.0, "identity": 0.0}, dataclasses.replace(views, twins=None, logits=None))
    assert {name.split("/")[0] for name in figures} == {"triplet"}
    assert float(total) == pytest.approx(2.0 * float(alone("triplet", views)), rel=1e-5)


def test_losses_of_weight_0_are_not_computed(views):
    """Nothing that they would look at is there."""
    empty = Views(views.identity, twins=views.twins)
    weights = {**dict.fromkeys(LOSSES, 0.0), "mean_squared": 1.0}
    total, figures = value_of(weights, empty)
    assert set(figures) == {"twin_cosine"}
    assert float(total) == pytest.approx(float(DISTILLATION_LOSSES["mean_squared"](*views.twins)), rel=1e-6)
    assert weighted.used(weights) == {"mean_squared": 1.0}


@pytest.mark.parametrize(
    ("name", "option", "changed"),
    [
        ("identity", "smoothing", 0.4),
        ("triplet", "margin", 5.0),
        ("cross_modal_triplet", "margin", 5.0),
        ("hetero_centre_triplet", "margin", 5.0),
        ("pair_triplet", "margin", 5.0),
        ("circle", "circle_margin", 0.6),
        ("cross_modal_circle", "circle_scale", 4.0),
        ("contrastive", "temperature", 2.0),
        ("bank_similarity", "temperature", 2.0),
        ("pair_softmax", "temperature", 2.0),
        ("logits", "logits_temperature", 9.0),
    ],
)
def test_an_option_changes_its_losses_alone(views, every, name, option, changed):
    options = dataclasses.replace(_OPTIONS, **{option: changed})
    before, after = every[2], value_of(every[0], views, options)[1]
    differs = {one for one in LOSSES if float(before[one]) != pytest.approx(float(after[one]), rel=1e-4)}
    assert name in differs
    sharing = {
        "smoothing": {"identity"},
        "margin": {"triplet", "cross_modal_triplet", "hetero_centre_triplet", "pair_triplet"},
        "circle_margin": {"circle", "cross_modal_circle"},
        "circle_scale": {"circle", "cross_modal_circle"},
        "temperature": {"contrastive", "bank_similarity", "pair_softmax"},
        "logits_temperature": {"logits"},
    }
    assert differs <= sharing[option]


def test_the_default_margin_of_pair_triplet_is_that_of_the_options(views):
    expected = pair_triplet(views.squared, views.identity, margin=0.5)[0]
    assert float(value_of({"pair_triplet": 1.0}, views, LossOptions())[0]) == pytest.approx(float(expected), rel=1e-6)
    expected = pair_softmax(views.squared, views.identity, temperature=0.1)[0]
    assert float(value_of({"pair_softmax": 1.0}, views, LossOptions())[0]) == pytest.approx(float(expected), rel=1e-6)
    student, target = views.twins
    expected = contrastive(student, target, views.identity, temperature=0.1)
    assert float(value_of({"contrastive": 1.0}, views, LossOptions())[0]) == pytest.approx(float(expected), rel=1e-6)


def test_logits_go_both_ways_where_both_learn(views):
    own, other = views.twin_logits
    there, back = float(logits_divergence(own, other, 2.0)), float(logits_divergence(other, own, 2.0))
    assert there != pytest.approx(back, rel=1e-3)
    one_way = value_of({"logits": 1.0}, views)[0]
    both_ways = value_of({"logits": 1.0}, dataclasses.replace(views, symmetric=True))[0]
    exchanged = value_of({"logits": 1.0}, dataclasses.replace(views, symmetric=True, twin_logits=(other, own)))[0]
    assert float(one_way) == pytest.approx(there, rel=1e-5)
    assert float(both_ways) == pytest.approx((there + back) / 2, rel=1e-5)
    assert float(exchanged) == pytest.approx(float(both_ways), rel=1e-5)

    def loss(own):
        return value_of({"logits": 1.0}, dataclasses.replace(views, symmetric=True, twin_logits=(own, other)))[0]

    slope = jax.grad(lambda own: logits_divergence(own, other, 2.0))(own)
    np.testing.assert_allclose(jax.grad(loss)(own), slope / 2, atol=1e-6)  # the other one's target pulls nothing


def test_rows_of_one_modality_have_their_own_identities(views):
    one: Any = Views(views.identity, feature=views.feature[:6], logits=views.logits[:6])
    found = value_of({"identity": 1.0, "triplet": 1.0}, one)[1]
    expected = identity_loss(one.logits, one.identity, 0.1)
    assert float(found["identity"]) == pytest.approx(float(expected), rel=1e-5)
    expected = METRIC_LOSSES["triplet"](one.feature, one.identity, None, margin=0.7)[0]
    assert float(found["triplet"]) == pytest.approx(float(expected), rel=1e-5)


def test_one_of_two_modalities_may_be_classified_alone(views):
    """A student's logits beside rows of both modalities for metric losses."""
    student: Any = dataclasses.replace(views, logits=views.logits[:6])
    found = value_of({"identity": 1.0, "triplet": 1.0}, student)[1]
    assert float(found["identity"]) == pytest.approx(
        float(identity_loss(student.logits, student.identity, 0.1)), rel=1e-5
    )
    assert float(found["triplet"]) == pytest.approx(float(alone("triplet", views)), rel=1e-5)
