"""What the networks see of raw frames, against numpy's sort and hand numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data import representation
from rgbd_reid_jax.data.representation import DEPTH_REPRESENTATIONS, normalise_rgb

_H, _W = 6, 5
person_depth = jax.jit(representation.person_depth)
depth_input = jax.jit(representation.depth_input, static_argnums=2)


def lower_median(depth, mask):
    found = []
    for one, on in zip(depth, mask, strict=True):
        values = np.sort(one[(one > 0) & (on > 0)])
        values = values if len(values) else np.sort(one[one > 0])
        found.append(int(values[(len(values) - 1) // 2]) if len(values) else 0)
    return found


def frame(depth, mask=None):
    depth = np.asarray(depth, np.uint16).reshape(1, 1, -1, 1)
    mask = np.full(depth.shape, 255) if mask is None else np.asarray(mask).reshape(depth.shape)
    return jnp.asarray(depth), jnp.asarray(mask.astype(np.uint8))


def test_person_depth_is_the_lower_median_of_random_frames():
    random = np.random.default_rng(0)
    depth = random.integers(0, 65536, (200, _H, _W, 1)).astype(np.uint16)
    depth[random.random(depth.shape) < 0.3] = 0
    mask = (random.random(depth.shape) < random.random((200, 1, 1, 1))).astype(np.uint8) * 255
    np.testing.assert_array_equal(person_depth(jnp.asarray(depth), jnp.asarray(mask)), lower_median(depth, mask))


def test_person_depth_with_many_equal_values():
    random = np.random.default_rng(1)
    depth = random.integers(2000, 2003, (50, _H, _W, 1)).astype(np.uint16)
    mask = np.ones_like(depth, np.uint8)
    np.testing.assert_array_equal(person_depth(jnp.asarray(depth), jnp.asarray(mask)), lower_median(depth, mask))


@pytest.mark.parametrize(
    ("depth", "mask", "median"),
    [
        ([0, 0, 0, 0], None, 0),  # nothing is valid
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),
        ([0, 40, 20, 30], [0, 0, 0, 0], 30),  # no mask: all valid pixels
        ([0, 40, 20, 30], [1, 0, 0, 0], 30),  # the mask holds invalid pixels alone: likewise
        ([0, 40, 20, 30], [0, 1, 0, 0], 40),  # one pixel
        ([0, 40, 20, 30], [0, 1, 1, 0], 20),  # even number: the lower one
        ([1, 65535, 65535, 1], None, 1),
        ([65535, 65535, 65535, 1], None, 65535),
        ([1, 0, 0, 0], None, 1),
        ([32768, 32767, 32768, 32767], None, 32767),
    ],
)
def test_person_depth_at_the_edges(depth, mask, median):
    assert person_depth(*frame(depth, mask)).tolist() == [median]


def channels(depth, name, mask=None):
    found = np.asarray(depth_input(*frame(depth, mask), name))
    assert found.dtype == np.float32
    assert found.shape == (1, 1, len(depth), 3)
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    return found[0, 0, :, 0]


def test_metric_by_hand():
    found = channels([0, 1, 2000, 4000, 8000, 12000], "metric")
    np.testing.assert_allclose(found, [1, -0.99975, -0.5, 0, 1, 1], atol=1e-6)


def test_relative_by_hand():
    # The lower median of the valid depths is 3000; 300 mm are one unit; the far end is 2.
    found = channels([0, 2000, 2700, 3000, 3150, 9000], "relative")
    np.testing.assert_allclose(found, [2, -2, -1, 0, 0.5, 2], atol=1e-6)


def test_relative_masked_by_hand():
    # The person's median is 2700; what is not the person lies at the far end.
    found = channels([0, 2000, 2700, 3000, 3150, 9000], "relative_masked", [1, 0, 1, 1, 0, 0])
    np.testing.assert_allclose(found, [2, 2, 0, 1, 2, 2], atol=1e-6)


@pytest.mark.parametrize("name", sorted(DEPTH_REPRESENTATIONS))
def test_frames_without_a_valid_pixel_lie_at_the_far_end(name):
    far = channels([0, 0, 0], name)
    np.testing.assert_array_equal(far, [1.0 if name == "metric" else 2.0] * 3)


@pytest.mark.parametrize("name", sorted(DEPTH_REPRESENTATIONS))
def test_invalid_pixels_look_like_the_farthest(name):
    found = channels([0, 2500, 2500, 65535], name)
    assert found[0] == found[3] == found.max()


@pytest.mark.parametrize("name", ["relative", "relative_masked"])
def test_relative_does_not_depend_on_the_distance(name):
    random = np.random.default_rng(2)
    depth = random.integers(2000, 4000, (3, _H, _W, 1)).astype(np.uint16)
    depth[random.random(depth.shape) < 0.3] = 0
    mask = (random.random(depth.shape) < 0.5).astype(np.uint8)
    moved = np.where(depth > 0, depth + 1234, 0).astype(np.uint16)
    near, far = (depth_input(jnp.asarray(one), jnp.asarray(mask), name) for one in (depth, moved))
    np.testing.assert_array_equal(near, far)
    assert np.ptp(np.asarray(near)) > 1


def test_unknown_representation():
    with pytest.raises(KeyError, match="nearest"):
        depth_input(*frame([1]), "nearest")


def test_rgb_by_hand():
    unit = jnp.asarray([[[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.2, 0.4, 0.8]]]])
    expected = [
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225],
        [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.8 - 0.406) / 0.225],
    ]
    found = normalise_rgb(unit)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(normalise_rgb(unit[0, 0]), found[0, 0])
