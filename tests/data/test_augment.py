"""Geometry: crops, resizing and mirroring against brute-force loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data import augment
from rgbd_reid_jax.data.augment import Augmentation

_KEY = jax.random.key(3)
crop_and_resize = jax.jit(augment.crop_and_resize, static_argnums=(2, 3))
resize = jax.jit(augment.resize, static_argnums=(1, 2))
random_crops = jax.jit(augment.random_crops, static_argnums=(1, 2, 3, 4))
random_boxes = jax.jit(augment.random_boxes, static_argnums=(1, 2, 3, 4))


def sample(image, box, height, width):
    """Bilinear samples at half-pixel centres, beyond the edge the edge: for boxes that are not shrunk."""
    top, left, tall, wide = box
    found = np.zeros((height, width, image.shape[2]))
    for row in range(height):
        for column in range(width):
            y = np.clip(top + (row + 0.5) * tall / height - 0.5, 0, image.shape[0] - 1)
            x = np.clip(left + (column + 0.5) * wide / width - 0.5, 0, image.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            above = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            below = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            found[row, column] = above * (1 - (y - y0)) + below * (y - y0)
    return found


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).random((3, 12, 7, 2)), jnp.float32)


def whole(images):
    return jnp.tile(jnp.asarray([[0.0, 0.0, *images.shape[1:3]]]), (images.shape[0], 1))


def test_crops_equal_a_bilinear_loop(images):
    boxes = np.array([[0, 0, 12, 7], [1.3, 2.1, 8.5, 4.2], [3, 0.5, 9, 6.5]], np.float32)
    found = crop_and_resize(images, jnp.asarray(boxes), 15, 9)
    expected = [sample(np.asarray(image), box, 15, 9) for image, box in zip(images, boxes, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(130, 70), (200, 30), (60, 90), (9, 5)])
def test_neighbouring_pixels_and_matrices_agree(size):
    """Images over the limit, larger, smaller and much smaller, mirrored and not."""
    large = jnp.asarray(np.random.default_rng(1).random((6, 130, 70, 2)), jnp.float32)
    boxes = random_boxes(_KEY, 6, 130, 70, Augmentation(crop_area=(0.3, 1.0), crop_ratio=(1.0, 3.0)))
    assert len(set(np.sign(boxes[:, 3]))) == 2
    matrices = jax.jit(augment._by_matrices, static_argnums=(2, 3))(large, boxes, *size)
    np.testing.assert_allclose(crop_and_resize(large, boxes, *size), matrices, atol=2e-5)
    taps = jax.jit(lambda images, boxes: augment.crop_and_resize(images, boxes, *size)).lower(large, boxes).as_text()
    assert "dot_general" not in taps  # a CPU takes the other way


def test_the_whole_box_at_the_same_size_is_the_image(images):
    np.testing.assert_allclose(crop_and_resize(images, whole(images), 12, 7), images, atol=1e-6)
    assert augment.resize(images, 12, 7) is images


def test_a_box_of_whole_pixels_is_a_slice(images):
    boxes = jnp.tile(jnp.asarray([[2.0, 1.0, 6.0, 4.0]]), (3, 1))
    np.testing.assert_allclose(crop_and_resize(images, boxes, 6, 4), images[:, 2:8, 1:5], atol=1e-6)


def test_a_negative_width_mirrors_the_columns(images):
    boxes = jnp.asarray([[1.3, 2.1, 8.5, 4.2]] * 3)
    sign = jnp.asarray([[1.0, 1.0, 1.0, -1.0]])
    plain, mirrored = crop_and_resize(images, boxes, 5, 6), crop_and_resize(images, boxes * sign, 5, 6)
    np.testing.assert_allclose(mirrored, plain[:, :, ::-1], atol=1e-6)
    assert np.abs(mirrored - plain).max() > 0.1


@pytest.mark.parametrize("size", [(5, 3), (4, 7), (20, 3)])
def test_resize_equals_jax_image(images, size):
    expected = jax.image.resize(images, (3, *size, 2), "linear", antialias=True)
    np.testing.assert_allclose(resize(images, *size), expected, atol=1e-5)


def test_shrinking_is_antialiased():
    stripes = jnp.tile(jnp.asarray([0.0, 1.0, 1.0, 0.0]), 8)[None, :, None, None] * jnp.ones((1, 1, 8, 1))
    small = np.asarray(resize(stripes, 8, 2))
    assert small.mean() == pytest.approx(0.5, abs=0.01)  # the edges count a little more than once
    np.testing.assert_allclose(small[0, 1:-1], 0.5, atol=1e-6)
    coarse = jnp.tile(jnp.asarray([1.0, 0.0, 0.0, 0.0]), 8)[None, :, None, None] * jnp.ones((1, 1, 8, 1))
    np.testing.assert_allclose(resize(coarse, 8, 2)[0, 1:-1], 0.25, atol=1e-6)  # samples without it would be 0
    np.testing.assert_allclose(resize(jnp.full((1, 30, 17, 1), 0.7), 8, 4), 0.7, atol=1e-6)


def test_crops_lie_inside_and_keep_area_and_ratio():
    augmentation = Augmentation()
    boxes = np.asarray(random_crops(_KEY, 4000, 128, 64, augmentation))
    top, left, tall, wide = boxes.T
    assert (boxes >= 0).all()
    assert (top + tall <= 128 + 1e-3).all()
    assert (left + wide <= 64 + 1e-3).all()
    area, ratio = tall * wide / (128 * 64), tall / wide
    assert (area > 0.64 - 1e-4).all()
    assert (area < 1 + 1e-4).all()
    assert (ratio > 2 - 1e-4).all()  # the whole image has a ratio of 2 too
    assert (ratio < 3 + 1e-4).all()
    assert area.min() < 0.67
    assert ratio.max() > 2.5
    assert np.ptp(top) > 15
    assert np.ptp(left) > 8


def test_images_in_which_no_crop_fits_stay_whole():
    boxes = random_crops(_KEY, 5, 10, 100, Augmentation())
    np.testing.assert_array_equal(boxes, np.tile([[0, 0, 10, 100]], (5, 1)))


def test_full_area_turns_crops_off():
    boxes = random_crops(_KEY, 50, 128, 64, Augmentation(crop_area=(1.0, 1.0), crop_ratio=(2.0, 2.0)))
    np.testing.assert_allclose(boxes, np.tile([[0, 0, 128, 64]], (50, 1)), atol=1e-3)


def test_flips_come_as_often_as_asked():
    boxes_of = jax.jit(lambda flip: augment.random_boxes(_KEY, 2000, 64, 32, Augmentation(flip=flip)))
    for flip, low, high in [(0.0, 0, 0), (1.0, 1, 1), (0.3, 0.26, 0.34)]:
        boxes = np.asarray(boxes_of(flip))
        assert low <= (boxes[:, 3] < 0).mean() <= high
        assert (boxes[:, :3] >= 0).all()


def test_boxes_are_a_function_of_the_key():
    first, again = (random_boxes(_KEY, 2000, 64, 32, Augmentation()) for _ in range(2))
    other = random_boxes(jax.random.key(4), 2000, 64, 32, Augmentation())
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any(axis=1).all()


random_erasing = jax.jit(augment.random_erasing, static_argnums=(1, 2, 3, 4))


def test_what_is_erased_is_one_rectangle_of_the_asked_area_and_ratio():
    masks = np.asarray(random_erasing(_KEY, 3000, 128, 64, Augmentation(erase=1.0)))[..., 0]
    areas, ratios, tops, lefts = [], [], [], []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == tall * wide == len(rows) * len(columns)
        areas.append(tall * wide / mask.size)
        ratios.append(tall / wide)
        tops.append(rows[0])
        lefts.append(columns[0])
    assert 0.015 < min(areas) < 0.03  # to half a pixel at each edge
    assert 0.37 < max(areas) < 0.42
    assert 0.25 < min(ratios) < 0.5
    assert 2.5 < max(ratios) < 4.0
    assert np.mean(areas) == pytest.approx(0.21, abs=0.02)  # uniform, but for large wide ones that do not fit
    assert min(tops) == min(lefts) == 0
    assert max(tops) > 90
    assert max(lefts) > 45


def test_erasing_comes_as_often_as_asked():
    for probability, low, high in [(0.0, 0, 0), (1.0, 1, 1), (0.5, 0.46, 0.54)]:
        some = Augmentation(erase=probability, erase_area=(0.1, 0.2), erase_ratio=(1.0, 1.0))  # it always fits
        masks = np.asarray(random_erasing(_KEY, 2000, 16, 8, some))
        assert low <= masks.any(axis=(1, 2, 3)).mean() <= high


def test_an_image_in_which_nothing_fits_is_left_whole():
    wide = Augmentation(erase=1.0, erase_area=(0.9, 0.9), erase_ratio=(0.2, 0.2))
    assert not np.asarray(random_erasing(_KEY, 20, 64, 16, wide)).any()
