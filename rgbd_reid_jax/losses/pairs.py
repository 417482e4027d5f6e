"""What losses over pairs share: distances and directions of a batch's rows, and which rows are positives and negatives.

All of it is over the global batch: under `jit` a [B, B] matrix of a sharded batch holds every pair, whichever devices
its two rows lie on, so the number of devices changes nothing but rounding.
"""

import jax
import jax.numpy as jnp

from rgbd_reid_jax.core.errors import InputError

Figures = dict[str, jax.Array]

EXACT = jax.lax.Precision.HIGHEST  # accelerators would otherwise multiply float32 with 8 or 10 bits of mantissa
LARGEST = float(jnp.finfo(jnp.float32).max)  # stands for an infinite distance; an infinity could make NaN gradients
_EPSILON = 1e-3  # far below the length of a trained embedding; bounds the gradient at a zero row


def l2_normalise(embedding: jax.Array) -> jax.Array:
    """Rows of unit length: float32 [..., D]; the gradient at a zero row is finite."""
    return embedding * jax.lax.rsqrt(jnp.sum(embedding**2, axis=-1, keepdims=True) + _EPSILON**2)


def distances(feature: jax.Array) -> jax.Array:
    """Euclidean distances of all pairs of rows.

    Differences are taken before squaring: |a|^2 + |b|^2 - 2 a.b loses the distance where the rows share a large mean.
    That may need memory for B^2 D numbers, of which each device holds the share of its rows.

    Args:
        feature: float [B, D].

    Returns:
        float32 [B, B]; exactly 0 with a zero gradient where two rows are equal, NaN where one holds NaN.
    """
    feature = feature.astype(jnp.float32)
    squared = jnp.sum((feature[:, None] - feature[None]) ** 2, axis=2)
    equal = squared == 0
    # The inner `where` keeps the slope of the root, infinite at 0, out of the gradient.
    return jnp.where(equal, 0.0, jnp.sqrt(jnp.where(equal, 1.0, squared)))


def same(labels: jax.Array) -> jax.Array:
    """bool [B, B]: whether two rows have the same label, int32 [B]."""
    return labels[:, None] == labels[None]


def positives_and_negatives(
    identity: jax.Array, modality: jax.Array | None, cross_modal: bool
) -> tuple[jax.Array, jax.Array]:
    """Each anchor's positives (its person's other rows) and negatives (other people's rows).

    Args:
        identity: int32 [B].
        modality: int32 [B], a number for each modality; not looked at unless `cross_modal`.
        cross_modal: positives and negatives are of another modality than the anchor alone.

    Returns:
        bool [B, B] twice, one row per anchor.

    Raises:
        InputError: `cross_modal` without modalities.
    """
    person = same(identity)
    if not cross_modal:
        return person & ~jnp.eye(len(identity), dtype=bool), ~person
    other = ~same(known(modality))
    return person & other, ~person & other


def known(modality: jax.Array | None) -> jax.Array:
    """The modalities; raises InputError where there are none."""
    if modality is None:
        raise InputError("a cross-modal loss needs batches of both modalities; choose another loss or sample both")
    return modality


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean of float32 [B] with weights >= 0 whose sum is 0 or, up to rounding, at least 1; rows of weight 0 do not
    matter, and without any other the mean is 0.
    """
    return jnp.sum(jnp.where(weight > 0, values, 0.0) * weight) / jnp.maximum(weight.sum(), 1.0)
