"""Distillation losses against numpy, finite differences, and the rows that break normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.losses.distillation import DISTILLATION_LOSSES, l2_normalise, mean_cosine


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


REFERENCES = {
    "sum_squared": lambda s, t: ((s - t) ** 2).sum(),
    "mean_squared": lambda s, t: ((s - t) ** 2).mean(),
    "normalised_squared": lambda s, t: (2 - 2 * (unit(s) * unit(t)).sum(axis=1)).mean(),
}
_NAMES = sorted(REFERENCES)
_VALUE_AND_GRADIENT = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in DISTILLATION_LOSSES.items()}


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(0)
    return random.normal(0, 2, (5, 4)).astype(np.float32), random.normal(0, 2, (5, 4)).astype(np.float32)


def test_every_loss_has_a_reference():
    assert sorted(DISTILLATION_LOSSES) == _NAMES


@pytest.mark.parametrize("name", _NAMES)
def test_loss_equals_numpy(pair, name):
    value, _ = _VALUE_AND_GRADIENT[name](*pair)
    assert float(value) == pytest.approx(REFERENCES[name](*(one.astype(np.float64) for one in pair)), rel=1e-4)


@pytest.mark.parametrize("name", _NAMES)
def test_gradient_equals_finite_differences(pair, name):
    student, teacher = (one.astype(np.float64) for one in pair)
    _, gradient = _VALUE_AND_GRADIENT[name](*pair)
    for row in range(5):
        step = np.zeros(student.shape)
        step[row, row % 4] = 1e-5
        slope = (REFERENCES[name](student + step, teacher) - REFERENCES[name](student - step, teacher)) / 2e-5
        assert float(gradient[row, row % 4]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"), [("sum_squared", 14.0), ("mean_squared", 3.5), ("normalised_squared", 1.2)]
)
def test_by_hand(name, expected):
    student = jnp.asarray([[3.0, 4.0], [0.0, 2.0]])
    teacher = jnp.asarray([[0.0, 5.0], [2.0, 2.0]])
    # Differences (3, -1) and (-2, 0).
    if name == "normalised_squared":
        teacher = jnp.asarray([[0.0, 5.0], [1.0, 0.0]])  # cosines 0.8 and 0
    value, _ = _VALUE_AND_GRADIENT[name](student, teacher)
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", ["zero student", "zero teacher", "both zero", "identical", "tiny", "huge"])
def test_awkward_rows_give_finite_values_and_gradients(pair, name, dtype, case):
    student, teacher = pair
    if "student" in case or "both" in case:
        student = np.zeros_like(student)
    if "teacher" in case or "both" in case:
        teacher = np.zeros_like(teacher)
    if case == "identical":
        teacher = student
    scale = {"tiny": 1e-20, "huge": 1e6}.get(case, 1.0)
    value, gradient = _VALUE_AND_GRADIENT[name](*(jnp.asarray(one * scale, dtype) for one in (student, teacher)))
    assert np.isfinite(float(value))
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
    if case == "identical":
        assert float(value) == 0.0
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), 0.0)


def test_normalised_loss_does_not_depend_on_length(pair):
    student, teacher = pair
    loss = _VALUE_AND_GRADIENT["normalised_squared"]
    assert float(loss(7 * student, teacher / 3)[0]) == pytest.approx(float(loss(student, teacher)[0]), rel=1e-4)
    assert float(loss(-student, student)[0]) == pytest.approx(4.0, rel=1e-5)


def test_l2_normalise_gives_unit_rows_and_keeps_zero_rows(pair):
    rows = np.concatenate([pair[0], np.zeros((1, 4), np.float32)])
    found = np.asarray(l2_normalise(jnp.asarray(rows)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(found[:5], unit(rows[:5]), atol=1e-5)


def test_mean_cosine_by_hand():
    student = jnp.asarray([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
    teacher = jnp.asarray([[0.0, 5.0], [-2.0, 0.0], [2.0, 2.0]])
    assert float(mean_cosine(student, teacher)) == pytest.approx((0.8 - 1 + 1) / 3, rel=1e-5)
