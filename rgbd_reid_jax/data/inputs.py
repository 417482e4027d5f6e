"""Raw frames of one modality to the network's input: for training (augmented) and for embedding (plain)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rgbd_reid_jax.data import augment, colour, representation, sensor
from rgbd_reid_jax.data.augment import Augmentation

_SENSOR, _ERASING = 1, 2  # further streams of random numbers, so that the others keep theirs


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What the networks see.

    Attributes:
        height: input height in pixels.
        width: input width in pixels.
        depth_representation: a key of `representation.DEPTH_REPRESENTATIONS`.
    """

    height: int
    width: int
    depth_representation: str


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
        image = representation.rgb_input(batch["rgb"])
    else:
        image = representation.depth_input(batch["depth"], batch["mask"], spec.depth_representation)
    return augment.resize(image, spec.height, spec.width)


def train_input(
    spec: InputSpec, modality: str, batch: Mapping[str, Any], key: jax.Array, augmentation: Augmentation
) -> jax.Array:
    """The augmented input; the geometry depends on `key` alone, so it is the same for both modalities.

    Args:
        spec: size and representation.
        modality: "rgb" or "depth".
        batch: as for `plain_input`.
        key: PRNG key.
        augmentation: what to do.

    Returns:
        float32 [B, spec.height, spec.width, 3].
    """
    geometry_key, value_key = jax.random.split(key)
    if modality == "rgb":
        unit = colour.random_colour(value_key, batch["rgb"].astype(jnp.float32) / 255.0, augmentation)
        image = representation.normalise_rgb(unit)
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
    return jnp.broadcast_to(image, (*image.shape[:-1], 3))
