"""Circle loss in its pair form (Sun et al., arXiv:2002.10857), over the global batch.

With s the cosine of two rows, m the margin and g the scale, each anchor costs

    log(1 + sum_n exp(g [s_n + m]_+ (s_n - m)) sum_p exp(-g [1 + m - s_p]_+ (s_p - 1 + m)))

over its negatives n and positives p, and the loss is the mean over anchors. The factors [...]_+ pace each pair by how
far it is from its optimum; no gradient passes through them.
"""

import jax
import jax.numpy as jnp

from rgbd_reid_jax.losses.pairs import EXACT, LARGEST, Figures, l2_normalise, positives_and_negatives, weighted_mean
from rgbd_reid_jax.losses.triplet import complete


def circle(
    feature: jax.Array,
    identity: jax.Array,
    modality: jax.Array | None = None,
    *,
    margin: float = 0.25,
    scale: float = 128.0,
    cross_modal: bool = False,
) -> tuple[jax.Array, Figures]:
    """Circle loss (module docstring).

    Args:
        feature: float [B, D], of any length.
        identity: int32 [B].
        modality: int32 [B], a number for each modality; needed if `cross_modal`.
        margin: m; positives should come above 1 - m, negatives below m.
        scale: g.
        cross_modal: positives and negatives are of another modality than their anchor alone.

    Returns:
        The loss, a float32 scalar, and as figures the means over anchors of the lowest cosine with a positive,
        `positive_cosine`, and the highest with a negative, `negative_cosine`, and `anchors`, the share of anchors with
        both. The others are left out; without any the loss is 0.
    """
    unit = l2_normalise(feature.astype(jnp.float32))
    cosine = jnp.matmul(unit, unit.T, precision=EXACT)
    fixed = jax.lax.stop_gradient(cosine)
    positive, negative = positives_and_negatives(identity, modality, cross_modal)
    to_positive = -scale * jax.nn.relu(1 + margin - fixed) * (cosine - (1 - margin))
    to_negative = scale * jax.nn.relu(fixed + margin) * (cosine - margin)
    weight = complete(positive, negative)
    exponent = _log_sum_exp(to_positive, positive) + _log_sum_exp(to_negative, negative)
    figures = {
        "positive_cosine": weighted_mean(jnp.min(jnp.where(positive, cosine, LARGEST), axis=1), weight),
        "negative_cosine": weighted_mean(jnp.max(jnp.where(negative, cosine, -LARGEST), axis=1), weight),
        "anchors": weight.mean(),
    }
    return weighted_mean(jax.nn.softplus(exponent), weight), figures


def _log_sum_exp(values: jax.Array, mask: jax.Array) -> jax.Array:
    """log sum exp over the columns of the mask, float32 [B]; 0 for rows without any."""
    found = jax.nn.logsumexp(jnp.where(mask, values, -LARGEST), axis=1)
    return jnp.where(mask.any(axis=1), found, 0.0)
