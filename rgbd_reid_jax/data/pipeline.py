"""Endless training batches, deterministic in (seed, step), restartable at any step.

A Grain pipeline: the rows of a step's global batch (`sampling`), of which each process takes its share and fetches
the images, in threads and some batches ahead. The position is the whole state, so a restart costs nothing, and
the global batch is the same for any number of processes.

Where images lie on the devices, a batch holds their rows instead, and `with_images` gathers them inside the step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.frames import NOWHERE, Frames, Placed
from rgbd_reid_jax.data.sampling import SHUFFLE, Sampling, batch_rows

_SPARE_BATCHES = 2  # prefetched beyond those that the threads work on
ROWS = "rows"
"""Of a batch: where its images lie on the devices, with `cache=device`."""
_SIDE = {"rgb": 0, "depth": 1, "mask": 1}  # the column of the rows that an image comes from


class Fetch(grain.transforms.Map):
    """The rows of the global batch, int [B, 2], to this process's part of a batch.

    Args:
        frames: the split.
        images: which images a batch holds.
        columns: further arrays [N, ...] whose rows travel with their frames.
        process: (index, number) of processes that share the batch.
        placed: images of `frames` on the devices, of which a batch holds the rows alone.
    """

    def __init__(
        self,
        frames: Frames,
        images: Sequence[str],
        columns: Mapping[str, np.ndarray],
        process: tuple[int, int],
        placed: Placed,
    ):
        self._frames, self._columns = frames, dict(columns)
        self._images = [name for name in images if name not in placed.arrays]
        self._placed = bool(placed.arrays)
        self._index, self._count = process

    def map(self, element: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(element) // self._count
        mine = np.asarray(element[self._index * rows : (self._index + 1) * rows])
        batch = {}
        one_frame = np.array_equal(mine[:, 0], mine[:, 1])  # then its record is read once for all of its images
        for side in sorted({0 if one_frame else _SIDE[name] for name in self._images}):
            names = [name for name in self._images if one_frame or _SIDE[name] == side]
            batch.update(self._frames.gather(mine[:, side], names))
        if self._placed:
            batch[ROWS] = self._frames.positions(mine).astype(np.int32)
        batch.update({name: column[mine[:, 0]] for name, column in self._columns.items()})
        return batch


def training_batches(
    frames: Frames,
    *,
    images: Sequence[str],
    columns: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    sampling: Sampling = SHUFFLE,
    placed: Placed = NOWHERE,
    process: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """An endless stream of batches.

    Args:
        frames: the training split, N frames.
        images: which of `rgb`, `depth`, `mask` a batch holds.
        columns: further arrays [N, ...] whose rows travel with their frames (labels, targets).
        batch_size: rows of the global batch; at most N.
        seed: of the order.
        sampling: which frames make up a batch.
        placed: images of `frames` that lie on the devices; `with_images` puts them into a batch.
        process: (index, number) of processes that share the batch.

    Returns:
        A Grain dataset; its iterator's state (a small JSON-like dict) is the position.

    Raises:
        InputError: the split holds too few frames or people, or processes do not divide the batch.
    """
    rows = batch_rows(sampling, frames.labels, batch_size, seed)
    if batch_size % process[1]:
        raise InputError(f"batch_size={batch_size} does not divide among {process[1]} processes; choose a multiple")
    batches = rows.map(Fetch(frames, images, columns, process, placed))
    return prefetched(batches, frames, placed)


def prefetched(batches: grain.MapDataset, frames: Frames, placed: Placed) -> grain.IterDataset:
    """The same batches in the same order, made ahead by the threads of `frames`."""
    workers = 1 if placed.arrays else frames.workers
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + _SPARE_BATCHES)
    return batches.to_iter_dataset(options)


def with_images(batch: Mapping[str, Any], placed: Placed) -> dict[str, jax.Array]:
    """A batch whose images are `placed`'s where it holds rows of them; to be called under `jit`."""
    batch = dict(batch)
    if placed.arrays:
        rows = batch.pop(ROWS)
        batch.update(placed.gather({name: rows[:, _SIDE[name]] for name in placed.arrays}))
    return batch
