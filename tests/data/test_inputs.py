"""Raw frames to network inputs: both modalities share one geometry; grey and padded inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data import augment, inputs, representation
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.data.representation import IMAGENET_MEAN, IMAGENET_STD, depth_input, normalise_rgb

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
    unit = batch["rgb"].astype(jnp.float32) / 255.0
    np.testing.assert_allclose(plain_input(spec, "rgb", batch), normalise_rgb(unit), rtol=1e-5)
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


def luma_of(rgb):
    """float64 [B, H, W, 1] in [0, 1] of uint8 [B, H, W, 3]."""
    return (np.asarray(rgb, np.float64) / 255.0 @ np.array([0.299, 0.587, 0.114]))[..., None]


def normalised(luma):
    return (luma - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)


def test_grey_is_the_luma_in_all_channels(batch):
    stored = InputSpec(32, 16, "metric", colour="grey")
    expected = normalised(luma_of(batch["rgb"]))
    np.testing.assert_allclose(plain_input(stored, "rgb", batch), expected, atol=1e-4)
    found = train_input(stored, "rgb", batch, _KEY, Augmentation(**_STILL))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_grey_comes_after_the_colour_augmentation(batch):
    """What chance makes of the colours is drawn as without it; what the network sees is grey all the same."""
    colour = Augmentation(gain=0.4, offset=0.2, channel_shuffle=1.0, hue=0.5)
    spec = InputSpec(32, 16, "metric")
    grey, coloured = (
        np.asarray(train_input(one, "rgb", batch, _KEY, colour), np.float64)
        for one in (dataclasses.replace(spec, colour="grey"), spec)
    )
    unit = coloured * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)  # crops are linear, so luma may come after them
    expected = normalised((unit @ np.array([0.299, 0.587, 0.114]))[..., None])
    np.testing.assert_allclose(grey, expected, atol=1e-4)
    levels = grey * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
    assert np.ptp(levels, axis=3).max() < 1e-5
    assert np.ptp(unit, axis=3).max() > 0.1


@pytest.mark.parametrize(("modality", "own"), [("rgb", 0), ("depth", 2)])
@pytest.mark.parametrize("augmentation", [None, Augmentation(gain=0.3, depth_noise=0.1, erase=1.0)])
def test_zero_padding_leaves_one_channel_to_each_modality(batch, modality, own, augmentation):
    spec = InputSpec(16, 8, "relative", zero_padding=True)
    bare = InputSpec(16, 8, "relative", colour="grey")
    if augmentation is None:
        found, whole = (np.asarray(plain_input(one, modality, batch)) for one in (spec, bare))
    else:
        found, whole = (np.asarray(train_input(one, modality, batch, _KEY, augmentation)) for one in (spec, bare))
    np.testing.assert_array_equal(found[..., own], whole[..., own])
    assert (found[..., [channel for channel in range(3) if channel != own]] == 0).all()
    assert (found[..., own] != 0).mean() > 0.5


def test_grey_and_zero_padding_do_not_change_depth_but_for_its_place(batch):
    spec = InputSpec(16, 8, "relative")
    plain = np.asarray(plain_input(spec, "depth", batch))
    np.testing.assert_array_equal(plain_input(dataclasses.replace(spec, colour="grey"), "depth", batch), plain)
    padded = np.asarray(plain_input(dataclasses.replace(spec, zero_padding=True), "depth", batch))
    np.testing.assert_array_equal(padded[..., 2], plain[..., 2])


def test_without_the_options_no_bit_changes(batch):
    """The input as it was before there were such options: normalise, resize or crop, and no more."""
    spec = InputSpec(16, 8, "metric")
    unit = batch["rgb"].astype(jnp.float32) / 255.0
    plain = jax.jit(lambda unit: augment.resize(normalise_rgb(unit), 16, 8))(unit)
    np.testing.assert_array_equal(plain_input(spec, "rgb", batch), plain)

    def cropped(unit):
        geometry_key, _ = jax.random.split(_KEY)
        boxes = augment.random_boxes(geometry_key, 6, 32, 16, Augmentation())
        return augment.crop_and_resize(normalise_rgb(unit), boxes, 16, 8)

    np.testing.assert_array_equal(train_input(spec, "rgb", batch, _KEY, Augmentation()), jax.jit(cropped)(unit))
