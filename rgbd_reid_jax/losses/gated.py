"""Losses on the distances between a batch's RGB rows and its depth rows.

Row i of either modality belongs to identity[i]; a gate makes what a row is compared by depend on its partner, so the
losses take the matrix of distances instead of embeddings. `gated_squared` gives that matrix for gates on the channels,

    |q * a - g * b|^2,   a the gate of the gallery's row, b the gate of the query's

(our reading of the cross-modal attention of Hafner et al., doi:10.1016/j.cviu.2021.103352, whose formula is in no
source that we could read); retrieval takes the same distance as one matrix product, see `metrics.distances`.

They have one signature,

    loss, figures = PAIR_LOSSES[name](squared, identity, **options)

with `squared` float [B, B] >= 0, RGB rows by depth columns, and `identity` int32 [B]. Each row is an anchor among the
depth columns, and each column one among the RGB rows: both directions of retrieval, averaged. Positives are all pairs
of a person, the two images of one instant included. As in `triplet`, an anchor without a negative is left out (a
positive it always has), and a batch of such anchors alone has loss 0 and no gradient. Batches are global, as `pairs`
says.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rgbd_reid_jax.losses.pairs import LARGEST, Figures, same, weighted_mean
from rgbd_reid_jax.losses.triplet import complete, ranking

PairLoss = Callable[..., tuple[jax.Array, Figures]]


def gated_squared(query: jax.Array, gallery: jax.Array, query_gate: jax.Array, gallery_gate: jax.Array) -> jax.Array:
    """Squared distances |q_i * a_j - g_j * b_i|^2 of all pairs.

    Differences are taken before squaring, as in `pairs.distances`. That may need memory for A B D numbers, of which
    each device holds the share of its query rows.

    Args:
        query: float [A, D], q.
        gallery: float [B, D], g.
        query_gate: float [A, D], b: what each query puts on the gallery's channels.
        gallery_gate: float [B, D], a: what each gallery row puts on the query's channels.

    Returns:
        float32 [A, B]; exactly 0 with a zero gradient where embeddings and gates are equal, NaN where one holds NaN.
    """
    query, gallery, query_gate, gallery_gate = (
        one.astype(jnp.float32) for one in (query, gallery, query_gate, gallery_gate)
    )
    # q a - g b, written so that it is 0 for equal rows even where a compiler fuses a product into the subtraction, and
    # so rounds one of the two products alone.
    apart = (query[:, None] - gallery[None]) * gallery_gate[None]
    apart += gallery[None] * (gallery_gate[None] - query_gate[:, None])
    return jnp.sum(apart**2, axis=2)


def pair_triplet(squared: jax.Array, identity: jax.Array, *, margin: float | None = 0.3) -> tuple[jax.Array, Figures]:
    """Batch-hard triplet loss of `triplet`, on Euclidean (not squared) distances.

    Args:
        squared: float [B, B] >= 0, RGB rows by depth columns.
        identity: int32 [B].
        margin: in units of distance; None: soft margin.

    Returns:
        The loss, a float32 scalar, and the figures of `triplet.ranking` over the 2 B anchors.
    """
    distance, positive = _root(squared.astype(jnp.float32)), same(identity)
    farthest, nearest = jnp.where(positive, distance, 0.0), jnp.where(positive, LARGEST, distance)
    return ranking(
        jnp.concatenate([farthest.max(axis=1), farthest.max(axis=0)]),
        jnp.concatenate([nearest.min(axis=1), nearest.min(axis=0)]),
        _anchors(positive),
        margin,
    )


def pair_softmax(squared: jax.Array, identity: jax.Array, *, temperature: float = 0.1) -> tuple[jax.Array, Figures]:
    """Softmax over an anchor's pairs, of which all of its person are right.

        mean over anchors of -log(sum over positives of exp(-squared / T) / sum over all of exp(-squared / T))

    Nearest to the supervised contrastive loss L_in (Khosla et al., arXiv:2004.11362, eq. 3), whose sum over positives
    is inside the logarithm: for each anchor L_in is larger by log |positives|, which has no gradient. It is not L_out
    (eq. 2), the mean over positives of the logarithm, which that paper prefers: here one near positive is enough, and
    far ones are pulled the less.
    Deviation: the score is -squared, not the inner product of unit vectors (as in neighbourhood components analysis,
    Goldberger et al., NIPS 2004), an anchor meets rows of the other modality alone, and a mean over anchors replaces
    the sum.

    Args:
        squared: float [B, B] >= 0, RGB rows by depth columns.
        identity: int32 [B].
        temperature: T > 0, in units of the squared distance.

    Returns:
        The loss, a float32 scalar, nats; and as figures the mean over anchors of the share that positives have of the
        softmax, `share`, in 0..1, and `anchors`, the share of the 2 B anchors with a negative.
    """
    squared, positive = squared.astype(jnp.float32), same(identity)
    # -log(p / (p + n)) as log(1 + n / p): where p is nearly all, the difference of two logarithms would be rounding.
    ratios = []
    for axis in (1, 0):
        (near, right), (far, wrong) = (
            _least_and_rest(squared, mask, temperature, axis) for mask in (positive, ~positive)
        )
        ratios.append((near - far) / temperature + wrong - right)
    excess = jnp.concatenate(ratios)
    weight = _anchors(positive)
    figures = {
        "share": weighted_mean(jax.nn.sigmoid(-excess), weight),
        "anchors": (weight > 0).mean(dtype=jnp.float32),
    }
    return weighted_mean(jax.nn.softplus(excess), weight), figures


PAIR_LOSSES: Mapping[str, PairLoss] = {"pair_triplet": pair_triplet, "pair_softmax": pair_softmax}


def _anchors(positive: jax.Array) -> jax.Array:
    """float32 [2 B]: 1 for a row, then for a column, that has a positive and a negative, of bool [B, B]."""
    return jnp.concatenate([complete(one, ~one) for one in (positive, positive.T)])


def _least_and_rest(squared: jax.Array, mask: jax.Array, temperature: float, axis: int) -> tuple[jax.Array, jax.Array]:
    """m = min squared and log sum exp((m - squared) / T) over the mask, bool [B, B]: float32 [B] twice, 0 without any.

    m is taken off before the division: taken off the quotients it may meet a less rounded one, and exp overflow. It is
    no part of the gradient, in which it cancels.
    """
    found = mask.any(axis=axis, keepdims=True)
    least = jnp.min(jnp.where(mask, jax.lax.stop_gradient(squared), LARGEST), axis=axis, keepdims=True)
    least = jnp.where(found, least, 0.0)
    each = jnp.exp(jnp.where(mask, least - squared, 0.0) / temperature)
    total = jnp.sum(jnp.where(mask, each, 0.0), axis=axis, keepdims=True)
    return jnp.squeeze(least, axis), jnp.log(jnp.squeeze(jnp.where(found, total, 1.0), axis))


def _root(squared: jax.Array) -> jax.Array:
    """The root of float32 [B, B] >= 0 with a zero gradient at 0, where its slope is infinite."""
    none = squared <= 0
    return jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, squared)))
