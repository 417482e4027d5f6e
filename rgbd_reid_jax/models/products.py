"""Products of maps with matrices, and of maps with one another in the order of factors that is quick on CPUs."""

import jax
from jax import lax

_COLUMNS = 512  # below which a product is quicker with its factors exchanged, if that writes more columns


def product(x: jax.Array, matrix: jax.Array, over: int = 0) -> jax.Array:
    """[B, h, w, C] times [C, O], or with `over` 1 times the transpose of [O, C]."""
    return lax.dot_general(x, matrix, (((3,), (over,)), ((), ())))


def summed_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """[C, O], the sum of the outer products of [B, h, w, C] and [B, h, w, O].

    XLA's product is slow where it writes few columns: then the other order, turned round. The barrier keeps XLA from
    turning it back.
    """
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    if y.shape[1] < min(x.shape[1], _COLUMNS):
        return lax.optimization_barrier(summed_product(y, x)).T
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())))
