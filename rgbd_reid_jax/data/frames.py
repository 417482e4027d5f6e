"""Frames of a split: labels in memory, images by index, kept as `config.dataset.cache` says.

- `none`: decoded at each access.
- `host`: decoded at the first access, then kept in the host's memory.
- `device`: decoded once and put whole on every device; a step gathers the rows of its batch there. Every device
  holds a copy rather than a share: rows of any frame are then gathered without communication, and datasets of this
  kind fit (10,000 frames of 256x128 pixels take 2 GB).

All three give the same bits. Reading is random access to the bytes of `tfds.data_source` (ArrayRecord); TensorFlow is
never imported.
"""

import concurrent.futures
import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rgbd_reid_jax.core import cpus
from rgbd_reid_jax.core.errors import InputError, out_of_memory
from rgbd_reid_jax.core.mesh import replicated
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.data.records import IMAGES, LABELS, Records
from tfds_builders import schema

__all__ = ["CACHES", "IMAGES", "LABELS", "MODALITY_BITS", "Frames", "Placed", "having", "identities", "read_split"]

CACHES = ("device", "host", "none")
MODALITY_BITS: Mapping[str, int] = {"rgb": schema.RGB, "depth": schema.DEPTH}
_CHUNK = 64  # frames that a thread decodes in one go


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placed:
    """Images of all frames of a split on the devices; empty where they are kept elsewhere.

    Attributes:
        arrays: per image [N, H * W * C]. Two dimensions, since an accelerator pads an array's last one, and three
            colours padded to its lanes would take 42 times their memory.
        shapes: (name, (H, W, C)) of each.
    """

    arrays: dict[str, jax.Array]
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = dataclasses.field(metadata={"static": True})

    def gather(self, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Images `rows[name]`, int32 [B], of each image: [B, H, W, C]; to be called under `jit`."""
        found = {
            name: self.arrays[name].at[rows[name]].get(mode="promise_in_bounds").reshape(-1, *shape)
            for name, shape in self.shapes
        }
        return jax.lax.optimization_barrier(found)  # what follows is compiled as for images from the host


NOWHERE = Placed({}, ())


class Frames:
    """A split with random access, decoded at each access (`cache="none"`).

    Args:
        records: the encoded frames.
        workers: threads that may decode at once.

    Attributes:
        labels: one int64 [N] per name in `LABELS`, text [N] per name in `records.NAMES` that the dataset has.
        workers: as given.
    """

    def __init__(self, records: Records, workers: int = 1):
        self._records, self.workers = records, workers
        self.labels = records.labels()

    def __len__(self) -> int:
        return len(self.labels["person_id"])

    def gather(self, indices: np.ndarray, images: Sequence[str]) -> dict[str, np.ndarray]:
        """Some of `IMAGES` of the frames `indices`, int [n].

        Returns:
            `rgb` uint8 [n, H, W, 3], `depth` uint16 [n, H, W, 1], `mask` uint8 [n, H, W, 1].

        Raises:
            InputError: a record is damaged.
        """
        return self._records.decode(indices, images)

    def placed(self, images: Sequence[str], mesh: jax.sharding.Mesh) -> Placed:
        """The images of all frames as they lie on the devices, put there at the first call.

        Raises:
            InputError: the devices' memory is too small, or a record is damaged.
        """
        del images, mesh
        return NOWHERE

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """Rows of `placed` that hold the frames `indices`."""
        return indices


class CachedFrames(Frames):
    """Frames decoded once, each at its first access, into host memory (`cache="host"`)."""

    def __init__(self, records: Records, workers: int = 1):
        super().__init__(records, workers)
        self._images: dict[str, np.ndarray] = {}
        self._there = {name: np.zeros(len(self), bool) for name in IMAGES}
        self._lock = threading.Lock()

    def gather(self, indices: np.ndarray, images: Sequence[str]) -> dict[str, np.ndarray]:
        indices = np.asarray(indices)
        lacking = ~np.all([np.ones(len(indices), bool), *(self._there[name][indices] for name in images)], axis=0)
        missing = np.unique(indices[lacking])
        if len(missing):
            for name, decoded in super().gather(missing, images).items():
                self._room(name, decoded)[missing] = decoded  # threads that meet here write the same bytes
                self._there[name][missing] = True
        return {name: self._images[name][indices] for name in images}

    def _room(self, name: str, like: np.ndarray) -> np.ndarray:
        with self._lock:
            if name not in self._images:
                self._images[name] = np.empty((len(self), *like.shape[1:]), like.dtype)
            return self._images[name]


class DeviceFrames(Frames):
    """Frames decoded once and put on the devices (`cache="device"`); `gather` still decodes."""

    def __init__(self, records: Records, workers: int = 1):
        super().__init__(records, workers)
        self._placed: dict[tuple[str, jax.sharding.Mesh], tuple[jax.Array, tuple[int, ...]]] = {}

    def placed(self, images: Sequence[str], mesh: jax.sharding.Mesh) -> Placed:
        missing = [name for name in images if (name, mesh) not in self._placed]
        if missing:
            decoded = self._decode_all(missing)
            _check_room(sum(array.nbytes for array in decoded.values()), mesh)
            for name in missing:
                array = decoded.pop(name)
                flat = array.reshape(len(array), -1)
                self._placed[name, mesh] = _on_all_devices(flat, mesh), array.shape[1:]
        kept = {name: self._placed[name, mesh] for name in images}
        return Placed({name: one[0] for name, one in kept.items()}, tuple((name, one[1]) for name, one in kept.items()))

    def _decode_all(self, images: Sequence[str]) -> dict[str, np.ndarray]:
        first = self.gather(np.array([0]), images)
        found = {name: np.empty((len(self), *one.shape[1:]), one.dtype) for name, one in first.items()}
        progress = Progress("dataset", len(self), unit="frame", items="frames")

        def decode(start: int) -> int:
            rows = np.arange(start, min(start + _CHUNK, len(self)))
            for name, part in self.gather(rows, images).items():
                found[name][rows] = part
            return int(rows[-1]) + 1

        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            for done in pool.map(decode, range(0, len(self), _CHUNK)):
                if done < len(self):
                    progress.update(done)  # work of a few seconds is no news
        return found


class _Subset(Frames):
    """Some frames of another split: `indices`, int [n], into it."""

    def __init__(self, frames: Frames, indices: np.ndarray):
        self._frames, self._indices, self.workers = frames, indices, frames.workers
        self.labels = {name: column[indices] for name, column in frames.labels.items()}

    def gather(self, indices: np.ndarray, images: Sequence[str]) -> dict[str, np.ndarray]:
        return self._frames.gather(self._indices[indices], images)

    def placed(self, images: Sequence[str], mesh: jax.sharding.Mesh) -> Placed:
        return self._frames.placed(images, mesh)

    def positions(self, indices: np.ndarray) -> np.ndarray:
        return self._frames.positions(self._indices[indices])


def subset(frames: Frames, chosen: np.ndarray) -> Frames:
    """The frames where `chosen`, bool [N], holds: a view, which decodes and stores nothing anew."""
    return frames if chosen.all() else _Subset(frames, np.flatnonzero(chosen))


def having(frames: Frames, modality: str) -> Frames:
    """The frames of which `modality`, "rgb" or "depth", was recorded."""
    return subset(frames, recorded(frames, modality))


def recorded(frames: Frames, modality: str) -> np.ndarray:
    """bool [N]: of which frames `modality` was recorded."""
    return frames.labels["modalities"] & MODALITY_BITS[modality] != 0


def _on_all_devices(array: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    try:
        placed = jax.make_array_from_process_local_data(replicated(mesh), array)
        return jax.block_until_ready(placed)
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise _too_large(array.nbytes) from error


def _check_room(size: int, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError where a device of this process is known to lack `size` bytes."""
    for device in mesh.local_devices:
        memory = device.memory_stats() or {}
        free = memory.get("bytes_limit", math.inf) - memory.get("bytes_in_use", 0)
        if size > free:
            raise _too_large(size, f" of which {device} has {free / 1e9:.1f} GB free")


def _too_large(size: int, more: str = "") -> InputError:
    return InputError(
        f"dataset.cache='device' needs {size / 1e9:.1f} GB for images on each device{more}; "
        "say --config.dataset.cache=host"
    )


def read_split(builder: Any, split: str, cache: str, workers: int = 0) -> Frames:
    """One split of a prepared dataset.

    Args:
        builder: from `open_dataset`.
        split: "train", "validation" or "test".
        cache: one of `CACHES`.
        workers: threads that decode; 0 takes one for each core of this process.

    Raises:
        InputError: no such split or cache.
    """
    if split not in builder.info.splits:
        have = ", ".join(builder.info.splits)
        raise InputError(f"dataset {builder.info.full_name} has no split {split!r}; it has: {have}")
    kinds = {"device": DeviceFrames, "host": CachedFrames, "none": Frames}
    if cache not in kinds:
        raise InputError(f"dataset.cache={cache!r} is unknown; choose one of: {', '.join(CACHES)}")
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split, deserialize_method=raw)
    return kinds[cache](Records(source, f"{builder.info.full_name} {split}"), workers or cpus.usable())


def identities(person_ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Training labels 0..C-1 in order of person_id, int32 [N], and their number C."""
    people, labels = np.unique(person_ids, return_inverse=True)
    return labels.astype(np.int32), len(people)
