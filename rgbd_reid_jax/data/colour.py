"""Colour augmentation as pure functions of (images, key): RGB only, off in the paper's recipe.

Gain and offset per channel, gamma, random mixing to grey, channel shuffle; one channel in place of all three (channel
exchange: Ye et al., ICCV 2021, doi:10.1109/ICCV48922.2021.01331); brightness, contrast, saturation and hue.
Identity-trained networks otherwise learn clothes, not shape.
"""

import jax
import jax.numpy as jnp

from rgbd_reid_jax.data.augment import Augmentation

_LUMA = (0.299, 0.587, 0.114)
_EXCHANGE, _JITTER = 1, 2  # further streams of random numbers, so that the others keep theirs


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
    if augmentation.channel_exchange > 0:
        unit = _exchange(jax.random.fold_in(key, _EXCHANGE), unit, augmentation.channel_exchange)
    return _jitter(jax.random.fold_in(key, _JITTER), jnp.clip(unit, 0.0, 1.0), augmentation)


def _exchange(key: jax.Array, unit: jax.Array, probability: float) -> jax.Array:
    """One channel, of three equally likely ones, in place of all."""
    chosen_key, channel_key = jax.random.split(key)
    chosen = jax.random.bernoulli(chosen_key, probability, (unit.shape[0], 1))
    channel = jax.random.randint(channel_key, (unit.shape[0], 1), 0, 3)
    order = jnp.where(chosen, channel, jnp.arange(3)[None, :])
    return jnp.take_along_axis(unit, order[:, None, None, :], axis=3)


def _jitter(key: jax.Array, unit: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Brightness, contrast, saturation and hue, in this order, each with one random factor per image."""
    keys = jax.random.split(key, 4)

    def random(index: int, half_width: float) -> jax.Array:
        return half_width * jax.random.uniform(keys[index], (unit.shape[0], 1, 1, 1), minval=-1.0, maxval=1.0)

    if augmentation.brightness > 0:
        unit = blend(jnp.zeros_like(unit), unit, 1 + random(0, augmentation.brightness))
    if augmentation.contrast > 0:
        mean = luma(unit).mean(axis=(1, 2), keepdims=True)
        unit = blend(jnp.broadcast_to(mean, unit.shape), unit, 1 + random(1, augmentation.contrast))
    if augmentation.saturation > 0:
        unit = blend(jnp.broadcast_to(luma(unit), unit.shape), unit, 1 + random(2, augmentation.saturation))
    if augmentation.hue > 0:
        unit = shift_hue(unit, random(3, augmentation.hue))
    return unit


def luma(unit: jax.Array) -> jax.Array:
    """Grey, float32 [B, H, W, 1], of colour [B, H, W, 3], weighted as in ITU-R BT.601."""
    return (unit * jnp.asarray(_LUMA)[None, None, None, :]).sum(axis=3, keepdims=True)


def blend(one: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """(1 - factor) one + factor other, clipped to [0, 1]: images [B, H, W, 3], factor [B, 1, 1, 1]."""
    return jnp.clip(one + factor * (other - one), 0.0, 1.0)


def shift_hue(unit: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the hue and keeps value and saturation of the HSV model.

    Args:
        unit: float32 [B, H, W, 3] in [0, 1].
        shift: float32 [B, 1, 1, 1]; 1 is the whole circle.
    """
    high, low = unit.max(axis=3), unit.min(axis=3)
    chroma = high - low
    safe = jnp.where(chroma > 0, chroma, 1.0)
    red, green, blue = unit[..., 0], unit[..., 1], unit[..., 2]
    sector = jnp.where(
        high == red, (green - blue) / safe, jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    # HSV to RGB: a channel falls from `high` by the chroma where the hue lies far from it on the circle of six.
    turned = sector[..., None] + 6 * shift + jnp.asarray([5.0, 3.0, 1.0])[None, None, None, :]
    place = turned % 6
    fall = jnp.clip(jnp.minimum(place, 4 - place), 0.0, 1.0)
    return high[..., None] - chroma[..., None] * fall
