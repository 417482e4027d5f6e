"""Distances, directions and masks against loops, and where distances have no slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.losses.pairs import distances, l2_normalise, positives_and_negatives, weighted_mean

_distances = jax.jit(distances)
_slope = jax.jit(jax.grad(lambda rows, i, j: distances(rows)[i, j]))


def test_distances_by_hand():
    found = _distances(jnp.asarray([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]]))
    np.testing.assert_allclose(found, [[0, 5, 3], [5, 0, 4], [3, 4, 0]], rtol=1e-6)


def test_distances_survive_a_large_common_mean():
    rows = np.random.default_rng(0).normal(0, 0.1, (6, 16))
    shifted = (rows + 500).astype(np.float32)
    expected = np.linalg.norm(shifted[:, None].astype(np.float64) - shifted[None], axis=2)
    np.testing.assert_allclose(_distances(shifted), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-22, 1e-12, 1.0, 1e12])
def test_gradients_of_distances_are_finite_and_at_most_one_long(scale):
    rows = jnp.asarray([[1.0, 2.0], [1.0, 2.0], [1.5, 2.0]]) * scale
    for i, j in [(0, 1), (0, 2)]:
        slope = np.asarray(_slope(rows, i, j))
        assert np.isfinite(slope).all()
        assert np.linalg.norm(slope[i]) <= 1.0 + 1e-5
        if (i, j) == (0, 1):
            np.testing.assert_array_equal(slope, 0.0)


def test_nan_reaches_the_distances():
    found = np.asarray(_distances(jnp.asarray([[jnp.nan, 0.0], [1.0, 0.0], [1.0, 2.0]])))
    assert np.isnan(found[0]).all()
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[1:, 1:]).all()


@pytest.mark.parametrize("cross_modal", [False, True])
def test_positives_and_negatives_equal_a_loop(cross_modal):
    random = np.random.default_rng(1)
    identity, modality = random.integers(0, 4, 12), random.integers(0, 2, 12)
    positive, negative = positives_and_negatives(jnp.asarray(identity), jnp.asarray(modality), cross_modal)
    for a in range(12):
        for b in range(12):
            allowed = modality[a] != modality[b] if cross_modal else True
            assert positive[a, b] == (allowed and a != b and identity[a] == identity[b])
            assert negative[a, b] == (allowed and identity[a] != identity[b])


def test_cross_modal_pairs_need_modalities():
    with pytest.raises(InputError, match="needs batches of both modalities"):
        positives_and_negatives(jnp.zeros(2, jnp.int32), None, True)


def test_l2_normalise_gives_unit_rows_and_keeps_zero_rows():
    rows = np.random.default_rng(0).normal(0, 2, (5, 4)).astype(np.float32)
    found = np.asarray(l2_normalise(jnp.concatenate([rows, jnp.zeros((1, 4))])))
    np.testing.assert_allclose(found[:5], rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(found[5], 0.0)


def test_weighted_mean_by_hand():
    assert float(weighted_mean(jnp.asarray([2.0, 4.0, jnp.nan]), jnp.asarray([3.0, 1.0, 0.0]))) == 2.5
    assert float(weighted_mean(jnp.asarray([2.0, jnp.inf]), jnp.zeros(2))) == 0.0
