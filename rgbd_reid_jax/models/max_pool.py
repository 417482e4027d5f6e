"""Max pooling that is fast on a CPU too, where XLA's takes twice as long, and its gradient thirty times."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """The greatest of 3x3 places at every second row and column, the border outside of the image left out.

    The gradient goes to the first of equal places, in the order of rows, as in XLA and PyTorch.

    Args:
        x: float [B, H, W, C].

    Returns:
        The same dtype, [B, (H + 1) // 2, (W + 1) // 2, C].
    """
    return lax.platform_dependent(x, cpu=lambda x: _along(_along(x, 2, _greatest), 1, _greatest), default=_windows)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return max_pool(x), x


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    def pull(form: Any, x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(form, x)[1](gradient)[0]

    return (
        lax.platform_dependent(
            x,
            gradient,
            cpu=lambda *arguments: pull(
                lambda x: _along(_along(x, 2, _first_greatest), 1, _first_greatest), *arguments
            ),
            default=lambda *arguments: pull(_windows, *arguments),
        ),
    )


max_pool.defvjp(_forward, _backward)


def _windows(x: jax.Array) -> jax.Array:
    padding: Any = ((1, 1), (1, 1))  # Flax takes it, but its default, a string, is all a checker sees
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=padding)


def _along(x: jax.Array, axis: int, greatest: Callable[..., jax.Array]) -> jax.Array:
    """The greatest of three places at every second place of one axis."""
    length = x.shape[axis]
    count = (length + 1) // 2
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 2 * count - length)
    padded = jnp.pad(x, padding, constant_values=-jnp.inf)
    return greatest(*(lax.slice_in_dim(padded, at, at + 2 * count - 1, 2, axis) for at in range(3)))


def _greatest(*places: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, places)


def _first_greatest(*places: jax.Array) -> jax.Array:
    """Of equal ones the first gets the gradient, where `jnp.maximum` would give each its half."""
    return functools.reduce(lambda one, other: jnp.where(other > one, other, one), places)
