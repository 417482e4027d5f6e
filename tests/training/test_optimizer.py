"""Optimizers against PyTorch's formulas written out, and schedules at hand-picked steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.training.optimizer import OptimizerSpec, make_optimizer, make_schedule

_START = np.array([1.0, -2.0, 0.5])
_GRADIENTS = np.array([[0.3, -0.1, 2.0], [-0.2, 0.4, 1.0], [0.5, 0.5, -3.0]])


def run(spec, steps=3):
    optimizer = make_optimizer(spec, steps)
    weights = jnp.asarray(_START, jnp.float32)
    state = optimizer.init(weights)
    for gradient in _GRADIENTS[:steps]:
        updates, state = jax.jit(optimizer.update)(jnp.asarray(gradient, jnp.float32), state, weights)
        weights = weights + updates
    return np.asarray(weights)


def torch_sgd(rates, decay, clip=0.0):
    weights, buffer = _START.copy(), None
    for rate, gradient in zip(rates, _GRADIENTS, strict=False):
        if clip:
            gradient = gradient * min(1.0, clip / np.linalg.norm(gradient))
        gradient = gradient + decay * weights
        buffer = gradient if buffer is None else 0.9 * buffer + gradient
        weights = weights - rate * (gradient + 0.9 * buffer)
    return weights


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_sgd_is_pytorchs_with_nesterov_and_coupled_decay(decay, clip):
    spec = OptimizerSpec(learning_rate=0.1, weight_decay=decay, clip_norm=clip)
    np.testing.assert_allclose(run(spec), torch_sgd([0.1] * 3, decay, clip), rtol=1e-5)


def test_sgd_follows_its_schedule_from_step_0():
    spec = OptimizerSpec(learning_rate=0.1, weight_decay=0.1, schedule="step", decay_steps=2)
    np.testing.assert_allclose(run(spec), torch_sgd([0.1, 0.1, 0.01], 0.1), rtol=1e-5)


def test_adamw_is_pytorchs_with_decoupled_decay():
    weights, first, second = _START.copy(), 0.0, 0.0
    for number, gradient in enumerate(_GRADIENTS, start=1):
        weights = weights - 0.1 * 0.2 * weights
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights = weights - 0.1 * (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
    found = run(OptimizerSpec(name="adamw", learning_rate=0.1, weight_decay=0.2))
    np.testing.assert_allclose(found, weights, rtol=1e-4)


def test_adam_is_pytorchs_with_coupled_decay():
    weights, first, second = _START.copy(), 0.0, 0.0
    for number, gradient in enumerate(_GRADIENTS, start=1):
        gradient = gradient + 0.2 * weights
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights = weights - 0.1 * (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
    found = run(OptimizerSpec(name="adam", learning_rate=0.1, weight_decay=0.2))
    np.testing.assert_allclose(found, weights, rtol=1e-4)


def values(spec, steps, at):
    schedule = make_schedule(spec, steps)
    return [float(np.asarray(schedule(step))) for step in at]


def test_constant_schedule():
    assert values(OptimizerSpec(learning_rate=0.3), 100, [0, 50, 99]) == pytest.approx([0.3] * 3)


def test_step_schedule():
    spec = OptimizerSpec(learning_rate=0.1, schedule="step", decay_steps=40)
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert values(spec, 100, [0, 39, 40, 79, 80, 99]) == pytest.approx(expected)


def test_late_decay_schedule():
    """The published one: 2e-4 up to epoch 100, then times 0.001 ** ((epoch - 100) / 50)."""
    spec = OptimizerSpec(learning_rate=2e-4, schedule="late_decay", decay_steps=100)
    at = [0, 100, 110, 125, 150]
    expected = [2e-4, 2e-4, 2e-4 * 0.001**0.2, 2e-4 * 0.001**0.5, 2e-7]
    assert values(spec, 150, at) == pytest.approx(expected, rel=1e-5)
    for outside in (0, 150):
        with pytest.raises(InputError, match=f"decay_steps={outside} must be from 1 to 149"):
            make_schedule(OptimizerSpec(schedule="late_decay", decay_steps=outside), 150)


def test_one_cycle_schedule():
    spec = OptimizerSpec(learning_rate=0.5, schedule="one_cycle")
    # Up from 0.5 / 25 over 30 of 200 steps; half-way down the cosine at (30 + 200) / 2.
    assert values(spec, 200, [0, 15, 30, 115, 200]) == pytest.approx([0.02, 0.26, 0.5, 0.25, 0.0], abs=1e-6)
    assert values(spec, 200, [199])[0] < 1e-4
    assert max(values(spec, 200, range(200))) == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_very_few_steps(steps):
    found = values(OptimizerSpec(learning_rate=0.5, schedule="one_cycle"), steps, range(steps))
    assert np.isfinite(found).all()
    assert min(found) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schedule": "linear"},
            r"optimizer\.schedule='linear' is unknown; choose one of: constant, step, late_decay, one_cycle",
        ),
        ({"schedule": "step"}, r"optimizer\.decay_steps=0 must be positive"),
        ({"name": "rmsprop"}, r"optimizer\.name='rmsprop' is unknown; choose one of: sgd, adam, adamw"),
    ],
)
def test_unknown_choices_are_named(change, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(OptimizerSpec(**change), 10)
