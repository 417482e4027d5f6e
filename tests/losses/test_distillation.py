"""Distillation losses against loops in float64, hand numbers, finite differences, and the rows that break them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.core.mesh import batch_sharding
from rgbd_reid_jax.losses.distillation import (
    DISTILLATION_LOSSES,
    bank_similarity,
    contrastive,
    logits_divergence,
    map_error,
    mean_cosine,
)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def huber(x):
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def relational_distance(s, t, identity):
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if i != j]
    one, other = (np.array([np.linalg.norm(side[i] - side[j]) for i, j in pairs]) for side in (s, t))
    return np.mean([huber(x) for x in one / one.mean() - other / other.mean()])


def relational_angle(s, t, identity):
    def cosine(side, i, j, k):
        return unit(side[i] - side[j]) @ unit(side[k] - side[j])

    count = range(len(s))
    triples = [(i, j, k) for i in count for j in count for k in count if len({i, j, k}) == 3]
    return np.mean([huber(cosine(s, *triple) - cosine(t, *triple)) for triple in triples])


def info_nce(s, t, identity, temperature=0.1):
    cosines, count, total = unit(s) @ unit(t).T, range(len(s)), 0.0
    for i in count:
        others = [j for j in count if (j != i if identity is None else identity[j] != identity[i])]
        for row in (cosines[i], cosines[:, i]):
            negatives = sum(math.exp(row[j] / temperature) for j in others)
            total -= math.log(math.exp(row[i] / temperature) / (math.exp(row[i] / temperature) + negatives))
    return total / (2 * len(s))


REFERENCES = {
    "sum_squared": lambda s, t, identity: ((s - t) ** 2).sum(),
    "mean_squared": lambda s, t, identity: ((s - t) ** 2).mean(),
    "normalised_squared": lambda s, t, identity: (2 - 2 * (unit(s) * unit(t)).sum(axis=1)).mean(),
    "cosine": lambda s, t, identity: (1 - (unit(s) * unit(t)).sum(axis=1)).mean(),
    "relational_distance": relational_distance,
    "relational_angle": relational_angle,
    "contrastive": info_nce,
}
_NAMES = sorted(REFERENCES)
# With a row of zeros in the bank.
_BANK = np.concatenate([np.random.default_rng(6).normal(1, 2, (9, 4)), np.zeros((1, 4))]).astype(np.float32)
_EVERY = {
    **DISTILLATION_LOSSES,
    "bank_similarity": lambda student, target, _: bank_similarity(student, target, jnp.asarray(_BANK)),
    "logits": lambda student, target, _: logits_divergence(student, target),
    "maps": lambda student, target, _: map_error([student[:, None, None]], [target[:, None, None]]),
}
_VALUE_AND_GRADIENT = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in _EVERY.items()}


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(0)
    return random.normal(0, 2, (8, 4)).astype(np.float32), random.normal(0, 2, (8, 4)).astype(np.float32)


_IDENTITY = np.array([5, 2, 5, 0, 2, 5, 7, 0], np.int32)


def test_every_loss_has_a_reference():
    assert sorted(DISTILLATION_LOSSES) == _NAMES


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("identity", [None, _IDENTITY], ids=["anonymous", "identities"])
def test_loss_and_gradient_equal_a_loop_and_finite_differences(pair, name, identity):
    student, target = (one.astype(np.float64) for one in pair)
    value, gradient = _VALUE_AND_GRADIENT[name](*pair, identity)
    assert float(value) == pytest.approx(REFERENCES[name](student, target, identity), rel=1e-4)
    for row in range(8):
        step = np.zeros(student.shape)
        step[row, row % 4] = 1e-5
        ahead, behind = (REFERENCES[name](student + sign * step, target, identity) for sign in (1, -1))
        assert float(gradient[row, row % 4]) == pytest.approx((ahead - behind) / 2e-5, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"), [("sum_squared", 14.0), ("mean_squared", 3.5), ("normalised_squared", 1.2), ("cosine", 0.6)]
)
def test_by_hand(name, expected):
    student = jnp.asarray([[3.0, 4.0], [0.0, 2.0]])
    target = jnp.asarray([[0.0, 5.0], [2.0, 2.0]])
    # Differences (3, -1) and (-2, 0).
    if name in ("normalised_squared", "cosine"):
        target = jnp.asarray([[0.0, 5.0], [1.0, 0.0]])  # cosines 0.8 and 0
    assert float(DISTILLATION_LOSSES[name](student, target)) == pytest.approx(expected, rel=1e-5)


def test_relations_by_hand():
    # Distances 3, 4, 5 and 6, 6, 0 over their means: 0.75, 1, 1.25 against 1.5, 1.5, 0; the last differs by over 1.
    student, target = jnp.asarray([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), jnp.asarray([[0.0], [6.0], [6.0]])
    huber_sum = 0.75**2 / 2 + 0.5**2 / 2 + (1.25 - 0.5)
    assert float(DISTILLATION_LOSSES["relational_distance"](student, target)) == pytest.approx(huber_sum / 3, rel=1e-5)
    # Cosines at the rows 0, 3/5, 4/5 against -1, 1, 1 on a line.
    line = jnp.asarray([[0.0], [6.0], [-2.0]])
    huber_sum = 1.0**2 / 2 + 0.4**2 / 2 + 0.2**2 / 2
    assert float(DISTILLATION_LOSSES["relational_angle"](student, line)) == pytest.approx(huber_sum / 3, rel=1e-5)


def test_contrastive_by_hand():
    # Rows 0 and 1 are one person: the cosines between them, 0.6, count as nothing; with row 2 all cosines are 0.
    student = jnp.asarray([[5.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    loss = contrastive(student, student, jnp.asarray([4, 4, 1]), temperature=0.5)
    assert float(loss) == pytest.approx((2 * math.log1p(math.exp(-2)) + math.log1p(2 * math.exp(-2))) / 3, rel=1e-5)
    assert float(contrastive(student, student, jnp.zeros(3, jnp.int32))) == 0.0


@pytest.mark.parametrize("name", sorted(_EVERY))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("identity", [_IDENTITY, 0 * _IDENTITY], ids=["people", "one person"])
def test_awkward_rows_give_finite_values_and_gradients(pair, name, dtype, identity):
    zero, ones = np.zeros_like(pair[0]), np.ones_like(pair[0])
    zero_row = pair[0].copy()
    zero_row[:2] = 0
    cases = [(zero, pair[1]), (pair[0], zero), (zero, zero), (ones, pair[1]), (ones, ones), (zero_row, pair[1])]
    cases += [tuple(one * scale for one in pair) for scale in (1e-20, 1e-8, 1e6)] + [(pair[0], pair[0])]
    for student, target in cases:
        value, gradient = _VALUE_AND_GRADIENT[name](*(jnp.asarray(one, dtype) for one in (student, target)), identity)
        assert value.dtype == jnp.float32
        assert gradient.dtype == dtype
        assert np.isfinite(float(value))
        assert np.isfinite(np.asarray(gradient, np.float32)).all()
    if name != "contrastive" or not identity.any():  # of equal embeddings, the last case
        assert float(value) == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(np.asarray(gradient, np.float32), 0.0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(_EVERY))
def test_bfloat16_is_compared_in_float32(pair, name):
    student, target = (jnp.asarray(one, jnp.bfloat16) for one in pair)
    value, gradient = _VALUE_AND_GRADIENT[name](student, target, _IDENTITY)
    expected, slopes = _VALUE_AND_GRADIENT[name](*(one.astype(jnp.float32) for one in (student, target)), _IDENTITY)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    scale = float(jnp.abs(slopes).max())
    np.testing.assert_allclose(np.asarray(gradient, np.float32), slopes, rtol=0.01, atol=1e-3 * scale)


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("rows", [1, 2])
def test_batches_too_small_for_relations_are_finite(pair, name, rows):
    student, target = (jnp.asarray(one[:rows]) for one in pair)
    value, gradient = _VALUE_AND_GRADIENT[name](student, target, None)
    assert np.isfinite(float(value))
    assert np.isfinite(np.asarray(gradient)).all()
    if (name, rows) in {
        ("relational_distance", 1),
        ("relational_angle", 1),
        ("relational_angle", 2),
        ("contrastive", 1),
    }:
        assert float(value) == 0.0
        np.testing.assert_array_equal(np.asarray(gradient), 0.0)


@pytest.mark.parametrize("name", sorted(_EVERY))
def test_nan_is_not_hidden(pair, name):
    student = pair[0].copy()
    student[3, 1] = np.nan
    assert np.isnan(float(_VALUE_AND_GRADIENT[name](student, pair[1], _IDENTITY)[0]))


@pytest.mark.parametrize("name", sorted(_EVERY))
def test_batch_is_global_on_eight_devices(pair, name, mesh_of):
    value, gradient = _VALUE_AND_GRADIENT[name](*pair, _IDENTITY)
    shards = (jax.device_put(one, batch_sharding(mesh_of(8))) for one in (*pair, _IDENTITY))
    found, slopes = _VALUE_AND_GRADIENT[name](*shards)
    assert len(slopes.sharding.device_set) == 8
    assert float(found) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(np.asarray(slopes), np.asarray(gradient), rtol=1e-5, atol=1e-6)


def test_directions_do_not_depend_on_length(pair):
    student, target = pair
    for name in ("normalised_squared", "cosine", "contrastive"):
        loss = _VALUE_AND_GRADIENT[name]
        found = float(loss(7 * student, target / 3, _IDENTITY)[0])
        assert found == pytest.approx(float(loss(student, target, _IDENTITY)[0]), rel=1e-4)
    assert float(_VALUE_AND_GRADIENT["normalised_squared"](-student, student, None)[0]) == pytest.approx(4.0, rel=1e-5)


def test_relations_do_not_depend_on_place_size_or_turn(pair):
    student, target = pair
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))[0].astype(np.float32)
    moved = (3 * student @ turn + 5).astype(np.float32)
    for name in ("relational_distance", "relational_angle"):
        loss = _VALUE_AND_GRADIENT[name]
        assert float(loss(moved, target, None)[0]) == pytest.approx(float(loss(student, target, None)[0]), rel=1e-4)
        assert float(loss(moved, student, None)[0]) == pytest.approx(0.0, abs=1e-6)


def test_bank_similarity_equals_a_loop_and_finite_differences(pair):
    bank = np.random.default_rng(6).normal(1, 2, (9, 4))
    student, target = (one.astype(np.float64) for one in pair)

    def reference(student):
        def shares(row):
            weights = np.exp([unit(row[None])[0] @ unit(item[None])[0] / 0.5 for item in bank])
            return weights / weights.sum()

        return np.mean([shares(t) @ np.log(shares(t) / shares(s)) for s, t in zip(student, target, strict=True)])

    loss = jax.jit(
        jax.value_and_grad(lambda student: bank_similarity(student, pair[1], jnp.asarray(bank), temperature=0.5))
    )
    value, slopes = loss(pair[0])
    assert float(value) == pytest.approx(reference(student), rel=1e-4)
    for place in ((0, 0), (3, 2), (5, 1)):
        step = np.zeros_like(student)
        step[place] = 1e-5
        slope = (reference(student + step) - reference(student - step)) / 2e-5
        assert float(slopes[place]) == pytest.approx(slope, rel=1e-3, abs=1e-6)
    assert float(loss(pair[1])[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(loss(3 * pair[1])[0]) == pytest.approx(0.0, abs=1e-6)  # directions alone count


def test_logits_divergence_by_hand():
    # At temperature 2 the odds 9 : 1 become 3 : 1, and 1 : 1 stays.
    student, target = jnp.asarray([[0.0, 0.0], [1.0, 1.0]]), jnp.asarray([[math.log(9), 0.0], [0.0, 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    assert float(logits_divergence(student, target, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_logits_divergence_has_the_gradient_of_cross_entropy():
    random = np.random.default_rng(2)
    student, target = random.normal(0, 3, (2, 5, 6)).astype(np.float32)
    gradient = jax.grad(logits_divergence)(jnp.asarray(student), jnp.asarray(target), 3.0)
    share = [np.exp(one / 3) / np.exp(one / 3).sum(axis=1, keepdims=True) for one in (student, target)]
    np.testing.assert_allclose(gradient, 3 * (share[0] - share[1]) / 5, rtol=1e-4, atol=1e-6)
    assert float(logits_divergence(jnp.asarray(student), jnp.asarray(student) + 7)) == pytest.approx(0.0, abs=1e-5)


def test_logits_divergence_of_far_logits_is_finite():
    far = jnp.asarray([[1e4, -1e4, 0.0]], jnp.bfloat16)
    value, gradient = jax.value_and_grad(logits_divergence)(far, -far, 1.0)
    assert value.dtype == jnp.float32
    assert float(value) > 1e3
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_map_error_by_hand_and_finite_differences():
    """Of two maps of different shape, which count alike."""
    random = np.random.default_rng(8)
    shapes = ((3, 4, 2, 5), (3, 2, 1, 7))
    student, target = ([random.normal(0.5, 2, shape) for shape in shapes] for _ in range(2))

    def reference(student):
        return np.mean([(2 - 2 * (unit(s) * unit(t)).sum(-1)).mean() for s, t in zip(student, target, strict=True)])

    def single(maps):
        return [jnp.asarray(one, jnp.float32) for one in maps]

    value, slopes = jax.jit(jax.value_and_grad(map_error))(single(student), single(target))
    assert float(value) == pytest.approx(reference(student), rel=1e-5)
    for index, place in ((0, (1, 2, 1, 3)), (1, (2, 1, 0, 6))):
        ends = []
        for step in (1e-5, -1e-5):
            moved = [one.copy() for one in student]
            moved[index][place] += step
            ends.append(reference(moved))
        assert float(slopes[index][place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-7)
    assert float(map_error([2 * one for one in single(target)], single(target))) == pytest.approx(0.0, abs=1e-6)
    assert float(map_error([-one for one in single(target)], single(target))) == pytest.approx(4.0, rel=1e-5)
    nothing = [jnp.zeros(shape) for shape in shapes]
    value, slopes = jax.value_and_grad(map_error)(nothing, single(target))
    assert float(value) == pytest.approx(1.0, rel=1e-5)
    assert all(np.isfinite(one).all() for one in slopes)


def test_map_error_of_half_precision_is_computed_in_float32():
    random = np.random.default_rng(9)
    student, target = (jnp.asarray(random.normal(0, 1, (4, 16, 8, 32)), jnp.bfloat16) for _ in range(2))
    value = map_error([student], [target])
    assert value.dtype == jnp.float32
    wide = [np.asarray(one, np.float64) for one in (student, target)]
    assert float(value) == pytest.approx((2 - 2 * (unit(wide[0]) * unit(wide[1])).sum(-1)).mean(), rel=1e-4)


def test_mean_cosine_by_hand():
    student = jnp.asarray([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
    teacher = jnp.asarray([[0.0, 5.0], [-2.0, 0.0], [2.0, 2.0]])
    assert float(mean_cosine(student, teacher)) == pytest.approx((0.8 - 1 + 1) / 3, rel=1e-5)
