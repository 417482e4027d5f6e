"""From surfaces to what a structured-light depth camera and a colour camera would deliver.

Depth noise sigma = 1.4e-3 z^2 m and disparity step (2.73 z^2 + 0.74 z) mm follow Kinect v1 calibrations
(Khoshelham and Elberink, doi:10.3390/s120201437; Smisek et al., doi:10.1007/978-1-4471-4640-7_1).
Random numbers are sums of integers, so they are the same on every machine.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfds_builders.synthetic_rgbd import render
from tfds_builders.synthetic_rgbd.config import SyntheticRgbdConfig
from tfds_builders.synthetic_rgbd.render import Array

STEP_QUADRATIC, STEP_LINEAR = 2.73e-3, 0.74e-3
EDGE_M = 0.10
GRAZING_COSINE = 0.22
_DRAWS = 6


class Settings(NamedTuple):
    """The knobs that are compiled in."""

    height: int
    width: int
    rgb_blur_px: float
    rgb_noise: float
    depth_noise: float
    depth_step_scale: float
    max_depth_m: float
    edge_hole_rate: float
    grazing_hole_rate: float
    dark_hole_rate: float
    random_hole_rate: float
    projector_baseline_m: float


def settings(config: SyntheticRgbdConfig) -> Settings:
    """The part of `config` that the sensors need."""
    return Settings(*(getattr(config, name) for name in Settings._fields))


class Images(NamedTuple):
    """A batch: rgb uint8 [F, H, W, 3], depth uint16 [F, H, W] millimetres, mask uint8 [F, H, W]."""

    rgb: np.ndarray
    depth: np.ndarray
    mask: np.ndarray


def take_images(parts: render.Cones, scene: render.View, key: np.ndarray, knobs: Settings) -> Images:
    """Renders a batch of frames; `key` uint32 [F, 2] seeds each frame's noise.

    Call it within `draws.exact()`: in float64, a frame's pixels then depend neither on its batch nor
    on the machine. It is several programs because XLA, given one, computes each surface anew for every
    neighbour that reads it.
    """
    surface = render.trace(parts, scene, knobs.height, knobs.width)
    words = _draw(key, knobs.height, knobs.width)
    rgb = sense_color(surface.color, scene.light[:, 7:10], words[:, :3], knobs)
    depth = sense_depth(surface, scene.intrinsics[:, 0], words[:, 3:], knobs)
    mask = surface.person.astype(jnp.uint8) * 255
    return Images(np.asarray(rgb), np.asarray(depth), np.asarray(mask))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, height: int, width: int) -> Array:
    """Random uint64 [F, _DRAWS, H, W]: each frame's from its own key."""
    keys = jax.random.wrap_key_data(key, impl="threefry2x32")
    return jax.vmap(lambda k: jax.random.bits(k, (_DRAWS, height, width), jnp.uint64))(keys)


def _normal(word: Array) -> Array:
    """About standard normal from uint64: the sum of four uniform 16-bit numbers, bounded by 3.46."""
    total = jnp.asarray(sum((word >> shift) & 0xFFFF for shift in (0, 16, 32, 48)))
    return (total.astype(jnp.float64) - 2.0 * 65535.0) / (65536.0 * (4.0 / 12.0) ** 0.5)


def _uniform(word: Array) -> Array:
    """Uniform in (0, 1) from 32 random bits in a uint64."""
    return (word.astype(jnp.float64) + 0.5) / 2.0**32


def _blur(image: Array, sigma: float) -> Array:
    """Gaussian blur of [F, H, W, 3] over rows and columns; the border is repeated."""
    if sigma <= 0:
        return image
    reach = max(1, int(2.5 * sigma + 0.5))
    weights = [2.718281828459045 ** (-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    for axis in (1, 2):
        pads = [(0, 0)] * 4
        pads[axis] = (reach, reach)
        padded, size = jnp.pad(image, pads, mode="edge"), image.shape[axis]
        shifted = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) * w for i, w in enumerate(weights))
        image = jnp.asarray(sum(shifted)) / sum(weights)
    return image


@functools.partial(jax.jit, static_argnums=3)
def sense_color(light: Array, gain: Array, words: Array, knobs: Settings) -> Array:
    """Linear light [F, H, W, 3] through blur, gain [F, 3], shot and read noise and gamma 2 to uint8.

    `words` uint64 [F, 3, H, W] are random bits.
    """
    signal = jnp.maximum(_blur(light, knobs.rgb_blur_px) * gain[:, None, None, :], 0.0)
    deviation = knobs.rgb_noise * jnp.sqrt(0.15 + 1.7 * signal)  # equals the knob at mid grey, 0.5
    noisy = signal + deviation * jnp.moveaxis(_normal(words), 1, -1)
    return jnp.round(255.0 * jnp.sqrt(jnp.clip(noisy, 0.0, 1.0))).astype(jnp.uint8)


def quantise(depth: Array, scale: float) -> Array:
    """Depth in metres on the sensor's steps: neighbours differ by scale (2.73 z^2 + 0.74 z) mm.

    The level number is the integral of dz / step(z) = ln(z / (q z + l)) / l, which is inverted exactly.
    """
    if scale <= 0:
        return depth
    unit = STEP_LINEAR * scale
    level = jnp.round(jnp.log(depth / (STEP_QUADRATIC * depth + STEP_LINEAR)) / unit)
    power = jnp.exp(level * unit)
    return STEP_LINEAR * power / (1.0 - STEP_QUADRATIC * power)


def shadow(depth: Array, focal: Array, baseline: float) -> Array:
    """Pixels [F, H, W] that the projector, `baseline` metres to the right, cannot reach.

    A pixel in column c lies in the projector's column c - focal * baseline / Z; along a scan line it is
    hidden if a pixel further right has a smaller one.
    """
    column = jnp.arange(depth.shape[2])[None, None, :] - focal[:, None, None] * baseline / depth
    rightmost = jax.lax.cummin(column, axis=2, reverse=True)
    return column > rightmost + 0.3


def _beside_edge(depth: Array) -> Array:
    """Pixels whose row or column bends by more than EDGE_M of depth.

    The bend is taken in 1 / Z, where every plane is straight: a floor seen at a low angle has no edges.
    """
    inverse = 1.0 / depth
    bend = 0.0
    for axis in (1, 2):
        pads = [(0, 0)] * 3
        pads[axis] = (1, 1)
        padded, size = jnp.pad(inverse, pads, mode="edge"), inverse.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in (0, 2))
        bent = jnp.abs(before + after - 2.0 * inverse)
        inner = (jax.lax.broadcasted_iota(jnp.int32, depth.shape, axis) % (size - 1)) > 0
        bend = jnp.maximum(bend, jnp.where(inner, bent, 0.0))
    return bend * depth**2 > EDGE_M


@functools.partial(jax.jit, static_argnums=3)
def sense_depth(surface: render.Surface, focal: Array, words: Array, knobs: Settings) -> Array:
    """uint16 millimetres [F, H, W], 0 where the sensor gives nothing.

    Args:
        surface: what the pixels see, each [F, H, W].
        focal: pixels [F].
        words: random bits, uint64 [F, 3, H, W].
        knobs: sensor settings.
    """
    true, noise = surface.depth, _normal(words[:, 0])
    chances = [_uniform(words[:, 1] >> 32), _uniform(words[:, 1] & 0xFFFFFFFF), _uniform(words[:, 2] >> 32)]
    noisy = jnp.maximum(true + knobs.depth_noise * true**2 * noise, render.NEAREST_M)
    measured = quantise(noisy, knobs.depth_step_scale)
    hole = shadow(true, focal, knobs.projector_baseline_m)
    hole |= _beside_edge(true) & (chances[0] < knobs.edge_hole_rate)
    grazing = (surface.facing < GRAZING_COSINE) & (chances[1] < knobs.grazing_hole_rate)
    hole |= grazing | (chances[1] < knobs.dark_hole_rate * surface.dark)
    hole |= chances[2] < knobs.random_hole_rate
    hole |= (measured > knobs.max_depth_m) | (true > knobs.max_depth_m)
    return jnp.where(hole, 0.0, jnp.round(1000.0 * measured)).astype(jnp.uint16)


def max_batch(config: SyntheticRgbdConfig) -> int:
    """Frames per device call: about 2^15 rays, so that arrays stay in the caches."""
    return max(1, 2**15 // (config.height * config.width))
