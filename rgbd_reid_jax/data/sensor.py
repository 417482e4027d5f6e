"""Errors of depth sensors as augmentation: pure functions of (depth in mm, key), on the stored image.

- Quantisation: a sensor that triangulates measures disparity, the inverse of depth, in equal steps, so two readings
  lie k Z^2 apart (Khoshelham and Elberink, Sensors 2012, doi:10.3390/s120201437: 2.85 mm at 1 m for the Kinect). The
  phase of the steps is random for each image; unlike noise, the steps make plateaus.
- Holes: patches without a reading, as dark or shiny cloth and hair leave them.
"""

import jax
import jax.numpy as jnp

from rgbd_reid_jax.data.augment import Augmentation

_MM_AT_STEP = 1000.0  # the distance at which `depth_step` holds
_PATCHES = (32, 16)  # patches over an image's height and width
_NEAREST_MM, _FARTHEST_MM = 1.0, 65535.0


def random_depth(key: jax.Array, depth_mm: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Depth with the errors that `augmentation` asks for.

    Args:
        key: PRNG key.
        depth_mm: uint16 [B, H, W, 1], millimetres, 0 = no reading.
        augmentation: strengths; at 0 each part is left out.

    Returns:
        uint16 [B, H, W, 1]; without a reading where there was none.
    """
    step_key, hole_key = jax.random.split(key)
    batch, height, width, _ = depth_mm.shape
    if augmentation.depth_step > 0:
        phase = jax.random.uniform(step_key, (batch, 1, 1, 1))
        depth_mm = quantise(depth_mm, augmentation.depth_step, phase)
    if augmentation.depth_holes > 0:
        holes = jax.random.bernoulli(hole_key, augmentation.depth_holes, (batch, *_PATCHES))
        rows, columns = (
            jnp.arange(size) * patches // size for size, patches in zip((height, width), _PATCHES, strict=True)
        )
        depth_mm = jnp.where(holes[:, rows][:, :, columns][..., None], jnp.zeros_like(depth_mm), depth_mm)
    return depth_mm


def quantise(depth_mm: jax.Array, step: float, phase: jax.Array) -> jax.Array:
    """Depth rounded in equal steps of 1/Z.

    Args:
        depth_mm: uint16 [B, H, W, 1], 0 = no reading.
        step: distance between two readings at 1 m, in mm.
        phase: float32 [B, 1, 1, 1] in [0, 1): where the steps lie.

    Returns:
        uint16 [B, H, W, 1].
    """
    per_inverse_mm = _MM_AT_STEP**2 / step  # steps of disparity in 1 / mm
    inverse = per_inverse_mm / jnp.maximum(depth_mm.astype(jnp.float32), _NEAREST_MM)
    rounded = jnp.maximum(jnp.round(inverse + phase) - phase, 0.5)
    reading = jnp.clip(jnp.round(per_inverse_mm / rounded), _NEAREST_MM, _FARTHEST_MM)
    return jnp.where(depth_mm == 0, depth_mm, reading.astype(jnp.uint16))
