"""Cross-entropy with smoothing against numpy, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.losses import identity

identity_loss = jax.jit(identity.identity_loss)
_gradient = jax.jit(jax.grad(identity.identity_loss))


def reference(logits, labels, smoothing):
    logits = logits.astype(np.float64)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        log_probability = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total -= (target * log_probability).sum()
    return total / len(logits)


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    return random.normal(0, 3, (6, 5)).astype(np.float32), np.array([0, 4, 2, 2, 1, 3], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_equals_numpy(batch, smoothing):
    assert float(identity_loss(*batch, smoothing=smoothing)) == pytest.approx(
        reference(*batch, smoothing=smoothing), rel=1e-5
    )


def test_by_hand():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25]]))
    assert float(identity_loss(logits, jnp.asarray([0]))) == pytest.approx(np.log(2), rel=1e-5)
    # 0.3 of the mass over three classes: 0.8, 0.1, 0.1.
    assert float(identity_loss(logits, jnp.asarray([0]), 0.3)) == pytest.approx(1.2 * np.log(2), rel=1e-5)
    assert float(identity_loss(jnp.zeros((4, 10)), jnp.zeros(4, jnp.int32), 0.1)) == pytest.approx(np.log(10))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradient_equals_finite_differences(batch, smoothing):
    logits, labels = batch
    found = np.asarray(_gradient(logits, labels, smoothing))
    for row, column in [(0, 0), (1, 4), (2, 3), (5, 0)]:
        step = np.zeros(logits.shape)
        step[row, column] = 1e-5
        ahead, behind = (reference(logits.astype(np.float64) + sign * step, labels, smoothing) for sign in (1, -1))
        assert found[row, column] == pytest.approx((ahead - behind) / 2e-5, abs=1e-5)


def test_large_logits_stay_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0]])
    assert float(identity_loss(logits, jnp.asarray([1]), 0.1)) > 1e3
    assert np.isfinite(_gradient(logits, jnp.asarray([1]), 0.1)).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bfloat16_is_compared_in_float32(batch, smoothing):
    """A batch of one person, equal rows and rows of zeros, too."""
    logits, labels = batch
    for rows, people in ((logits, labels), (logits, 0 * labels), (np.ones_like(logits), labels), (0 * logits, labels)):
        half = jnp.asarray(rows, jnp.bfloat16)
        loss, slopes = identity_loss(half, people, smoothing), _gradient(half, people, smoothing)
        assert loss.dtype == jnp.float32
        assert slopes.dtype == jnp.bfloat16
        exact = half.astype(jnp.float32)
        assert float(loss) == pytest.approx(float(identity_loss(exact, people, smoothing)), rel=1e-6)
        expected = _gradient(exact, people, smoothing)
        np.testing.assert_allclose(np.asarray(slopes, np.float32), expected, rtol=0.01, atol=1e-4)


def test_accuracy_by_hand():
    logits = jnp.asarray([[1.0, 2.0], [3.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    found = identity.accuracy(logits, jnp.asarray([1, 1, 1, 0]))
    assert found.dtype == jnp.float32
    assert float(found) == 0.75
