"""Statistics of the simulated sensors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfds_builders.synthetic_rgbd import render, sensor, store
from tfds_builders.synthetic_rgbd.config import custom_config, named_config
from tfds_builders.synthetic_rgbd.draws import exact

H, W = 64, 64
PERFECT = sensor.Settings(H, W, 0.0, 0.0, 0.0, 0.0, 60.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def sense(depth, settings, *, facing=1.0, dark=0.0, focal=100.0):
    """uint16 [F, H, W] of a given true depth [F, H, W]."""
    frames = depth.shape[0]
    full = lambda value: np.broadcast_to(np.asarray(value, np.float64), depth.shape)  # noqa: E731
    surface = render.Surface(depth, full(0) > 1, np.zeros((*depth.shape, 3)), full(facing), full(dark))
    with exact():
        words = sensor._draw(np.arange(2 * frames, dtype=np.uint32).reshape(frames, 2), H, W)[:, 3:]
        return np.asarray(sensor.sense_depth(surface, np.full(frames, focal), words, settings))


def plane(z, frames=4):
    return np.full((frames, H, W), z)


def test_a_perfect_sensor_rounds_to_millimetres():
    assert np.all(sense(plane(2.3456), PERFECT) == 2346)


@pytest.mark.parametrize("z", [1.5, 2.5, 4.0])
def test_noise_grows_with_the_square_of_depth(z):
    measured = sense(plane(z), PERFECT._replace(depth_noise=1.4e-3)) / 1000.0
    assert measured.mean() == pytest.approx(z, abs=1e-3)
    assert measured.std() == pytest.approx(1.4e-3 * z**2, rel=0.05)


@pytest.mark.parametrize("z", [1.5, 3.0, 4.5])
def test_steps_are_those_of_the_disparity(z):
    ramp = np.broadcast_to(np.linspace(z - 0.3, z + 0.3, H * W).reshape(1, H, W), (1, H, W))
    levels = np.unique(sense(ramp, PERFECT._replace(depth_step_scale=1.0)))
    step = np.diff(levels.astype(float))
    expected = 2.73 * (levels[:-1] / 1000.0) ** 2 + 0.74 * levels[:-1] / 1000.0
    assert np.all(np.abs(step - expected) < 1.0 + 0.01 * expected), "a millimetre of rounding aside"


def test_every_kind_of_hole_has_its_knob():
    flat = plane(3.0)
    assert np.mean(sense(flat, PERFECT._replace(random_hole_rate=0.1)) == 0) == pytest.approx(0.1, abs=0.02)
    assert np.mean(sense(flat, PERFECT._replace(dark_hole_rate=0.4), dark=0.5) == 0) == pytest.approx(0.2, abs=0.02)
    grazing = PERFECT._replace(grazing_hole_rate=0.7)
    assert np.mean(sense(flat, grazing, facing=0.1) == 0) == pytest.approx(0.7, abs=0.02)
    assert np.all(sense(flat, grazing, facing=0.5) > 0)
    assert np.all(sense(flat, PERFECT._replace(max_depth_m=2.9)) == 0)


def test_edges_have_holes_on_both_sides_and_planes_have_none():
    depth = plane(4.0, 1)
    depth[:, :, W // 2 :] = 3.0
    holes = sense(depth, PERFECT._replace(edge_hole_rate=1.0))[0] == 0
    assert np.flatnonzero(holes.all(axis=0)).tolist() == [W // 2 - 1, W // 2]
    assert holes.sum() == 2 * H
    floor = 1.0 / np.linspace(0.1, 0.8, H)[None, :, None] * np.ones((1, 1, W))
    assert np.all(sense(floor, PERFECT._replace(edge_hole_rate=1.0)) > 0)


def test_the_projectors_shadow_lies_left_of_the_object_and_is_as_wide_as_the_disparity():
    depth = plane(5.0, 1)
    depth[:, :, 30:40] = 2.0
    holes = sense(depth, PERFECT._replace(projector_baseline_m=0.1), focal=100.0)[0] == 0
    width = 100.0 * 0.1 * (1 / 2.0 - 1 / 5.0)  # 3 pixels
    columns = np.flatnonzero(holes.any(axis=0))
    assert columns.max() == 29
    assert abs(len(columns) - width) <= 1
    assert sense(depth, PERFECT).min() > 0


def test_bits_become_the_normals_and_uniforms_they_claim_to_be():
    with exact():
        words = sensor._draw(np.arange(8, dtype=np.uint32).reshape(4, 2), H, W)
        normal, uniform = np.asarray(sensor._normal(words)), np.asarray(sensor._uniform(words >> 32))
    assert abs(normal.mean()) < 0.01
    assert normal.std() == pytest.approx(1.0, abs=0.01)
    assert 0 < uniform.min() < uniform.max() < 1
    assert uniform.std() == pytest.approx(12**-0.5, abs=0.003)


def test_colour_noise_gain_and_blur():
    grey = np.full((2, H, W, 3), 0.5)
    with exact():
        words = sensor._draw(np.arange(4, dtype=np.uint32).reshape(2, 2), H, W)[:, :3]
        gain = np.array([[1.0, 0.8, 1.2]] * 2)
        noisy = np.asarray(sensor.sense_color(grey, gain, words, PERFECT._replace(rgb_noise=0.02)))
        point = np.zeros((1, H, W, 3))
        point[0, 32, 32] = 1.0
        spread = np.asarray(sensor._blur(jnp.asarray(point), 1.0))
    linear = (noisy / 255.0) ** 2
    assert np.allclose(linear.mean(axis=(0, 1, 2)), [0.5, 0.4, 0.6], atol=0.005)
    assert linear[..., 0].std() == pytest.approx(0.02, rel=0.1)
    assert spread.sum() == pytest.approx(3.0)
    weights = spread[0, :, 32, 0] / spread[0, :, 32, 0].sum()
    assert np.sqrt(np.sum(weights * (np.arange(H) - 32) ** 2)) == pytest.approx(1.0, abs=0.1)


def test_about_a_tenth_of_the_default_pixels_is_invalid():
    frames, images = store.render_arrays(named_config("quick"), "validation", np.arange(10))
    assert 0.06 < np.mean(images.depth == 0) < 0.14
    for camera in (0, 1):
        assert 0.04 < np.mean(images.depth[frames.labels["camera_id"] == camera] == 0) < 0.18
    assert 0.15 < np.mean(images.mask > 0) < 0.45
    brightness = images.rgb.reshape(len(images.rgb), -1).mean(axis=1)
    assert 50 < brightness.mean() < 190


def test_cameras_differ_in_colour_and_distance():
    config = custom_config("quick", light_spread=0.0)
    frames, images = store.render_arrays(config, "validation", np.arange(10))
    camera = frames.labels["camera_id"]
    warmth = images.rgb[..., 0].astype(float).mean(axis=(1, 2)) - images.rgb[..., 2].astype(float).mean(axis=(1, 2))
    assert warmth[camera == 0].mean() > warmth[camera == 1].mean() + 5
    median = np.array([np.median(d[(m > 0) & (d > 0)]) for d, m in zip(images.depth, images.mask, strict=True)])
    assert median[camera == 1].mean() > median[camera == 0].mean() + 300


def test_rendering_leaves_the_callers_jax_settings_alone():
    assert jax.random.normal(jax.random.key(0), (2,)).dtype == jnp.float32
    options: Any = jax.config
    assert not options.jax_enable_x64
