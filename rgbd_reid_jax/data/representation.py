"""How raw images become the network's input, on the device.

Raw data travel as uint8 RGB and uint16 millimetres; here they become float32 of about unit scale.
What a network sees of depth decides more than most layers do, so each choice has a name:

- `metric`: depth over the sensor's range (8 m), shifted to [-1, 1]. What a plain 8-bit depth image
  holds (the paper's, up to an unpublished scale). Distance to the camera dominates shape.
- `relative`: depth minus the person's median depth, in units of 0.3 m, clipped to [-2, 2]. Nearer is
  negative. Shape of body and limbs fill the range; the distance to the camera is gone; the background
  saturates.
- `relative_masked`: as `relative`, with all that is not the person set to the far end.

Invalid pixels (0 mm) lie mostly along silhouettes and take the far end, as the background does.
Each representation is copied to three channels, so that networks of both modalities have one shape
and the student can start from the teacher's weights (arXiv:1810.11641, section on step II).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
METRIC_RANGE_MM = 8000.0
RELATIVE_SCALE_MM = 300.0
RELATIVE_LIMIT = 2.0
_DEPTH_BITS = 16


def person_depth(depth_mm: jax.Array, mask: jax.Array) -> jax.Array:
    """The lower median of the person's valid depths, exactly, by bisection on the 16 bits.

    Where no valid pixel lies on the mask, all valid pixels count; where none is valid, 0.

    Args:
        depth_mm: uint16 [B, H, W, 1], millimetres, 0 = invalid.
        mask: uint8 [B, H, W, 1], non-zero on the person.

    Returns:
        int32 [B], millimetres.
    """
    depth = depth_mm.astype(jnp.int32).reshape(depth_mm.shape[0], -1)
    valid = depth > 0
    on_person = valid & (mask.reshape(depth.shape) > 0)
    counted = jnp.where(on_person.any(axis=1, keepdims=True), on_person, valid)
    half = (counted.sum(axis=1) + 1) // 2  # the lower median is the half-th smallest

    def keep_bit(index: int, low: jax.Array) -> jax.Array:
        bit = jnp.left_shift(1, _DEPTH_BITS - 1 - index)
        middle = low + bit - 1  # does the median exceed the lower half of the interval?
        below = (counted & (depth <= middle[:, None])).sum(axis=1)
        return jnp.where(below < half, low + bit, low)

    return jax.lax.fori_loop(0, _DEPTH_BITS, keep_bit, jnp.zeros(depth.shape[0], jnp.int32))


def _metric(depth_mm: jax.Array, mask: jax.Array) -> jax.Array:
    del mask
    depth = jnp.where(depth_mm == 0, METRIC_RANGE_MM, depth_mm.astype(jnp.float32))
    return jnp.clip(depth / METRIC_RANGE_MM, 0.0, 1.0) * 2.0 - 1.0


def _relative(depth_mm: jax.Array, mask: jax.Array) -> jax.Array:
    reference = person_depth(depth_mm, mask).astype(jnp.float32)[:, None, None, None]
    offset = (depth_mm.astype(jnp.float32) - reference) / RELATIVE_SCALE_MM
    return jnp.where(depth_mm == 0, RELATIVE_LIMIT, jnp.clip(offset, -RELATIVE_LIMIT, RELATIVE_LIMIT))


def _relative_masked(depth_mm: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask > 0, _relative(depth_mm, mask), RELATIVE_LIMIT)


DEPTH_REPRESENTATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "metric": _metric,
    "relative": _relative,
    "relative_masked": _relative_masked,
}


def depth_input(depth_mm: jax.Array, mask: jax.Array, representation: str) -> jax.Array:
    """The network's depth input.

    Args:
        depth_mm: uint16 [B, H, W, 1], millimetres, 0 = invalid.
        mask: uint8 [B, H, W, 1], non-zero on the person.
        representation: a key of `DEPTH_REPRESENTATIONS`.

    Returns:
        float32 [B, H, W, 3], three equal channels.
    """
    one = DEPTH_REPRESENTATIONS[representation](depth_mm, mask)
    return jnp.broadcast_to(one, (*one.shape[:-1], 3))


def blank(modality: str, representation: str) -> float:
    """The input where nothing was seen: the mean colour, or what an invalid pixel of depth becomes."""
    if modality == "rgb":
        return 0.0
    return 1.0 if representation == "metric" else RELATIVE_LIMIT


def normalise_rgb(unit: jax.Array) -> jax.Array:
    """Colour in [0, 1], float32 [..., 3], minus ImageNet's mean, over its standard deviation."""
    mean, deviation = (
        jnp.asarray(values).reshape((1,) * (unit.ndim - 1) + (3,)) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (unit - mean) / deviation
