"""Colour augmentation: each switch alone does what it says, and nothing else."""

import colorsys
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rgbd_reid_jax.data import colour
from rgbd_reid_jax.data.augment import Augmentation

_KEY = jax.random.key(5)
random_colour = jax.jit(colour.random_colour, static_argnums=2)
_CHANNELS: dict[str, Any] = {"gain": 0.9, "offset": 0.9, "gamma": 2.0, "grey": 0.5, "channel_shuffle": 0.5}
_JITTER: dict[str, Any] = {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "hue": 0.5}
_ALL = {**_CHANNELS, **_JITTER, "channel_exchange": 0.5}


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


def test_exchange_puts_one_channel_in_place_of_all(unit):
    found, before = changed(unit, channel_exchange=1.0)
    channels = []
    for new, old in zip(found, before, strict=True):
        (channel,) = [c for c in range(3) if np.array_equal(new, old[..., [c, c, c]])]
        channels.append(channel)
    assert min(np.bincount(channels, minlength=3)) >= 10  # of 64; 21 are expected


def test_exchange_comes_as_often_as_asked(unit):
    found, before = changed(unit, channel_exchange=0.3)
    other = (found != before).any(axis=(1, 2, 3))
    assert 0.15 < other.mean() < 0.45
    np.testing.assert_array_equal(found[~other], before[~other])


@pytest.fixture(scope="module")
def photo():
    """uint8 [64, 4, 3, 3] over the whole range, with grey, black and white pixels."""
    pixels = np.random.default_rng(2).integers(0, 256, (64, 4, 3, 3)).astype(np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1], pixels[:, 0, 2] = 0, 255, 77
    return pixels


@pytest.mark.parametrize(
    ("name", "enhancer"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_jitter_is_what_pillow_does_with_some_factor(photo, name, enhancer):
    found = 255 * np.asarray(
        random_colour(_KEY, jnp.asarray(photo / 255, jnp.float32), dataclasses.replace(Augmentation(), **{name: 0.5}))
    )
    factors = []
    for new, old in zip(found, photo, strict=True):
        candidates = np.linspace(0.5, 1.5, 201)
        results = [np.asarray(enhancer(Image.fromarray(old)).enhance(factor), np.float64) for factor in candidates]
        errors = [np.abs(result - new).max() for result in results]
        assert min(errors) < 2.5  # Pillow rounds the mean, the grey and the result, and the factors are 0.005 apart
        factors.append(candidates[int(np.argmin(errors))])
    assert 0.5 <= min(factors) < 0.6
    assert 1.4 < max(factors) <= 1.5


def test_hue_turns_as_colorsys_does(photo):
    shift = np.linspace(-0.5, 0.5, 64)
    unit = photo / 255
    found = jax.jit(colour.shift_hue)(
        jnp.asarray(unit, jnp.float32), jnp.asarray(shift, jnp.float32)[:, None, None, None]
    )
    for image, turn, new in zip(unit, shift, np.asarray(found), strict=True):
        for old_pixel, new_pixel in zip(image.reshape(-1, 3), new.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*old_pixel)
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            np.testing.assert_allclose(new_pixel, expected, atol=2e-5)


def test_hue_is_turned_by_one_random_angle_per_image():
    red = jnp.tile(jnp.asarray([1.0, 0.0, 0.0]), 400 * 2).reshape(400, 1, 2, 3)
    found, _ = changed(red, hue=0.2)
    hues = np.array([[(colorsys.rgb_to_hsv(*pixel)[0] + 0.5) % 1 - 0.5 for pixel in image[0]] for image in found])
    np.testing.assert_allclose(hues[:, 0], hues[:, 1], atol=1e-6)
    assert -0.2 <= hues.min() < -0.19
    assert 0.19 < hues.max() <= 0.2
    assert hues.mean() == pytest.approx(0, abs=0.02)


def test_new_switches_leave_the_random_numbers_of_the_others(unit):
    """With an option of no effect beside them, the older ones draw what they drew."""
    grey = jnp.broadcast_to(unit.mean(axis=3, keepdims=True), unit.shape)
    alone, _ = changed(grey, gamma=1.0)
    beside, _ = changed(grey, gamma=1.0, channel_exchange=1.0)
    np.testing.assert_array_equal(alone, beside)
