"""Depth errors: steps that grow with the square of the distance, and holes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data import sensor
from rgbd_reid_jax.data.augment import Augmentation

_KEY = jax.random.key(4)
random_depth = jax.jit(sensor.random_depth, static_argnums=2)
quantise = jax.jit(sensor.quantise, static_argnums=1)


def ramp(batch=1):
    """Every depth from 0 to 8191 mm, in each image."""
    return jnp.tile(jnp.arange(8192, dtype=jnp.uint16).reshape(1, 128, 64, 1), (batch, 1, 1, 1))


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("step", [2.85, 20.0])
def test_readings_are_equal_steps_of_disparity(step, phase):
    found = np.asarray(quantise(ramp(), step, jnp.full((1, 1, 1, 1), phase)), np.int64).ravel()
    for depth in (500, 1000, 1500, 2000, 3000, 4000, 6000):
        disparity = np.round(1e6 / step / depth + phase) - phase
        assert abs(found[depth] - 1e6 / step / disparity) <= 0.51, depth
        half_step = step * (depth / 1000) ** 2 / 2
        assert abs(found[depth] - depth) <= 1.2 * half_step + 1
    assert found[0] == 0
    assert (np.diff(found[1:]) >= 0).all()
    for depth in (1000, 2000, 4000):
        plateaus = np.unique(found[depth - 600 : depth + 600])
        around = np.searchsorted(plateaus, depth)
        width = plateaus[around] - plateaus[around - 1]
        assert width == pytest.approx(step * (depth / 1000) ** 2, rel=0.15, abs=1.5)  # k Z^2


def test_the_phase_is_random_and_errors_cancel():
    found = np.asarray(random_depth(_KEY, ramp(300), Augmentation(depth_step=20.0)), np.int64).reshape(300, -1)
    errors = found[:, [1000, 2000, 3000]] - np.array([1000, 2000, 3000])
    assert (np.ptp(errors, axis=0) > [17, 70, 160]).all()
    assert (np.abs(errors.mean(axis=0)) < [2, 6, 15]).all()
    assert errors.std(axis=0) == pytest.approx(20 * np.array([1, 4, 9]) / np.sqrt(12), rel=0.15)


def test_extremes_stay_readings():
    depth = jnp.asarray([0, 1, 2, 65535], jnp.uint16).reshape(1, 2, 2, 1)
    for step in (0.5, 50.0):
        found = np.asarray(random_depth(_KEY, depth, Augmentation(depth_step=step))).ravel()
        assert found[0] == 0
        assert (found[1:] > 0).all()
        assert found.dtype == np.uint16


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_holes_are_patches_that_take_the_asked_share(share):
    depth = jnp.full((50, 64, 32, 1), 1234, jnp.uint16)
    found = np.asarray(random_depth(_KEY, depth, Augmentation(depth_holes=share)))[..., 0]
    assert set(np.unique(found)) <= {0, 1234}
    assert (found == 0).mean() == pytest.approx(share, abs=0.01)
    patches = found.reshape(50, 32, 2, 16, 2)
    np.testing.assert_array_equal(patches.min(axis=(2, 4)), patches.max(axis=(2, 4)))
    if share < 1:
        assert len({image.tobytes() for image in found}) == 50


def test_images_smaller_than_the_patches():
    found = random_depth(_KEY, jnp.full((2, 20, 10, 1), 7, jnp.uint16), Augmentation(depth_holes=0.5))
    assert found.shape == (2, 20, 10, 1)


def test_off_is_the_identity():
    depth = ramp()
    np.testing.assert_array_equal(random_depth(_KEY, depth, Augmentation(depth_noise=1.0)), depth)
