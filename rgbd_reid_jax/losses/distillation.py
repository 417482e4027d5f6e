"""Losses between a student's embedding and its teacher's for the same instant.

The paper's (arXiv:1810.11641, step II) is the squared error summed over batch and dimensions. The
others are options: the mean makes the learning rate independent of batch and dimension, and normalised
forms compare directions, as cosine retrieval does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_EPSILON = 1e-3  # far below the length of a trained embedding; bounds the gradient at a zero row


def l2_normalise(embedding: jax.Array) -> jax.Array:
    """Rows of unit length: float32 [B, D]; the gradient at a zero row is finite."""
    return embedding * jax.lax.rsqrt(jnp.sum(embedding**2, axis=1, keepdims=True) + _EPSILON**2)


def sum_squared(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Sum over batch and dimensions of (student - teacher)^2, the paper's loss."""
    return jnp.sum((student - teacher) ** 2)


def mean_squared(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean over batch and dimensions of (student - teacher)^2."""
    return jnp.mean((student - teacher) ** 2)


def normalised_squared(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean over the batch of |s/|s| - t/|t||^2 = 2 - 2 cos(s, t), in [0, 4]."""
    return jnp.mean(jnp.sum((l2_normalise(student) - l2_normalise(teacher)) ** 2, axis=1))


DISTILLATION_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "sum_squared": sum_squared,
    "mean_squared": mean_squared,
    "normalised_squared": normalised_squared,
}


def mean_cosine(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean cosine between the two embeddings of each row, a scale-free figure to watch."""
    return jnp.mean(jnp.sum(l2_normalise(student) * l2_normalise(teacher), axis=1))
