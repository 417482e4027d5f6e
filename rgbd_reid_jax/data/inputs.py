"""Raw frames of one modality to the network's input: for training (augmented) and for embedding (plain)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rgbd_reid_jax.data import augment, representation
from rgbd_reid_jax.data.augment import Augmentation


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
        unit = augment.random_colour(value_key, batch["rgb"].astype(jnp.float32) / 255.0, augmentation)
        image = representation.normalise_rgb(unit)
    else:
        image = representation.depth_input(batch["depth"], batch["mask"], spec.depth_representation)
        if augmentation.depth_noise > 0:
            noise = jax.random.normal(value_key, image.shape[:-1])[..., None]
            image = image + augmentation.depth_noise * noise
    boxes = augment.random_boxes(geometry_key, image.shape[0], image.shape[1], image.shape[2], augmentation)
    return augment.crop_and_resize(image, boxes, spec.height, spec.width)
