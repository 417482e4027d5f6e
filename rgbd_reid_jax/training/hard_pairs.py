"""Which pairs of a batch are hardest: those that a costly distance is computed for."""

import jax
import jax.numpy as jnp

from rgbd_reid_jax.losses.pairs import LARGEST, same


def hardest(squared: jax.Array, identity: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row's and each column's farthest positive and nearest negative.

    Args:
        squared: float32 [B, B], distances between the RGB rows and the depth columns of a batch.
        identity: int32 [B], of both.

    Returns:
        int32 [4 B] twice, rows and columns of the pairs; a row without a negative (or a column) gets its first one.
    """
    squared = jax.lax.stop_gradient(squared)
    person = same(identity)
    positive, negative = jnp.where(person, squared, -1.0), jnp.where(person, LARGEST, squared)
    each = jnp.arange(len(identity))
    rows = jnp.concatenate([each, each, jnp.argmax(positive, axis=0), jnp.argmin(negative, axis=0)])
    columns = jnp.concatenate([jnp.argmax(positive, axis=1), jnp.argmin(negative, axis=1), each, each])
    return rows, columns
