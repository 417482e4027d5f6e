"""Another background: the person stays, the surroundings are those of another image, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.background import swap_background
from rgbd_reid_jax.data.inputs import InputSpec, train_input


@pytest.fixture(scope="module")
def images():
    """Six images of one value each, and masks with a box at another place in each."""
    unit = jnp.broadcast_to(jnp.arange(6.0)[:, None, None, None], (6, 8, 4, 3))
    mask = np.zeros((6, 8, 4, 1), np.uint8)
    for index in range(6):
        mask[index, index : index + 3, 1:3] = 255
    return unit, mask


def test_the_person_stays_and_the_rest_is_another_image(images):
    unit, mask = images
    found = np.asarray(swap_background(jax.random.key(3), unit, jnp.asarray(mask), 1.0))
    person = np.broadcast_to(mask > 0, found.shape)
    np.testing.assert_array_equal(found[person], np.asarray(unit)[person])
    donors = np.array([np.unique(found[index][~person[index]]) for index in range(6)])
    assert donors.shape == (6, 1)  # one donor each
    shift = (np.arange(6) - donors[:, 0]) % 6
    assert len(set(shift)) == 1
    assert shift[0] != 0


def test_probability_zero_and_an_empty_mask_change_nothing(images):
    unit, mask = images
    np.testing.assert_array_equal(swap_background(jax.random.key(0), unit, jnp.asarray(mask), 0.0), unit)
    empty = jnp.zeros_like(jnp.asarray(mask))
    np.testing.assert_array_equal(swap_background(jax.random.key(0), unit, empty, 1.0), unit)


def test_the_share_of_swaps_is_the_probability(images):
    unit, mask = images
    many = jnp.tile(unit, (200, 1, 1, 1)) + jnp.arange(1200.0)[:, None, None, None]
    masks = np.tile(mask, (200, 1, 1, 1))
    found = swap_background(jax.random.key(5), many, jnp.asarray(masks), 0.3)
    share = float((found != many).any(axis=(1, 2, 3)).mean())
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1200)


def test_a_batch_of_one_has_no_other_background(images):
    unit, mask = images
    np.testing.assert_array_equal(swap_background(jax.random.key(1), unit[:1], jnp.asarray(mask[:1]), 1.0), unit[:1])


def test_other_random_numbers_stay_what_they_are(images):
    _, mask = images
    rgb = np.random.default_rng(0).integers(0, 255, (6, 8, 4, 3)).astype(np.uint8)
    spec, key = InputSpec(8, 4, "relative"), jax.random.key(2)
    batch = {"rgb": rgb, "mask": np.full_like(mask, 255)}  # nothing but person: a swap changes no pixel
    plain = Augmentation(gain=0.2, grey=0.5)
    swapped = Augmentation(gain=0.2, grey=0.5, background=1.0)
    one, other = (train_input(spec, "rgb", batch, key, augmentation) for augmentation in (plain, swapped))
    np.testing.assert_array_equal(one, other)
