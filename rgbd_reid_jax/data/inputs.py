"""Raw frames of one modality to the network's input: for training (augmented) and for embedding (plain).

Grey input is the control for every method: it takes away what colours tell of clothes. Zero-padding (Wu et al., ICCV
2017, doi:10.1109/ICCV.2017.575) lets one network tell the modalities apart: grey in channel 0, depth in channel 2,
zeros elsewhere.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rgbd_reid_jax.data import augment, colour, representation, sensor
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.background import swap_background

COLOURS = ("rgb", "grey")
_PADDED = {"rgb": 0, "depth": 2}  # the channel that zero-padding leaves to each modality
_SENSOR, _ERASING, _BACKGROUND = 1, 2, 3  # further streams of random numbers, so that the others keep theirs


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What the networks see.

    Attributes:
        height: input height in pixels.
        width: input width in pixels.
        depth_representation: a key of `representation.DEPTH_REPRESENTATIONS`.
        colour: "rgb", or "grey": the luma in all three channels.
        zero_padding: each modality in a channel of its own, the others zero; colour images become grey.
    """

    height: int
    width: int
    depth_representation: str
    colour: str = "rgb"
    zero_padding: bool = False


def plain_input(spec: InputSpec, modality: str, batch: Mapping[str, Any]) -> jax.Array:
    """The un-augmented input.

    Args:
        spec: size and representation.
        modality: "rgb" or "depth".
        batch: `rgb` uint8 [B, H, W, 3], or `depth` uint16 and `mask` uint8 [B, H, W, 1].

    Returns:
        float32 [B, spec.height, spec.width, 3].
    """
    if modality == "rgb":
        image = _rgb(spec, batch["rgb"].astype(jnp.float32) / 255.0)
    else:
        image = representation.depth_input(batch["depth"], batch["mask"], spec.depth_representation)
    return _channels(spec, modality, augment.resize(image, spec.height, spec.width))


def train_input(
    spec: InputSpec, modality: str, batch: Mapping[str, Any], key: jax.Array, augmentation: Augmentation
) -> jax.Array:
    """The augmented input; the geometry depends on `key` alone, so it is the same for both modalities.

    Args:
        spec: size and representation.
        modality: "rgb" or "depth".
        batch: as for `plain_input`; with `augmentation.background` also `mask` beside `rgb`.
        key: PRNG key.
        augmentation: what to do.

    Returns:
        float32 [B, spec.height, spec.width, 3].
    """
    geometry_key, value_key = jax.random.split(key)
    if modality == "rgb":
        unit = batch["rgb"].astype(jnp.float32) / 255.0
        if augmentation.background > 0:
            key = jax.random.fold_in(value_key, _BACKGROUND)
            unit = swap_background(key, unit, batch["mask"], augmentation.background)
        unit = colour.random_colour(value_key, unit, augmentation)
        image = _rgb(spec, unit)
    else:
        depth = sensor.random_depth(jax.random.fold_in(value_key, _SENSOR), batch["depth"], augmentation)
        image = representation.depth_input(depth, batch["mask"], spec.depth_representation)
        image = image[..., :1]  # the three channels stay equal: one is enough until the end
        if augmentation.depth_noise > 0:
            image = image + augmentation.depth_noise * jax.random.normal(value_key, image.shape[:-1])[..., None]
    boxes = augment.random_boxes(geometry_key, image.shape[0], image.shape[1], image.shape[2], augmentation)
    image = augment.crop_and_resize(image, boxes, spec.height, spec.width)
    if augmentation.erase > 0:
        key = jax.random.fold_in(geometry_key, _ERASING)
        erased = augment.random_erasing(key, image.shape[0], spec.height, spec.width, augmentation)
        image = jnp.where(erased, representation.blank(modality, spec.depth_representation), image)
    return _channels(spec, modality, jnp.broadcast_to(image, (*image.shape[:-1], 3)))


def _rgb(spec: InputSpec, unit: jax.Array) -> jax.Array:
    """Normalised colour, or grey, of float32 [B, H, W, 3] in [0, 1]."""
    if spec.colour == "grey" or spec.zero_padding:
        unit = jnp.broadcast_to(colour.luma(unit), unit.shape)
    return representation.normalise_rgb(unit)


def _channels(spec: InputSpec, modality: str, image: jax.Array) -> jax.Array:
    """The image [B, H, W, 3], or that channel of it which zero-padding leaves to its modality."""
    if not spec.zero_padding:
        return image
    own = jnp.arange(3) == _PADDED[modality]
    return jnp.where(own[None, None, None, :], image, 0.0)
