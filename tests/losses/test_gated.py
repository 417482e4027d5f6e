"""Gated distances and losses on pairs against loops in float64, finite differences, poor batches and eight devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.core.mesh import batch_sharding
from rgbd_reid_jax.losses.gated import PAIR_LOSSES, gated_squared
from rgbd_reid_jax.metrics.distances import Side, gated_gallery_factors, gated_query_factors, squared_pairs
from rgbd_reid_jax.metrics.pairwise import Pairwise

_NAMES = sorted(PAIR_LOSSES)
_LOSSES = {name: jax.jit(jax.value_and_grad(loss, has_aux=True)) for name, loss in PAIR_LOSSES.items()}
_squared = jax.jit(gated_squared)
_LENIENT = {"pair_triplet": {}, "pair_softmax": {"temperature": 5.0}}  # at 0.1 a softmax of random rows is a maximum


@pytest.fixture(scope="module")
def operands():
    """Queries, gallery and their gates: 16, 16, 16 and 16 rows of 5 channels."""
    random = np.random.default_rng(3)
    rows, gates = random.normal(0, 1, (2, 16, 5)), random.random((2, 16, 5))
    return tuple(one.astype(np.float32) for one in (*rows, *gates))


_IDENTITY = np.array([3, 8, 3, 6, 3, 8, 6, 4, 1, 4, 9, 8, 1, 3, 9, 2], np.int32)


def squared_loop(query, gallery, query_gate, gallery_gate):
    """float64 [A, B], pair by pair and channel by channel."""
    query, gallery, query_gate, gallery_gate = (
        np.asarray(one, np.float64) for one in (query, gallery, query_gate, gallery_gate)
    )
    found = np.zeros((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            for c in range(query.shape[1]):
                found[i, j] += (query[i, c] * gallery_gate[j, c] - gallery[j, c] * query_gate[i, c]) ** 2
    return found


def test_direct_form_equals_a_loop(operands):
    found = _squared(*operands)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, squared_loop(*operands), rtol=1e-5)
    few = operands[0][:3], operands[1], operands[2][:3], operands[3]  # A and B differ
    np.testing.assert_allclose(jax.jit(gated_squared)(*few), squared_loop(*few), rtol=1e-5)


def test_by_hand():
    # 3 x 0.5 - 2 x 0.25 = 1 and 0 x 1 - 4 x 1 = -4; the other query's gate shuts the second channel: 1.5 - 1 = 0.5.
    query, query_gate = [[3.0, 0.0], [3.0, 0.0]], [[0.25, 1.0], [0.5, 0.0]]
    found = _squared(*(jnp.asarray(one) for one in (query, [[2.0, 4.0]], query_gate, [[0.5, 1.0]])))
    np.testing.assert_allclose(found, [[17.0], [0.25]], rtol=1e-6)


def test_factors_and_the_metric_are_the_same_distance(operands):
    query, gallery, query_gate, gallery_gate = operands
    direct = _squared(*operands)
    factors = gated_query_factors(query, query_gate), gated_gallery_factors(gallery, gallery_gate)
    assert factors[0].shape == (16, 15)
    assert factors[0].dtype == factors[1].dtype == np.float32
    np.testing.assert_allclose(factors[0] @ factors[1].T, direct, rtol=1e-5, atol=1e-5)
    double = [one.astype(np.float64) for one in operands]
    factors = gated_query_factors(double[0], double[2]), gated_gallery_factors(double[1], double[3])
    np.testing.assert_allclose(factors[0] @ factors[1].T, squared_loop(*operands), rtol=1e-12, atol=1e-12)
    codes = np.zeros(16, np.int64)
    sides = Side(query, codes, codes, query_gate), Side(gallery, codes, codes, gallery_gate)
    rows, columns = np.divmod(np.arange(256), 16)
    exact = squared_pairs(*sides, rows, columns, "gated").reshape(16, 16)
    np.testing.assert_allclose(exact, factors[0] @ factors[1].T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(exact, direct, rtol=1e-5)
    np.testing.assert_allclose(Pairwise(*sides, "gated").of(rows, columns), np.sqrt(exact.ravel()), rtol=1e-12)


def test_gates_of_one_leave_the_euclidean_distance(operands):
    query, gallery, gate, _ = operands
    found = _squared(query, gallery, np.ones_like(gate), np.ones_like(gate))
    expected = ((query[:, None].astype(np.float64) - gallery[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_equal_rows_are_at_distance_zero_without_a_slope(operands):
    query, gate = operands[0] * 7 + 1, operands[2]
    found = np.asarray(_squared(query, query, gate, gate))
    np.testing.assert_array_equal(np.diagonal(found), 0.0)
    assert (found[~np.eye(16, dtype=bool)] > 0).all()

    def own(*arrays):
        return jnp.trace(gated_squared(*arrays))

    for slope in jax.jit(jax.grad(own, argnums=(0, 1, 2, 3)))(query, query, gate, gate):
        np.testing.assert_array_equal(slope, 0.0)


def test_distances_survive_a_large_common_mean(operands):
    shifted = tuple((one + shift).astype(np.float32) for one, shift in zip(operands, (500, 500, 0, 0), strict=True))
    query, gallery, gate, _ = shifted
    alike = query, gallery, gate, gate  # the gates' difference takes no part on the diagonal
    expected = np.diagonal(squared_loop(*alike))
    np.testing.assert_allclose(np.diagonal(np.asarray(_squared(*alike))), expected, rtol=1e-5)


@pytest.mark.parametrize("which", range(4))
def test_nan_reaches_the_distances(operands, which):
    broken = [one.copy() for one in operands]
    broken[which][2, 1] = np.nan
    found = np.asarray(_squared(*broken))
    expected = np.zeros((16, 16), bool)
    expected[(slice(None), 2) if which in (1, 3) else 2] = True
    np.testing.assert_array_equal(np.isnan(found), expected)


def ways(squared, identity):
    """(distances to positives, to negatives) of every row, then of every column, that has negatives."""
    for matrix in (squared, squared.T):
        for a, row in enumerate(matrix):
            positive = [row[b] for b in range(len(row)) if identity[b] == identity[a]]
            negative = [row[b] for b in range(len(row)) if identity[b] != identity[a]]
            if negative:
                yield positive, negative


def pair_triplet(squared, identity, margin=0.3):
    terms = []
    for positive, negative in ways(squared, identity):
        far, near = math.sqrt(max(positive)), math.sqrt(min(negative))
        each = math.log1p(math.exp(far - near)) if margin is None else max(0.0, margin + far - near)
        terms.append((each, far, near, far - near + (margin or 0) > 0))
    loss, far, near, active = np.mean(terms, axis=0) if terms else np.zeros(4)
    anchors = len(terms) / (2 * len(identity))
    return loss, {"positive": far, "negative": near, "active": active, "anchors": anchors}


def pair_softmax(squared, identity, temperature=0.1):
    terms = []
    for positive, negative in ways(squared, identity):
        nearest = min(positive + negative)
        right, wrong = (sum(math.exp((nearest - d) / temperature) for d in some) for some in (positive, negative))
        terms.append((-math.log(right / (right + wrong)), right / (right + wrong)))
    loss, share = np.mean(terms, axis=0) if terms else np.zeros(2)
    return loss, {"share": share, "anchors": len(terms) / (2 * len(identity))}


REFERENCES = {"pair_triplet": pair_triplet, "pair_softmax": pair_softmax}
_OPTIONS = [
    ("pair_triplet", {}),
    ("pair_triplet", {"margin": 2.0}),
    ("pair_triplet", {"margin": None}),
    ("pair_softmax", {}),
    ("pair_softmax", {"temperature": 5.0}),
]


def test_every_loss_has_a_reference():
    assert sorted(REFERENCES) == _NAMES


@pytest.mark.parametrize(("name", "options"), _OPTIONS)
def test_loss_figures_and_gradient_equal_a_loop_and_finite_differences(name, options, operands):
    squared = np.asarray(_squared(*operands))
    function = jax.jit(jax.value_and_grad(partial(PAIR_LOSSES[name], **options), has_aux=True))
    (loss, figures), gradient = function(squared, _IDENTITY)
    exact = squared.astype(np.float64)
    expected, expected_figures = REFERENCES[name](exact, _IDENTITY, **options)
    assert loss.dtype == jnp.float32
    assert expected > 0.1
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert {key: float(value) for key, value in figures.items()} == pytest.approx(expected_figures, rel=1e-4, abs=1e-6)
    largest = float(np.abs(np.asarray(gradient)).max())
    assert largest > 1e-3
    for row in range(16):
        for column in range(16):
            step = np.zeros((16, 16))
            step[row, column] = 1e-6
            ahead, behind = (REFERENCES[name](exact + sign * step, _IDENTITY, **options)[0] for sign in (1, -1))
            slope = (ahead - behind) / 2e-6
            assert float(gradient[row, column]) == pytest.approx(slope, rel=1e-3, abs=1e-4 * largest)


@pytest.mark.parametrize("name", _NAMES)
def test_gradient_reaches_embeddings_and_gates(name, operands):
    def loss(*arrays):
        return PAIR_LOSSES[name](gated_squared(*arrays), _IDENTITY, **_LENIENT[name])[0]

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*operands)
    exact = [one.astype(np.float64) for one in operands]
    for which, gradient in enumerate(gradients):
        largest = float(np.abs(np.asarray(gradient)).max())
        assert largest > 1e-3
        for row in range(0, 16, 3):
            found = []
            for sign in (1, -1):
                moved = [one.copy() for one in exact]
                moved[which][row, row % 5] += sign * 1e-6
                found.append(REFERENCES[name](squared_loop(*moved), _IDENTITY, **_LENIENT[name])[0])
            slope = (found[0] - found[1]) / 2e-6
            assert float(gradient[row, row % 5]) == pytest.approx(slope, rel=1e-3, abs=1e-4 * largest)


def by_hand(name, squared, identity, **options):
    loss, figures = jax.jit(partial(PAIR_LOSSES[name], **options))(jnp.asarray(squared), jnp.asarray(identity))
    return float(loss), {key: round(float(value), 5) for key, value in figures.items()}


def test_triplet_by_hand():
    squared = [[1.0, 4.0, 9.0], [0.0, 1.0, 1.0], [1.0, 16.0, 0.0]]
    # Roots, farthest positive and nearest negative: rows 2 3, 1 1, 0 1; columns 1 1, 2 4, 0 1.
    loss, figures = by_hand("pair_triplet", squared, [5, 5, 8], margin=0.5)
    assert loss == pytest.approx((0.0 + 0.5 + 0.0 + 0.5 + 0.0 + 0.0) / 6)
    assert figures == {"positive": 1.0, "negative": round(11 / 6, 5), "active": round(1 / 3, 5), "anchors": 1.0}


def test_softmax_by_hand():
    # All scores are 0: of three pairs an anchor of person 5 has two right, the one of person 8 has one.
    loss, figures = by_hand("pair_softmax", np.zeros((3, 3), np.float32), [5, 5, 8])
    assert loss == pytest.approx((2 * math.log(3 / 2) + math.log(3)) / 3, rel=1e-6)
    assert figures == {"share": round(5 / 9, 5), "anchors": 1.0}
    # One positive at log 3 x T beside a negative at 0: a share of 1/4 in one direction, and 1/(1 + 1) in the other.
    squared = np.array([[0.2 * math.log(3), 0.0], [0.2 * math.log(3), 0.0]], np.float32)
    loss, _ = by_hand("pair_softmax", squared, [0, 1], temperature=0.2)
    assert loss == pytest.approx((math.log(4) + math.log(4 / 3) + 2 * math.log(2)) / 4, rel=1e-5)


def test_softmax_does_not_lose_a_small_loss():
    # Far from 0 on both sides: 30 nats apart, which a difference of two logarithms of size 10^4 would round away.
    squared = np.where(np.eye(4, dtype=bool), 1000.0, 1003.0).astype(np.float32)
    loss, _ = by_hand("pair_softmax", squared, np.arange(4))
    assert loss == pytest.approx(3 * math.exp(-30), rel=1e-2)


_ROWS = np.arange(16, dtype=np.int32)


@pytest.mark.parametrize("name", _NAMES)
def test_a_batch_of_one_person_has_no_loss_and_no_gradient(name, operands):
    (loss, figures), gradient = _LOSSES[name](np.asarray(_squared(*operands)), 0 * _ROWS)
    assert float(loss) == 0.0
    assert set(map(float, figures.values())) == {0.0}
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("identity", [0 * _ROWS, _ROWS // 4, _ROWS], ids=["one person", "four", "all different"])
def test_awkward_rows_give_finite_values_and_gradients(name, dtype, identity, operands):
    def loss(*arrays):
        return PAIR_LOSSES[name](gated_squared(*arrays), identity)

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    query, gallery, query_gate, gallery_gate = operands
    ones, zeros = np.ones_like(query), np.zeros_like(query)
    twins = query.copy()
    twins[5] = gallery[0]
    cases = [
        (ones, ones, ones, ones),  # collapsed: all distances are 0
        (zeros, zeros, query_gate, gallery_gate),
        (query, gallery, zeros, zeros),  # shut gates
        (query, query, query_gate, query_gate),
        (np.where(_ROWS[:, None] < 3, 0, query), gallery, query_gate, gallery_gate),
        (twins, gallery, np.where(_ROWS[:, None] == 5, gallery_gate[0], query_gate), gallery_gate),
        *((query * scale, gallery * scale, query_gate, gallery_gate) for scale in (1e-30, 1e-20, 1e-8, 1e6)),
    ]
    for case in cases:
        (value, figures), gradients = function(*(jnp.asarray(one, dtype) for one in case))
        assert value.dtype == jnp.float32
        assert np.isfinite([float(value), *map(float, figures.values())]).all()
        for gradient in gradients:
            assert gradient.dtype == dtype
            assert np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("name", _NAMES)
def test_bfloat16_is_compared_in_float32(name, operands):
    rows = [jnp.asarray(one, jnp.bfloat16) for one in operands]
    np.testing.assert_array_equal(_squared(*rows), _squared(*(one.astype(jnp.float32) for one in rows)))
    squared = jnp.asarray(_squared(*operands), jnp.bfloat16)
    (loss, _), _ = _LOSSES[name](squared, _IDENTITY)
    (expected, _), _ = _LOSSES[name](squared.astype(jnp.float32), _IDENTITY)
    assert float(loss) == float(expected)


@pytest.mark.parametrize("name", _NAMES)
def test_nan_is_not_hidden(name, operands):
    squared = np.array(_squared(*operands))
    squared[4, 9] = np.nan
    assert np.isnan(float(_LOSSES[name](squared, _IDENTITY)[0][0]))


@pytest.mark.parametrize("name", _NAMES)
def test_batch_is_global_on_eight_devices(name, operands, mesh_of):
    @jax.jit
    def both(*arrays):
        def loss(*arrays):
            return PAIR_LOSSES[name](gated_squared(*arrays), identity, **_LENIENT[name])

        *arrays, identity = arrays
        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*arrays)

    on_one = both(*operands, _IDENTITY)
    on_eight = both(*(jax.device_put(one, batch_sharding(mesh_of(8))) for one in (*operands, _IDENTITY)))
    assert len(on_eight[1][0].sharding.device_set) == 8
    for one, eight in zip(jax.tree.leaves(on_one), jax.tree.leaves(on_eight), strict=True):
        np.testing.assert_allclose(np.asarray(eight), np.asarray(one), rtol=1e-5, atol=1e-6)
