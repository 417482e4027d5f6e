"""Colour augmentation: each switch alone does what it says, and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data import augment
from rgbd_reid_jax.data.augment import Augmentation

_KEY = jax.random.key(5)
random_colour = jax.jit(augment.random_colour, static_argnums=2)
_ALL: dict[str, Any] = {"gain": 0.9, "offset": 0.9, "gamma": 2.0, "grey": 0.5, "channel_shuffle": 0.5}


@pytest.fixture(scope="module")
def unit():
    return jnp.asarray(np.random.default_rng(0).uniform(0.3, 0.6, (64, 4, 3, 3)), jnp.float32)


def changed(unit, **switches):
    return np.asarray(random_colour(_KEY, unit, Augmentation(**switches))), np.asarray(unit)


def test_off_is_the_identity(unit):
    found, before = changed(unit)
    np.testing.assert_array_equal(found, before)


def test_values_stay_in_range():
    unit = jnp.asarray(np.random.default_rng(1).integers(0, 2, (64, 4, 3, 3)), jnp.float32)
    found, _ = changed(unit, **_ALL)
    assert found.min() == 0.0
    assert found.max() == 1.0
    assert np.isfinite(found).all()


def test_gain_scales_each_channel(unit):
    found, before = changed(unit, gain=0.2)
    gains = found / before
    assert np.ptp(gains, axis=(1, 2)).max() < 1e-5  # one gain for each image and channel
    assert np.ptp(gains[:, 0, 0], axis=1).min() > 0  # and another for each channel
    assert 0.8 <= gains.min() < 0.82
    assert 1.18 < gains.max() <= 1.2


def test_offset_shifts_each_channel(unit):
    found, before = changed(unit, offset=0.1)
    shift = found - before
    assert np.ptp(shift, axis=(1, 2)).max() < 1e-6
    assert np.ptp(shift[:, 0, 0], axis=1).min() > 0
    assert -0.1 <= shift.min() < -0.09
    assert 0.09 < shift.max() <= 0.1


def test_gamma_is_one_power_per_image(unit):
    found, before = changed(unit, gamma=1.0)
    power = np.log(found) / np.log(before)
    assert np.ptp(power, axis=(1, 2, 3)).max() < 1e-4
    assert 0.5 <= power.min() < 0.55
    assert 1.8 < power.max() <= 2.0


def test_gamma_keeps_black_and_white():
    unit = jnp.tile(jnp.asarray([0.0, 1.0]), 64 * 18).reshape(64, 4, 3, 3)
    found, before = changed(unit, gamma=1.0)
    np.testing.assert_allclose(found, before, atol=1e-2)


def test_grey_mixes_the_channels_to_one(unit):
    found, before = changed(unit, grey=1.0)
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    assert (found[..., 0] >= before.min(axis=3) - 1e-6).all()
    assert (found[..., 0] <= before.max(axis=3) + 1e-6).all()


def test_grey_comes_as_often_as_asked(unit):
    found, before = changed(unit, grey=0.3)
    grey = (np.ptp(found, axis=3) == 0).all(axis=(1, 2))
    assert 0.15 < grey.mean() < 0.45
    np.testing.assert_array_equal(found[~grey], before[~grey])


def test_shuffle_permutes_the_channels_of_an_image(unit):
    found, before = changed(unit, channel_shuffle=1.0)
    orders = set()
    for new, old in zip(found, before, strict=True):
        order = tuple(int(np.argmax([np.array_equal(new[..., c], old[..., k]) for k in range(3)])) for c in range(3))
        np.testing.assert_array_equal(new, old[..., order])
        orders.add(order)
    assert len(orders) == 6


def test_shuffle_comes_as_often_as_asked(unit):
    found, before = changed(unit, channel_shuffle=0.5)
    other = (found != before).any(axis=(1, 2, 3))
    assert 0.25 < other.mean() < 0.6  # one order of six changes nothing


def test_colour_is_a_function_of_the_key(unit):
    first, _ = changed(unit, **_ALL)
    again, _ = changed(unit, **_ALL)
    np.testing.assert_array_equal(first, again)
    other = random_colour(jax.random.key(6), unit, Augmentation(**_ALL))
    assert (np.asarray(other) != first).any()
