"""Endless training batches, deterministic in (seed, step), restartable at any step.

A Grain pipeline over frame indices: shuffle each epoch anew, cut into global batches, let each process
take its rows, fetch their images. The position is the whole state, so a restart costs nothing, and the
global batch is the same for any number of processes. (Nothing starts several yet: jax.distributed is not
wired.)
"""

from collections.abc import Mapping, Sequence

import grain
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.dataset import Frames

_PREFETCHED_BATCHES = 4


class _Fetch(grain.transforms.Map):
    """Indices [B] to this process's part of a batch."""

    def __init__(
        self,
        frames: Frames,
        images: Sequence[str],
        columns: Mapping[str, np.ndarray],
        process: tuple[int, int],
    ):
        self._frames, self._images, self._columns = frames, tuple(images), dict(columns)
        self._index, self._count = process

    def map(self, element: np.ndarray) -> dict[str, np.ndarray]:
        rows = len(element) // self._count
        mine = np.asarray(element[self._index * rows : (self._index + 1) * rows])
        batch = self._frames.gather(mine, self._images)
        batch.update({name: column[mine] for name, column in self._columns.items()})
        return batch


def training_batches(
    frames: Frames,
    *,
    images: Sequence[str],
    columns: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    process: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """An endless stream of batches.

    Args:
        frames: the training split, N frames.
        images: which of `rgb`, `depth`, `mask` a batch holds.
        columns: further arrays [N, ...] whose rows travel with their frames (labels, targets).
        batch_size: rows of the global batch; at most N.
        seed: of the order.
        process: (index, number) of processes that share the batch.

    Returns:
        A Grain dataset; its iterator's state (a small JSON-like dict) is the position.

    Raises:
        InputError: the split holds fewer than `batch_size` frames, or processes do not divide it.
    """
    if batch_size > len(frames):
        raise InputError(f"batch_size={batch_size} exceeds the {len(frames)} training frames; choose a smaller batch")
    if batch_size % process[1]:
        raise InputError(f"batch_size={batch_size} does not divide among {process[1]} processes; choose a multiple")
    indices = grain.MapDataset.range(len(frames)).seed(seed).shuffle().repeat()
    batches = indices.batch(batch_size, drop_remainder=True).map(_Fetch(frames, images, columns, process))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED_BATCHES)
    return batches.to_iter_dataset(options)
