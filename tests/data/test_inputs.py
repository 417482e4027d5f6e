"""Raw frames to network inputs: both modalities share one geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data import inputs, representation
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.data.representation import IMAGENET_MEAN, IMAGENET_STD, depth_input, rgb_input

_SPEC = InputSpec(16, 8, "metric")
plain_input = jax.jit(inputs.plain_input, static_argnums=(0, 1))
train_input = jax.jit(inputs.train_input, static_argnums=(0, 1, 4))
_KEY = jax.random.key(11)
_STILL = {"crop_area": (1.0, 1.0), "crop_ratio": (2.0, 2.0), "flip": 0.0}


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (6, 32, 16, 3)).astype(np.uint8)
    depth = random.integers(0, 9000, (6, 32, 16, 1)).astype(np.uint16)
    mask = random.integers(0, 2, (6, 32, 16, 1)).astype(np.uint8)
    return {"rgb": jnp.asarray(rgb), "depth": jnp.asarray(depth), "mask": jnp.asarray(mask)}


def coordinates(axis):
    """Images that hold their own row or column, in both modalities: 10 r in RGB, 100 r mm in depth."""
    values = np.arange(1, 17).reshape((16, 1) if axis == 0 else (1, 16))
    grid = np.broadcast_to(values, (16, 16))[None, :, :, None].repeat(12, 0)
    rgb = np.repeat(10 * grid, 3, 3).astype(np.uint8)
    mask = np.ones(grid.shape, np.uint8)
    return {"rgb": jnp.asarray(rgb), "depth": jnp.asarray((100 * grid).astype(np.uint16)), "mask": jnp.asarray(mask)}


@pytest.mark.parametrize("axis", [0, 1])
def test_both_modalities_see_the_same_crop(axis):
    batch = coordinates(axis)
    augmentation = Augmentation(crop_area=(0.3, 0.6), crop_ratio=(0.8, 2.0), depth_noise=0.0)
    rgb = np.asarray(train_input(_SPEC, "rgb", batch, _KEY, augmentation))
    depth = np.asarray(train_input(_SPEC, "depth", batch, _KEY, augmentation))
    from_rgb = (rgb * np.asarray(IMAGENET_STD) + np.asarray(IMAGENET_MEAN)) * 25.5
    from_depth = (depth + 1) * 40
    np.testing.assert_allclose(from_rgb, from_depth, atol=1e-3)
    assert 3 < np.ptp(from_depth[0, ..., 0]) < 14  # a crop, not the whole
    if axis == 1:
        assert len(set(np.sign(from_depth[:, 0, -1, 0] - from_depth[:, 0, 0, 0]))) == 2  # some are mirrored


def test_plain_input_at_the_stored_size_only_normalises(batch):
    spec = InputSpec(32, 16, "relative")
    np.testing.assert_allclose(plain_input(spec, "rgb", batch), rgb_input(batch["rgb"]), rtol=1e-5)
    expected = depth_input(batch["depth"], batch["mask"], "relative")
    np.testing.assert_allclose(plain_input(spec, "depth", batch), expected, rtol=1e-5)


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_inputs_have_the_size_of_the_spec(batch, modality):
    for image in (
        plain_input(_SPEC, modality, batch),
        train_input(_SPEC, modality, batch, _KEY, Augmentation(depth_noise=0.1, gain=0.1)),
    ):
        assert image.shape == (6, 16, 8, 3)
        assert image.dtype == jnp.float32


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_without_augmentation_training_sees_the_plain_input(batch, modality):
    found = train_input(_SPEC, modality, batch, _KEY, Augmentation(**_STILL))
    np.testing.assert_allclose(found, plain_input(_SPEC, modality, batch), atol=1e-4)


def test_depth_noise_is_one_value_for_all_channels(batch):
    spec = InputSpec(32, 16, "metric")
    noisy = train_input(spec, "depth", batch, _KEY, Augmentation(**_STILL, depth_noise=0.05))
    noise = np.asarray(noisy - plain_input(spec, "depth", batch))
    np.testing.assert_allclose(noise[..., 0], noise[..., 1], atol=1e-6)
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    assert abs(noise.mean()) < 0.005


def test_colour_changes_rgb_alone(batch):
    colour = Augmentation(**_STILL, gain=0.5, offset=0.3)
    np.testing.assert_array_equal(
        train_input(_SPEC, "depth", batch, _KEY, colour),
        train_input(_SPEC, "depth", batch, _KEY, Augmentation(**_STILL)),
    )
    plain, coloured = plain_input(_SPEC, "rgb", batch), train_input(_SPEC, "rgb", batch, _KEY, colour)
    assert np.abs(np.asarray(plain - coloured)).max() > 0.1


@pytest.mark.parametrize("name", ["metric", "relative", "relative_masked"])
def test_both_modalities_lose_the_same_rectangle(batch, name):
    spec = InputSpec(32, 16, name)
    whole, erased = Augmentation(), Augmentation(erase=1.0)
    lost = {}
    for modality, blank in (("rgb", 0.0), ("depth", 1.0 if name == "metric" else 2.0)):
        before = np.asarray(train_input(spec, modality, batch, _KEY, whole))
        after = np.asarray(train_input(spec, modality, batch, _KEY, erased))
        changed = before != after
        assert (after[changed] == blank).all()
        lost[modality] = (after == blank).all(axis=3)
        np.testing.assert_array_equal(after[~lost[modality]], before[~lost[modality]])
    assert lost["rgb"].any(axis=(1, 2)).all()
    assert (lost["depth"][lost["rgb"]]).all()  # depth may be blank elsewhere too: invalid, far or no person


def test_nothing_seen_is_what_a_missing_reading_becomes(batch):
    nothing = {**batch, "depth": jnp.zeros_like(batch["depth"])}
    for name in ("metric", "relative", "relative_masked"):
        found = plain_input(InputSpec(32, 16, name), "depth", nothing)
        np.testing.assert_array_equal(found, representation.blank("depth", name))
    assert representation.blank("rgb", "metric") == 0.0


def test_sensor_errors_change_depth_alone(batch):
    rough = Augmentation(**_STILL, depth_step=200.0, depth_holes=0.2)
    still = Augmentation(**_STILL)
    rgb, depth = (
        [np.asarray(train_input(_SPEC, modality, batch, _KEY, one)) for one in (rough, still)]
        for modality in ("rgb", "depth")
    )
    np.testing.assert_array_equal(rgb[0], rgb[1])
    assert np.abs(depth[0] - depth[1]).max() > 0.1
