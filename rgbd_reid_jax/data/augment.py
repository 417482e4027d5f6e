"""Augmentation as pure functions of (images, key), run on the device inside the step.

Geometry (the paper's): a random crop of 64..100 % of the area with height/width between 2 and 3
(10 tries, else the whole image), resized to the network's size, and a horizontal flip. One transform
serves all images of a frame, so RGB and depth stay aligned. Crop and resize are two small matrix
products per image, which suits every accelerator.

Colour (RGB only, off in the paper's recipe): gain and offset per channel, gamma, random mixing to
grey, channel shuffle. Identity-trained networks otherwise learn clothes, not shape (channel
augmentation: Ye et al., ICCV 2021).
"""

import dataclasses

import jax
import jax.numpy as jnp

_TRIES = 10
_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which augmentation a stage uses; the defaults are the paper's.

    Attributes:
        crop_area: least and largest share of the area that a crop keeps; (1, 1) turns it off.
        crop_ratio: least and largest height/width of a crop.
        flip: probability of a horizontal flip.
        gain: half-width of the channel gains around 1.
        offset: half-width of the channel offsets, in units of the full range.
        gamma: half-width of log2(gamma).
        grey: probability of mixing the channels to one (with random weights).
        channel_shuffle: probability of a random order of the channels.
        depth_noise: standard deviation added to the depth input, in its units.
    """

    crop_area: tuple[float, float] = (0.64, 1.0)
    crop_ratio: tuple[float, float] = (2.0, 3.0)
    flip: float = 0.5
    gain: float = 0.0
    offset: float = 0.0
    gamma: float = 0.0
    grey: float = 0.0
    channel_shuffle: float = 0.0
    depth_noise: float = 0.0


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
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    shape = (batch, _TRIES)
    low, high = augmentation.crop_area
    area = jax.random.uniform(area_key, shape, minval=low, maxval=high) * height * width
    ratio = jax.random.uniform(ratio_key, shape, minval=augmentation.crop_ratio[0], maxval=augmentation.crop_ratio[1])
    tall, wide = jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)
    fits = (tall <= height) & (wide <= width)
    first = jnp.argmax(fits, axis=1)[:, None]
    tall = jnp.take_along_axis(tall, first, axis=1)[:, 0]
    wide = jnp.take_along_axis(wide, first, axis=1)[:, 0]
    some = fits.any(axis=1)
    tall, wide = jnp.where(some, tall, height), jnp.where(some, wide, width)
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
    rows = _interpolation(boxes[:, 0], boxes[:, 2], images.shape[1], height)
    columns = _interpolation(boxes[:, 1], jnp.abs(boxes[:, 3]), images.shape[2], width)
    columns = jnp.where((boxes[:, 3] < 0)[:, None, None], columns[:, ::-1], columns)
    high = jax.lax.Precision.HIGHEST  # accelerators would round the pixels to bf16
    tall = jnp.einsum("bhy,byxc->bhxc", rows, images, precision=high)
    return jnp.einsum("bwx,bhxc->bhwc", columns, tall, precision=high)


def resize(images: jax.Array, height: int, width: int) -> jax.Array:
    """Plain bilinear resize of float32 [B, H, W, C]; the same array where the size is right."""
    if images.shape[1:3] == (height, width):
        return images
    box = jnp.asarray([0.0, 0.0, images.shape[1], images.shape[2]])
    return crop_and_resize(images, jnp.tile(box, (images.shape[0], 1)), height, width)


def random_boxes(key: jax.Array, batch: int, height: int, width: int, augmentation: Augmentation) -> jax.Array:
    """Random crops, mirrored with probability `flip`: float32 [batch, 4] for `crop_and_resize`."""
    crop_key, flip_key = jax.random.split(key)
    boxes = random_crops(crop_key, batch, height, width, augmentation)
    sign = jnp.where(jax.random.bernoulli(flip_key, augmentation.flip, (batch,)), -1.0, 1.0)
    return boxes * jnp.stack([jnp.ones(batch), jnp.ones(batch), jnp.ones(batch), sign], axis=1)


def random_colour(key: jax.Array, unit: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Colour augmentation.

    Args:
        key: PRNG key.
        unit: float32 [B, H, W, 3] in [0, 1].
        augmentation: strengths; at 0 each part is left out.

    Returns:
        float32 [B, H, W, 3] in [0, 1].
    """
    batch = unit.shape[0]
    grey_key, weight_key, shuffle_key, order_key, gamma_key, gain_key, offset_key = jax.random.split(key, 7)
    if augmentation.grey > 0:
        weights = jax.random.dirichlet(weight_key, 3.0 * jnp.asarray(_LUMA), (batch,))
        grey = jnp.einsum("bhwc,bc->bhw", unit, weights)[..., None]
        chosen = jax.random.bernoulli(grey_key, augmentation.grey, (batch, 1, 1, 1))
        unit = jnp.where(chosen, jnp.broadcast_to(grey, unit.shape), unit)
    if augmentation.channel_shuffle > 0:
        order = jnp.argsort(jax.random.uniform(order_key, (batch, 3)), axis=1)
        chosen = jax.random.bernoulli(shuffle_key, augmentation.channel_shuffle, (batch, 1))
        order = jnp.where(chosen, order, jnp.arange(3)[None, :])
        unit = jnp.take_along_axis(unit, order[:, None, None, :], axis=3)
    if augmentation.gamma > 0:
        power = jax.random.uniform(gamma_key, (batch, 1, 1, 1), minval=-1.0, maxval=1.0) * augmentation.gamma
        unit = jnp.maximum(unit, 1e-4) ** jnp.exp2(power)
    if augmentation.gain > 0:
        unit = unit * (1 + augmentation.gain * jax.random.uniform(gain_key, (batch, 1, 1, 3), minval=-1.0, maxval=1.0))
    if augmentation.offset > 0:
        unit = unit + augmentation.offset * jax.random.uniform(offset_key, (batch, 1, 1, 3), minval=-1.0, maxval=1.0)
    return jnp.clip(unit, 0.0, 1.0)
