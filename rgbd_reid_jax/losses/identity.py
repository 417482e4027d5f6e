"""Losses on identity labels."""

import jax
import jax.numpy as jnp
import optax


def identity_loss(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Mean cross-entropy of the identity classifier, with label smoothing.

    Args:
        logits: float [B, C], compared in float32.
        labels: int32 [B] in 0..C-1.
        smoothing: probability mass spread evenly over all classes, in [0, 1).

    Returns:
        float32 scalar, nats.
    """
    targets = jax.nn.one_hot(labels, logits.shape[1])
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), optax.smooth_labels(targets, smoothing)).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows whose largest logit is the label's: float32 scalar."""
    return (jnp.argmax(logits, axis=1) == labels).mean(dtype=jnp.float32)
