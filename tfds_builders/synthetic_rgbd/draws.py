"""Random numbers that depend on what they are for and on nothing else.

A draw is named by (seed, purpose, ids): the same person or frame gets the same numbers in any chunk,
order, batch or machine. The generator is threefry2x32 with its partitionable form pinned.
"""

import contextlib
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

PURPOSES = ("person", "outfit", "change", "recording", "frame", "sensor")


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """float64 on the first CPU device, whatever the caller's jax settings are; they stay as they were."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.threefry_partitionable(True))
        yield


def _keys(seed: jax.Array, purpose: jax.Array, ids: jax.Array) -> jax.Array:
    """One typed key per row of `ids` uint32 [N, K]."""
    root = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), purpose)

    def fold(row: jax.Array) -> jax.Array:
        return functools.reduce(lambda key, i: jax.random.fold_in(key, row[i]), range(ids.shape[1]), root)

    return jax.vmap(fold)(ids)


@jax.jit
def _key_data(seed, purpose, ids):
    return jax.random.key_data(_keys(seed, purpose, ids))


@functools.partial(jax.jit, static_argnums=3)
def _bits(seed, purpose, ids, count):
    return jax.vmap(lambda key: jax.random.bits(key, (count,), jnp.uint32))(_keys(seed, purpose, ids))


def _padded(ids: np.ndarray) -> np.ndarray:
    """`ids` with rows up to a power of two, so that few shapes are compiled."""
    rows = max(16, 1 << (len(ids) - 1).bit_length())
    return np.pad(ids.astype(np.uint32), ((0, rows - len(ids)), (0, 0)))


def key_data(seed: int, purpose: str, ids: np.ndarray) -> np.ndarray:
    """Raw threefry keys uint32 [N, 2] for the rows of `ids` [N, K]."""
    with exact():
        keys = _key_data(np.uint32(seed), np.uint32(PURPOSES.index(purpose)), _padded(ids))
        return np.asarray(keys)[: len(ids)]


class Draws:
    """Numbers for N things, handed out column by column in the order of the calls.

    Args:
        seed: the data seed.
        purpose: one of `PURPOSES`.
        ids: integers [N, K] that name the things.
        budget: how many columns may be taken in all; a fixed number, because it is part of the name.
    """

    def __init__(self, seed: int, purpose: str, ids: np.ndarray, budget: int):
        with exact():
            bits = _bits(np.uint32(seed), np.uint32(PURPOSES.index(purpose)), _padded(ids), budget)
            self._uniform = (np.asarray(bits)[: len(ids)].astype(np.float64) + 0.5) / 2.0**32
        self._taken = 0

    def _take(self, count: int) -> np.ndarray:
        start, self._taken = self._taken, self._taken + count
        assert self._taken <= self._uniform.shape[1], "the budget of draws is used up"
        return self._uniform[:, start : self._taken]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """float64 [N] in (low, high)."""
        return low + (high - low) * self._take(1)[:, 0]

    def uniforms(self, count: int) -> np.ndarray:
        """float64 [N, count] in (0, 1)."""
        return self._take(count)

    def normals(self, count: int, clip: float = 2.2) -> np.ndarray:
        """float64 [N, count], standard normal, clipped."""
        u = self._take(2 * count)
        values = np.sqrt(-2.0 * np.log(u[:, :count])) * np.cos(2.0 * np.pi * u[:, count:])
        return np.clip(values, -clip, clip)

    def normal(self, clip: float = 2.2) -> np.ndarray:
        """float64 [N], standard normal, clipped."""
        return self.normals(1, clip)[:, 0]

    def choice(self, weights: tuple[float, ...]) -> np.ndarray:
        """int64 [N]: indices drawn with the given weights."""
        edges = np.cumsum(np.asarray(weights, np.float64))
        return np.searchsorted(edges / edges[-1], self._take(1)[:, 0]).clip(0, len(weights) - 1)
