"""Losses over pairs against loops in float64, hand numbers, finite differences, poor batches and eight devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import batch_sharding
from rgbd_reid_jax.losses.metric import METRIC_LOSSES, NEED_BOTH_MODALITIES

_NAMES = sorted(METRIC_LOSSES)
_LOSSES = {name: jax.jit(jax.value_and_grad(loss, has_aux=True)) for name, loss in METRIC_LOSSES.items()}


def log1p_exp(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def anchors_of(identity, modality, cross_modal):
    """(anchor, its positives, its negatives) of every row that has both."""
    for a in range(len(identity)):
        rows = [b for b in range(len(identity)) if b != a and (not cross_modal or modality[a] != modality[b])]
        positives = [b for b in rows if identity[a] == identity[b]]
        negatives = [b for b in rows if identity[a] != identity[b]]
        if positives and negatives:
            yield a, positives, negatives


def mean_of(terms):
    return np.mean(terms, axis=0) if len(terms) else np.zeros(4)


def triplet(feature, identity, modality, paced, cross_modal=False, margin=0.5, weighted=False):
    def mean(distances, sign):
        weight = np.exp(sign * distances)
        return (weight * distances).sum() / weight.sum()

    terms = []
    for a, positives, negatives in anchors_of(identity, modality, cross_modal):
        to_positive = np.linalg.norm(feature[positives] - feature[a], axis=1)
        to_negative = np.linalg.norm(feature[negatives] - feature[a], axis=1)
        far, near = (
            (mean(to_positive, 1), mean(to_negative, -1)) if weighted else (to_positive.max(), to_negative.min())
        )
        each = log1p_exp(far - near) if margin is None else max(0.0, margin + far - near)
        terms.append((each, far, near, far - near + (margin or 0) > 0))
    loss, far, near, active = mean_of(terms)
    return loss, {"positive": far, "negative": near, "active": active, "anchors": len(terms) / len(identity)}


def circle(feature, identity, modality, paced, cross_modal=False, margin=0.25, scale=128.0):
    unit, fixed = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (feature, paced))
    terms = []
    for a, positives, negatives in anchors_of(identity, modality, cross_modal):
        total = sum(
            math.exp(scale * max(0, fixed[a] @ fixed[n] + margin) * (unit[a] @ unit[n] - margin)) for n in negatives
        ) * sum(
            math.exp(-scale * max(0, 1 + margin - fixed[a] @ fixed[p]) * (unit[a] @ unit[p] - 1 + margin))
            for p in positives
        )
        cosines = unit @ unit[a]
        terms.append((math.log1p(total), cosines[positives].min(), cosines[negatives].max(), 0))
    loss, positive, negative, _ = mean_of(terms)
    return loss, {"positive_cosine": positive, "negative_cosine": negative, "anchors": len(terms) / len(identity)}


def centres_of(feature, identity, modality):
    keys = sorted(set(zip(identity.tolist(), modality.tolist(), strict=True)))
    return {key: feature[(identity == key[0]) & (modality == key[1])].mean(axis=0) for key in keys}


def hetero_centre(feature, identity, modality, paced):
    centres = centres_of(feature, identity, modality)
    people = sorted(set(identity.tolist()))
    apart = [
        np.linalg.norm(centres[one, 0] - centres[one, 1]) for one in people if {(one, 0), (one, 1)} <= set(centres)
    ]
    figures = {"centre_distance": np.mean(apart or [0]), "people": len(apart) / len(people)}
    return np.mean(np.square(apart or [0])), figures


def hetero_centre_triplet(feature, identity, modality, paced, margin=0.3):
    centres = centres_of(feature, identity, modality)
    terms, rows = [], 0
    for (person, side), centre in centres.items():
        positives = [c for (p, m), c in centres.items() if p == person and m != side]
        negatives = [c for (p, _), c in centres.items() if p != person]
        if positives and negatives:
            far = np.linalg.norm(positives[0] - centre)
            near = min(np.linalg.norm(one - centre) for one in negatives)
            terms.append((max(0.0, margin + far - near), far, near, margin + far - near > 0))
            rows += ((identity == person) & (modality == side)).sum()
    loss, far, near, active = mean_of(terms)
    return loss, {"positive": far, "negative": near, "active": active, "anchors": rows / len(identity)}


REFERENCES = {
    "triplet": (triplet, {}),
    "soft_triplet": (triplet, {"margin": None}),
    "weighted_triplet": (triplet, {"margin": None, "weighted": True}),
    "circle": (circle, {}),
    "cross_modal_triplet": (triplet, {"cross_modal": True}),
    "cross_modal_soft_triplet": (triplet, {"cross_modal": True, "margin": None}),
    "cross_modal_weighted_triplet": (triplet, {"cross_modal": True, "margin": None, "weighted": True}),
    "cross_modal_circle": (circle, {"cross_modal": True}),
    "hetero_centre": (hetero_centre, {}),
    "hetero_centre_triplet": (hetero_centre_triplet, {}),
}


def reference(name, feature, identity, modality, paced=None):
    function, options = REFERENCES[name]
    feature = feature.astype(np.float64)
    return function(feature, identity, modality, feature if paced is None else paced, **options)


def check(name, feature, identity, modality):
    (loss, figures), gradient = _LOSSES[name](feature, identity, modality)
    expected, expected_figures = reference(name, feature, identity, modality)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert {key: float(value) for key, value in figures.items()} == pytest.approx(expected_figures, rel=1e-4, abs=1e-6)
    return np.asarray(gradient)


@pytest.fixture(scope="module")
def batch():
    """People with 4, 3, 2, 2, 2, 2 and 1 rows; person 4 has depth alone, persons 9 and 2 RGB alone."""
    feature = np.random.default_rng(3).normal(0, 1, (16, 5)).astype(np.float32)
    identity = np.array([3, 8, 3, 6, 3, 8, 6, 4, 1, 4, 9, 8, 1, 3, 9, 2], np.int32)
    modality = np.array([0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0], np.int32)
    return feature, identity, modality


def test_every_loss_has_a_reference():
    assert sorted(REFERENCES) == _NAMES
    assert {name for name in _NAMES if name.startswith(("cross_modal_", "hetero_"))} == NEED_BOTH_MODALITIES


@pytest.mark.parametrize("name", _NAMES)
def test_loss_and_figures_equal_a_loop(name, batch):
    check(name, *batch)


@pytest.mark.parametrize("name", _NAMES)
def test_gradient_equals_finite_differences(name, batch):
    feature, identity, modality = batch
    gradient = check(name, *batch)
    exact = feature.astype(np.float64)
    largest = float(np.abs(gradient).max())
    assert largest > 1e-3
    for row in range(16):
        step = np.zeros(exact.shape)
        step[row, row % 5] = 1e-6
        ahead, behind = (reference(name, exact + sign * step, identity, modality, exact)[0] for sign in (1, -1))
        assert float(gradient[row, row % 5]) == pytest.approx((ahead - behind) / 2e-6, rel=1e-3, abs=1e-4 * largest)


@pytest.mark.parametrize("name", sorted(set(_NAMES) - NEED_BOTH_MODALITIES))
def test_mixed_losses_do_not_look_at_modalities(name, batch):
    feature, identity, modality = batch
    (loss, _), _ = _LOSSES[name](feature, identity, modality)
    (alone, _), _ = _LOSSES[name](feature, identity)
    assert float(alone) == float(loss)


@pytest.mark.parametrize("name", sorted(NEED_BOTH_MODALITIES))
def test_cross_modal_losses_say_that_they_need_modalities(name, batch):
    with pytest.raises(InputError, match="needs batches of both modalities; choose"):
        METRIC_LOSSES[name](batch[0], batch[1], None)


def by_hand(name, feature, identity, modality=None, **options):
    rows = jnp.asarray(feature, jnp.float32)
    rows = rows if rows.ndim == 2 else rows[:, None]
    sides = None if modality is None else jnp.asarray(modality)
    loss, figures = jax.jit(partial(METRIC_LOSSES[name], **options))(rows, jnp.asarray(identity), sides)
    return float(loss), {key: round(float(value), 5) for key, value in figures.items()}


def test_triplet_by_hand():
    # Farthest positives 1 1 4 4, nearest negatives 3 2 2 6: only the third triplet is active, by 2.5.
    loss, figures = by_hand("triplet", [0, 1, 3, 7], [0, 0, 1, 1])
    assert loss == pytest.approx(0.625)
    assert figures == {"positive": 2.5, "negative": 3.25, "active": 0.25, "anchors": 1.0}
    assert by_hand("triplet", [0, 1, 3, 7], [0, 0, 1, 1], margin=1.5)[0] == pytest.approx((0.5 + 3.5) / 4)
    softened = sum(math.log1p(math.exp(x)) for x in (-2, -1, 2, -2)) / 4
    assert by_hand("soft_triplet", [0, 1, 3, 7], [0, 0, 1, 1])[0] == pytest.approx(softened)


def test_cross_modal_triplet_by_hand():
    # Row 0 is RGB: its positive is row 2 (5), its negative row 4 (6), nearer ones of its own modality do not count.
    feature, identity, modality = [0, 1, 5, 2, 6], [0, 0, 0, 1, 1], [0, 0, 1, 0, 1]
    # Farthest positives 5 4 5 4 4, nearest negatives 6 5 3 3 5.
    loss, figures = by_hand("cross_modal_triplet", feature, identity, modality, margin=1.0)
    assert loss == pytest.approx((0 + 0 + 3 + 2 + 0) / 5)
    assert figures == {"positive": 4.4, "negative": 4.4, "active": 0.4, "anchors": 1.0}


def test_weighted_triplet_by_hand():
    # One positive each; of the negatives of row 0, at 3 and 4, the nearer weighs e times as much as the other.
    loss, _ = by_hand("weighted_triplet", [0, 1, 3, 4], [0, 0, 1, 1])
    outer, inner = (3 * math.e + 4) / (math.e + 1), (2 * math.e + 3) / (math.e + 1)
    assert loss == pytest.approx((math.log1p(math.exp(1 - outer)) + math.log1p(math.exp(1 - inner))) / 2, rel=1e-5)


def test_circle_by_hand():
    # Cosines 1 with the positive, 0 with two negatives: log(1 + 2 exp(-8/16) exp(-8/16)).
    loss, figures = by_hand("circle", [[9, 0], [5, 0], [0, 8], [0, 4]], [0, 0, 1, 1], scale=8.0)
    assert loss == pytest.approx(math.log1p(2 * math.exp(-1)), rel=1e-5)
    assert figures == {"positive_cosine": 1.0, "negative_cosine": 0.0, "anchors": 1.0}


def test_hetero_centre_by_hand():
    # Person 0: centres (1, 0) and (1, 3); person 1: (0, 0) and (0, 1); person 2 has one modality.
    feature = [[0, 0], [2, 0], [1, 3], [0, 0], [0, 1], [9, 9]]
    loss, figures = by_hand("hetero_centre", feature, [0, 0, 0, 1, 1, 2], [0, 0, 1, 0, 1, 0])
    assert loss == pytest.approx((9 + 1) / 2)
    assert figures == {"centre_distance": 2.0, "people": round(2 / 3, 5)}


def test_hetero_centre_triplet_by_hand():
    # Centres 1, 4 and 10, 8: positives 3 3 2 2, nearest negatives 7 4 6 4.
    loss, figures = by_hand("hetero_centre_triplet", [0, 2, 4, 10, 8], [0, 0, 0, 1, 1], [0, 0, 1, 0, 1], margin=1.5)
    assert loss == pytest.approx(0.5 / 4)
    assert figures == {"positive": 2.5, "negative": 5.25, "active": 0.25, "anchors": 1.0}


_ROWS = np.arange(16, dtype=np.int32)  # one shape of batch all over: each loss is compiled once
_POOR = {
    "one person": (_ROWS * 0, _ROWS % 2),
    "no two rows of one person": (_ROWS, _ROWS % 2),
    "one modality": (_ROWS // 2, _ROWS * 0),
    "each person in one modality": (_ROWS // 2, _ROWS // 8),
    "two people, one modality each": (_ROWS // 8, _ROWS // 8),
}


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("case", sorted(_POOR))
def test_anchors_without_positives_or_negatives_are_left_out(name, case):
    identity, modality = _POOR[case]
    feature = np.random.default_rng(5).normal(0, 1, (16, 5)).astype(np.float32)
    gradient = check(name, feature, identity, modality)
    assert np.isfinite(gradient).all()
    (loss, figures), _ = _LOSSES[name](feature, identity, modality)
    if figures.get("anchors", figures.get("people")) == 0:
        assert float(loss) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)
    elif name != "hetero_centre":  # a single person has centres, but no negatives
        assert case in ("one modality", "each person in one modality", "two people, one modality each")


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("identity", [_ROWS // 4, 0 * _ROWS], ids=["people", "one person"])
def test_awkward_rows_give_finite_values_and_gradients(name, dtype, identity):
    random = np.random.default_rng(6)
    modality = _ROWS % 2
    rows = random.normal(0, 2, (16, 5)).astype(np.float32)
    twins = rows.copy()
    twins[1], twins[4] = twins[0], twins[2]  # a positive and a negative at distance 0
    zero_row = rows.copy()
    zero_row[3] = 0
    cases = [np.ones_like(rows), np.zeros_like(rows), twins, zero_row, rows * 1e-20, rows * 1e6]
    for feature in cases:
        (loss, figures), gradient = _LOSSES[name](jnp.asarray(feature, dtype), identity, modality)
        assert loss.dtype == jnp.float32
        assert np.isfinite([float(loss), *map(float, figures.values())]).all()
        assert gradient.dtype == dtype
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("name", _NAMES)
def test_bfloat16_features_are_compared_in_float32(name, batch):
    feature = jnp.asarray(batch[0], jnp.bfloat16)
    (loss, _), _ = _LOSSES[name](feature, *batch[1:])
    (expected, _), _ = _LOSSES[name](feature.astype(jnp.float32), *batch[1:])
    assert float(loss) == float(expected)


@pytest.mark.parametrize("name", _NAMES)
def test_nan_is_not_hidden(name, batch):
    feature = batch[0].copy()
    feature[0, 0] = np.nan
    assert np.isnan(float(_LOSSES[name](feature, *batch[1:])[0][0]))


@pytest.mark.parametrize("name", _NAMES)
def test_batch_is_global_on_eight_devices(name, batch, mesh_of):
    # Two rows per device: no device alone has a triplet, and the loops above saw the whole batch.
    on_one = _LOSSES[name](*batch)
    on_eight = _LOSSES[name](*(jax.device_put(one, batch_sharding(mesh_of(8))) for one in batch))
    assert len(on_eight[1].sharding.device_set) == 8
    for one, eight in zip(jax.tree.leaves(on_one), jax.tree.leaves(on_eight), strict=True):
        np.testing.assert_allclose(np.asarray(eight), np.asarray(one), rtol=1e-5, atol=1e-6)
