"""Augmentation as pure functions of (images, key), run on the device inside the step.

Geometry (the paper's): a random crop of 64..100 % of the area with height/width between 2 and 3
(10 tries, else the whole image), resized to the network's size, and a horizontal flip. One transform
serves all images of a frame, so RGB and depth stay aligned. Crop and resize are two matrix products per
image, which suits every accelerator; a CPU takes each pixel's neighbours instead.

Random erasing (Zhong et al., AAAI 2020, arXiv:1708.04896): a rectangle of 2..40 % of the area with
height/width between 0.3 and 1/0.3 (10 tries, else none), filled with the mean colour, in depth with what
stands for no reading; the same rectangle in all images of a frame.

Colour (RGB only, `colour`) and depth errors (`sensor`) are files of their own.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which augmentation a stage uses; the defaults are the paper's.

    Attributes:
        crop_area: least and largest share of the area that a crop keeps; (1, 1) turns it off.
        crop_ratio: least and largest height/width of a crop.
        flip: probability of a horizontal flip.
        erase: probability of random erasing.
        erase_area: least and largest share of the area that is erased.
        erase_ratio: least and largest height/width of what is erased.
        background: probability that a colour image gets the surroundings of another one (needs masks while training).
        gain: half-width of the channel gains around 1.
        offset: half-width of the channel offsets, in units of the full range.
        gamma: half-width of log2(gamma).
        grey: probability of mixing the channels to one (with random weights).
        channel_shuffle: probability of a random order of the channels.
        channel_exchange: probability that one random channel takes the place of all three.
        brightness: half-width of the brightness factor around 1.
        contrast: half-width of the contrast factor around 1.
        saturation: half-width of the saturation factor around 1.
        hue: half-width of the shift on the circle of hues, whose length is 1.
        depth_noise: standard deviation added to the depth input, in its units.
        depth_step: step between two readings of depth at 1 m, in mm; it grows with the square of the distance.
        depth_holes: share of the image that loses its reading, in patches.
    """

    crop_area: tuple[float, float] = (0.64, 1.0)
    crop_ratio: tuple[float, float] = (2.0, 3.0)
    flip: float = 0.5
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    background: float = 0.0
    gain: float = 0.0
    offset: float = 0.0
    gamma: float = 0.0
    grey: float = 0.0
    channel_shuffle: float = 0.0
    channel_exchange: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    depth_noise: float = 0.0
    depth_step: float = 0.0
    depth_holes: float = 0.0


def random_crops(key: jax.Array, batch: int, height: int, width: int, augmentation: Augmentation) -> jax.Array:
    """Crop boxes as the paper's code draws them.

    Args:
        key: PRNG key.
        batch: number of boxes.
        height: image height in pixels.
        width: image width in pixels.
        augmentation: ranges of area and ratio.

    Returns:
        float32 [batch, 4]: (top, left, height, width) in pixels; the first of 10 tries that fits,
        else the whole image.
    """
    return _random_rectangles(
        key, batch, height, width, augmentation.crop_area, augmentation.crop_ratio, (height, width)
    )


def _random_rectangles(
    key: jax.Array,
    batch: int,
    height: int,
    width: int,
    areas: tuple[float, float],
    ratios: tuple[float, float],
    otherwise: tuple[float, float],
) -> jax.Array:
    """float32 [batch, 4]: (top, left, height, width) in pixels, the size `otherwise` where no try fits."""
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    shape = (batch, _TRIES)
    area = jax.random.uniform(area_key, shape, minval=areas[0], maxval=areas[1]) * height * width
    ratio = jax.random.uniform(ratio_key, shape, minval=ratios[0], maxval=ratios[1])
    tall, wide = jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)
    fits = (tall <= height) & (wide <= width)
    first = jnp.argmax(fits, axis=1)[:, None]
    tall = jnp.take_along_axis(tall, first, axis=1)[:, 0]
    wide = jnp.take_along_axis(wide, first, axis=1)[:, 0]
    some = fits.any(axis=1)
    tall, wide = jnp.where(some, tall, otherwise[0]), jnp.where(some, wide, otherwise[1])
    top = jax.random.uniform(top_key, (batch,)) * (height - tall)
    left = jax.random.uniform(left_key, (batch,)) * (width - wide)
    return jnp.stack([top, left, tall, wide], axis=1)


def _interpolation(start: jax.Array, extent: jax.Array, size_in: int, size_out: int) -> jax.Array:
    """Bilinear weights [B, size_out, size_in] that sample `extent` pixels from `start`, half-pixel centres.

    When shrinking the triangle widens (antialiasing); at the image's edge weights are renormalised.
    """
    scale = extent / size_out
    centres = start[:, None] + (jnp.arange(size_out) + 0.5)[None, :] * scale[:, None] - 0.5
    reach = jnp.maximum(scale, 1.0)[:, None, None]
    distance = jnp.abs(centres[:, :, None] - jnp.arange(size_in, dtype=jnp.float32)[None, None, :])
    weights = jnp.maximum(1.0 - distance / reach, 0.0)
    return weights / jnp.maximum(weights.sum(axis=2, keepdims=True), 1e-6)


def crop_and_resize(images: jax.Array, boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear crops.

    Args:
        images: float32 [B, H, W, C].
        boxes: float32 [B, 4], (top, left, height, width) in pixels; a negative width mirrors
            the crop: its columns run from left + |width| back to left.
        height: output height.
        width: output width.

    Returns:
        float32 [B, height, width, C].
    """
    by_taps, by_matrices = (functools.partial(one, height=height, width=width) for one in (_by_taps, _by_matrices))
    return jax.lax.platform_dependent(images, boxes, cpu=by_taps, default=by_matrices)


def _by_matrices(images: jax.Array, boxes: jax.Array, height: int, width: int) -> jax.Array:
    """`crop_and_resize` as two matrix products per image, most of whose factors are 0: for accelerators."""
    rows = _interpolation(boxes[:, 0], boxes[:, 2], images.shape[1], height)
    columns = _interpolation(boxes[:, 1], jnp.abs(boxes[:, 3]), images.shape[2], width)
    columns = jnp.where((boxes[:, 3] < 0)[:, None, None], columns[:, ::-1], columns)
    high = jax.lax.Precision.HIGHEST  # accelerators would round the pixels to bf16
    tall = jnp.einsum("bhy,byxc->bhxc", rows, images, precision=high)
    return jnp.einsum("bwx,bhxc->bhwc", columns, tall, precision=high)


def _by_taps(images: jax.Array, boxes: jax.Array, height: int, width: int) -> jax.Array:
    """`crop_and_resize` from those pixels alone whose weight is not 0: for CPUs, which lack the arithmetic."""
    rows, row_weights = _taps(boxes[:, 0], boxes[:, 2], images.shape[1], height)
    columns, column_weights = _taps(boxes[:, 1], jnp.abs(boxes[:, 3]), images.shape[2], width)
    mirrored = (boxes[:, 3] < 0)[:, None, None]
    columns, column_weights = (jnp.where(mirrored, one[:, ::-1], one) for one in (columns, column_weights))

    def crop(
        images: jax.Array, rows: jax.Array, row_weights: jax.Array, columns: jax.Array, column_weights: jax.Array
    ) -> jax.Array:
        # image by image: with the batch's rows as indices XLA would do the rows of all devices on each
        pixels = jax.vmap(lambda image, row, column: image.at[row, column].get(mode="promise_in_bounds"))

        def tall(column: jax.Array) -> jax.Array:
            parts = [
                pixels(images, rows[:, :, None, k], column) * row_weights[:, :, None, k, None]
                for k in range(rows.shape[2])
            ]
            return functools.reduce(jnp.add, parts)

        parts = [tall(columns[:, None, :, k]) * column_weights[:, None, :, k, None] for k in range(columns.shape[2])]
        return functools.reduce(jnp.add, parts)

    # What enters and leaves a conditional is stored. Else XLA computes places, weights and the pixels' values anew for
    # each use of a pixel: it drops barriers before it fuses, but by then has left their values alone.
    always = jax.lax.optimization_barrier(jnp.bool_(True))
    like = jnp.zeros((images.shape[0], height, width, images.shape[3]), images.dtype)
    return jax.lax.cond(always, crop, lambda *_: like, images, rows, row_weights, columns, column_weights)


def _taps(start: jax.Array, extent: jax.Array, size_in: int, size_out: int) -> tuple[jax.Array, jax.Array]:
    """The non-zero entries of `_interpolation`: their columns int32 and values float32, both [B, size_out, K]."""
    scale = extent / size_out
    centres = start[:, None] + (jnp.arange(size_out) + 0.5)[None, :] * scale[:, None] - 0.5
    reach = jnp.maximum(scale, 1.0)[:, None]
    count = 2 * math.ceil(max(size_in / size_out, 1.0))
    places = (jnp.floor(centres - reach).astype(jnp.int32) + 1)[:, :, None] + jnp.arange(count)[None, None, :]
    distance = jnp.abs(centres[:, :, None] - places.astype(jnp.float32))
    weights = jnp.maximum(1.0 - distance / reach[:, :, None], 0.0)
    weights = jnp.where((places >= 0) & (places < size_in), weights, 0.0)
    weights = weights / jnp.maximum(weights.sum(axis=2, keepdims=True), 1e-6)
    return jnp.clip(places, 0, size_in - 1), weights


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """Plain bilinear resize of float32 [B, H, W, C]; the same array where the size is right."""
    if images.shape[1:3] == (height, width):
        return images
    box = jnp.asarray([0.0, 0.0, images.shape[1], images.shape[2]])
    return _by_matrices(images, jnp.tile(box, (images.shape[0], 1)), height, width)


def random_boxes(key: jax.Array, batch: int, height: int, width: int, augmentation: Augmentation) -> jax.Array:
    """Random crops, mirrored with probability `flip`: float32 [batch, 4] for `crop_and_resize`."""
    crop_key, flip_key = jax.random.split(key)
    boxes = random_crops(crop_key, batch, height, width, augmentation)
    sign = jnp.where(jax.random.bernoulli(flip_key, augmentation.flip, (batch,)), -1.0, 1.0)
    return boxes * jnp.stack([jnp.ones(batch), jnp.ones(batch), jnp.ones(batch), sign], axis=1)


def random_erasing(key: jax.Array, batch: int, height: int, width: int, augmentation: Augmentation) -> jax.Array:
    """bool [batch, height, width, 1]: the pixels to erase, those whose centre lies in the image's rectangle."""
    chosen_key, rectangle_key = jax.random.split(key)
    boxes = _random_rectangles(
        rectangle_key, batch, height, width, augmentation.erase_area, augmentation.erase_ratio, (0, 0)
    )
    rows, columns = (
        (start[:, None] <= jnp.arange(size)[None, :] + 0.5)
        & (jnp.arange(size)[None, :] + 0.5 < (start + extent)[:, None])
        for start, extent, size in ((boxes[:, 0], boxes[:, 2], height), (boxes[:, 1], boxes[:, 3], width))
    )
    chosen = jax.random.bernoulli(chosen_key, augmentation.erase, (batch, 1, 1))
    return (rows[:, :, None] & columns[:, None, :] & chosen)[..., None]
