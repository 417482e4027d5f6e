"""Losses on the centres of a person's RGB rows and of its depth rows in the global batch.

- hetero-centre (Zhu et al., arXiv:1910.09830): the mean over people of |centre_rgb - centre_depth|^2.
  Deviation: the paper sums over the people of the batch; the mean makes the loss independent of their number.
- hetero-centre triplet (Liu et al., arXiv:2008.06223): the batch-hard triplet loss of `triplet.py` with centres in
  place of rows: a centre's positive is its person's centre of the other modality, its negatives are the centres of
  other people in both modalities.

A person of whom the batch holds one modality alone is left out; its centre still is other centres' negative.
"""

import jax
import jax.numpy as jnp

from rgbd_reid_jax.losses.pairs import EXACT, LARGEST, Figures, distances, known, same, weighted_mean
from rgbd_reid_jax.losses.triplet import complete, ranking


def hetero_centre(
    feature: jax.Array, identity: jax.Array, modality: jax.Array | None = None
) -> tuple[jax.Array, Figures]:
    """Squared distance between each person's centres of the two modalities (module docstring).

    Args:
        feature: float [B, D].
        identity: int32 [B].
        modality: int32 [B], a number for each of the two modalities; needed.

    Returns:
        The loss, a float32 scalar, and as figures `centre_distance`, the mean over people of the distance itself, and
        `people`, the share of the batch's people who have both modalities. Without any the loss is 0.
    """
    own, other = _own_and_other(identity, modality)
    difference = jnp.matmul(_averaging(own) - _averaging(other), feature.astype(jnp.float32), precision=EXACT)
    squared = jnp.sum(difference**2, axis=1)
    person = 1.0 / same(identity).sum(axis=1)  # a person's rows together weigh 1
    weight = jnp.where(other.any(axis=1), person, 0.0)
    figures = {
        "centre_distance": weighted_mean(jnp.sqrt(squared), weight),
        "people": weight.sum() / person.sum(),
    }
    return weighted_mean(squared, weight), figures


def hetero_centre_triplet(
    feature: jax.Array, identity: jax.Array, modality: jax.Array | None = None, *, margin: float | None = 0.3
) -> tuple[jax.Array, Figures]:
    """Batch-hard triplet loss of centres (module docstring).

    Args:
        feature: float [B, D].
        identity: int32 [B].
        modality: int32 [B], a number for each of the two modalities; needed.
        margin: in units of distance; None: soft margin.

    Returns:
        The loss, a float32 scalar, and the figures of `triplet.ranking`, over centres; `anchors` is the share of rows.
    """
    own, other = _own_and_other(identity, modality)
    centre = jnp.matmul(_averaging(own), feature.astype(jnp.float32), precision=EXACT)  # each row's, [B, D]
    distance, negative = distances(centre), ~same(identity)
    positive = jnp.max(jnp.where(other, distance, 0.0), axis=1)
    nearest = jnp.min(jnp.where(negative, distance, LARGEST), axis=1)
    weight = complete(other, negative) / own.sum(axis=1)  # the rows of a centre together weigh 1
    return ranking(positive, nearest, weight, margin)


def _own_and_other(identity: jax.Array, modality: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """bool [B, B] twice: the rows of a row's person in its own modality, itself included, and in the other one."""
    person, alike = same(identity), same(known(modality))
    return person & alike, person & ~alike


def _averaging(mask: jax.Array) -> jax.Array:
    """float32 [B, B]: the matrix that replaces each row by the mean over its mask, or by 0 where that is empty."""
    return mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
