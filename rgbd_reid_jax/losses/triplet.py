"""Triplet losses over all triplets of the global batch, on Euclidean (not squared) distances d.

- batch hard (Hermans et al., arXiv:1703.07737): for each anchor a its farthest positive and its nearest negative,

      mean over a of [margin + max_p d(a, p) - min_n d(a, n)]_+

  The paper's triplet teacher (arXiv:1810.11641) takes a margin of 0.5. The soft margin replaces [margin + x]_+ by
  log(1 + exp x).
- weighted regularised (AGW, arXiv:2001.04193): all positives and negatives count, the harder the more, and there is
  no margin to choose,

      mean over a of log(1 + exp(sum_p w_p d(a, p) - sum_n w_n d(a, n))),
      w_p = softmax over the positives of d(a, p), w_n = softmax over the negatives of -d(a, n)

  The gradient passes through the weights, as in the authors' code. Deviation: that code counts the anchor itself
  among its positives; here it never is one.

An anchor without a positive or without a negative is left out of the mean. A batch of such anchors alone has loss 0
and no gradient; the figure `anchors` tells.
"""

import jax
import jax.numpy as jnp

from rgbd_reid_jax.losses.pairs import LARGEST, Figures, distances, positives_and_negatives, weighted_mean


def batch_hard_triplet(
    feature: jax.Array,
    identity: jax.Array,
    modality: jax.Array | None = None,
    *,
    margin: float | None = 0.5,
    cross_modal: bool = False,
) -> tuple[jax.Array, Figures]:
    """Batch-hard triplet loss (module docstring).

    Args:
        feature: float [B, D].
        identity: int32 [B].
        modality: int32 [B], a number for each modality; needed if `cross_modal`.
        margin: how much nearer than the negative the positive has to be, in units of distance; None: soft margin.
        cross_modal: positives and negatives are of another modality than their anchor alone.

    Returns:
        The loss, a float32 scalar, and the figures of `ranking`.
    """
    distance = distances(feature)
    positive, negative = positives_and_negatives(identity, modality, cross_modal)
    farthest = jnp.max(jnp.where(positive, distance, 0.0), axis=1)
    nearest = jnp.min(jnp.where(negative, distance, LARGEST), axis=1)
    return ranking(farthest, nearest, complete(positive, negative), margin)


def weighted_triplet(
    feature: jax.Array, identity: jax.Array, modality: jax.Array | None = None, *, cross_modal: bool = False
) -> tuple[jax.Array, Figures]:
    """Weighted regularised triplet loss (module docstring); arguments and results as `batch_hard_triplet`'s."""
    distance = distances(feature)
    positive, negative = positives_and_negatives(identity, modality, cross_modal)
    far = jnp.sum(_softmax(distance, positive) * distance, axis=1)
    near = jnp.sum(_softmax(-distance, negative) * distance, axis=1)
    return ranking(far, near, complete(positive, negative), None)


def complete(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """float32 [B]: 1 for an anchor with a positive and a negative, 0 for another."""
    return (positive.any(axis=1) & negative.any(axis=1)).astype(jnp.float32)


def ranking(
    positive: jax.Array, negative: jax.Array, weight: jax.Array, margin: float | None
) -> tuple[jax.Array, Figures]:
    """Weighted mean over the anchors of [margin + positive - negative]_+.

    Args:
        positive: float32 [B], each anchor's distance from its positives.
        negative: float32 [B], from its negatives.
        weight: float32 [B], 0 for anchors that are left out, as `weighted_mean` takes it.
        margin: as `batch_hard_triplet` takes it.

    Returns:
        The loss, and as figures the weighted means `positive` and `negative`, `active`, the share of anchors whose
        positive is not nearer than the negative by the margin (0 if soft), and `anchors`, the share not left out.
    """
    excess = positive - negative + (margin or 0.0)
    each = jax.nn.softplus(excess) if margin is None else jax.nn.relu(excess)
    figures = {
        "positive": weighted_mean(positive, weight),
        "negative": weighted_mean(negative, weight),
        "active": weighted_mean((excess > 0).astype(jnp.float32), weight),
        "anchors": (weight > 0).mean(dtype=jnp.float32),
    }
    return weighted_mean(each, weight), figures


def _softmax(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the columns of the mask, row by row; rows without any are finite, and left out later."""
    return jax.nn.softmax(jnp.where(mask, values, -LARGEST), axis=1)
