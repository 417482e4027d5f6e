"""Random numbers that depend on what they are for and on nothing else.

A draw is named by (seed, purpose, ids): the same person or frame gets the same numbers in any chunk,
order, batch or machine. The generator is threefry2x32 with its partitionable form pinned.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgbd_reid_jax.core.errors import InputError

PURPOSES = ("person", "outfit", "change", "recording", "frame", "sensor")
MOST_DRAWS = 128
_ROWS, _COLUMNS = 128, 5


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """float64 on the first CPU device, whatever the caller's jax settings are; they stay as they were."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        options: Any = jax.config  # its attributes are made at run time
        platforms = options.jax_platforms
        raise InputError(f"JAX_PLATFORMS={platforms} leaves out the CPU; set it to {platforms},cpu") from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.default_device(device))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.threefry_partitionable(True))
        yield


def _keys(seed: jax.Array, purpose: jax.Array, ids: jax.Array) -> jax.Array:
    """One typed key per row of `ids` uint32 [N, K]."""
    root = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), purpose)

    def fold(row: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda key, word: (jax.random.fold_in(key, word), None), root, row)[0]

    return jax.vmap(fold)(ids)


@jax.jit
def _block(seed: jax.Array, purpose: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Key data uint32 [_ROWS, 2] and random bits uint32 [_ROWS, MOST_DRAWS] of `ids` uint32 [_ROWS, _COLUMNS]."""
    keys = _keys(seed, purpose, ids)
    return jax.random.key_data(keys), jax.vmap(lambda key: jax.random.bits(key, (MOST_DRAWS,), jnp.uint32))(keys)


def _blocks(seed: int, purpose: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_block` of any number of rows: one shape is compiled for all."""
    rows = -len(ids) % _ROWS
    padded = np.pad(ids.astype(np.uint32), ((0, rows), (0, _COLUMNS - ids.shape[1])))
    with exact():
        start = (np.uint32(seed), np.uint32(PURPOSES.index(purpose)))
        done = [_block(*start, padded[i : i + _ROWS]) for i in range(0, len(padded), _ROWS)]
    keys, bits = (np.concatenate([np.asarray(part) for part in column]) for column in zip(*done, strict=True))
    return keys[: len(ids)], bits[: len(ids)]


def key_data(seed: int, purpose: str, ids: np.ndarray) -> np.ndarray:
    """Raw threefry keys uint32 [N, 2] for the rows of `ids` [N, K]."""
    return _blocks(seed, purpose, ids)[0]


class Draws:
    """Numbers for N things, handed out column by column in the order of the calls.

    Args:
        seed: the data seed.
        purpose: one of `PURPOSES`.
        ids: integers [N, K] that name the things, K up to 5.
    """

    def __init__(self, seed: int, purpose: str, ids: np.ndarray):
        bits = _blocks(seed, purpose, ids)[1]
        self._uniform = (bits.astype(np.float64) + 0.5) / 2.0**32
        self._taken = 0

    def _take(self, count: int) -> np.ndarray:
        start, self._taken = self._taken, self._taken + count
        assert self._taken <= self._uniform.shape[1], "more than MOST_DRAWS are taken"
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
