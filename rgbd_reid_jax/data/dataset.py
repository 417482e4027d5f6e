"""Opens a dataset by name: builds it through its TFDS builder where needed, and reads splits.

Reading goes through Grain: random access to the bytes of `tfds.data_source` (ArrayRecord), decoded by a
transform that looks at the wanted features only; TensorFlow is never imported. A split that fits memory
is decoded once (`cache="host"`), else records are decoded as they are asked for (`cache="none"`); both
give the same batches.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from rgbd_reid_jax.core.errors import InputError

IMAGES = ("rgb", "depth", "mask")
LABELS = ("person_id", "camera_id", "recording_id", "recording_type", "frame_id", "clothes_id", "modalities")
DATASETS = ("synthetic_rgbd",)
CACHES = ("host", "none")


def default_data_dir() -> pathlib.Path:
    """Where TFDS keeps datasets: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or pathlib.Path.home() / "tensorflow_datasets")


def dataset_config(name: str, config: str, overrides: Mapping[str, Any]) -> Any:
    """The builder config of a dataset, checked before any work is done.

    Args:
        name: one of `DATASETS`.
        config: a named BuilderConfig.
        overrides: knobs of that config to change; the changed dataset gets a name and a folder of its own.

    Raises:
        InputError: unknown name, config or knob.
    """
    if name == "synthetic_rgbd":
        from tfds_builders.synthetic_rgbd.config import custom_config, named_config

        return custom_config(config, **overrides) if overrides else named_config(config)
    raise InputError(f"dataset.name={name!r} has no builder; available: {', '.join(DATASETS)}")


def open_dataset(name: str, config: str, overrides: Mapping[str, Any], data_dir: str | None) -> Any:
    """The TFDS builder of a dataset that is ready to read, built first where it is not there yet.

    Args:
        name: as for `dataset_config`.
        config: likewise.
        overrides: likewise.
        data_dir: TFDS data folder; `default_data_dir()` when None or empty.

    Raises:
        InputError: unknown name, config or knob; damaged data; a folder or disk that cannot take it.
    """
    chosen = dataset_config(name, config, overrides)
    folder = pathlib.Path(data_dir or default_data_dir()).expanduser()
    from tfds_builders.synthetic_rgbd.synthetic_rgbd_dataset_builder import prepare

    return prepare(chosen, folder)


class Frames(Protocol):
    """A split with random access.

    `labels` holds one array [N] per name in `LABELS`; `gather` gives the images of some frames,
    stacked: `rgb` uint8 [n, H, W, 3], `depth` uint16 [n, H, W, 1], `mask` uint8 [n, H, W, 1].
    """

    labels: dict[str, np.ndarray]

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray, images: Sequence[str]) -> dict[str, np.ndarray]: ...


Records = Callable[[Sequence[str]], Any]
"""The records of a split by index, mappings, each with the features of the given names alone."""


class CachedFrames:
    """Frames decoded once into host memory."""

    def __init__(self, records: Records):
        arrays = _stacked(records((*LABELS, *IMAGES)))
        self.labels = {name: arrays[name].astype(np.int64) for name in LABELS}
        self._images = {name: arrays[name] for name in IMAGES}

    def __len__(self) -> int:
        return len(self.labels["person_id"])

    def gather(self, indices: np.ndarray, images: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._images[name][indices] for name in images}


class StreamedFrames:
    """Frames decoded from their records at each access; only labels stay in memory."""

    def __init__(self, records: Records):
        self._records = functools.cache(records)
        self.labels = {name: column.astype(np.int64) for name, column in _stacked(records(LABELS)).items()}

    def __len__(self) -> int:
        return len(self.labels["person_id"])

    def gather(self, indices: np.ndarray, images: Sequence[str]) -> dict[str, np.ndarray]:
        source = self._records(tuple(images))
        records = [source[int(index)] for index in indices]
        return {name: np.stack([record[name] for record in records]) for name in images}


def _stacked(records: Any) -> dict[str, np.ndarray]:
    """All records in one array [N, ...] per name; they are read one by one, so that nothing is held twice."""
    arrays: dict[str, np.ndarray] = {}
    for index in range(len(records)):
        for name, value in records[index].items():
            if not index:
                value = np.asarray(value)
                arrays[name] = np.empty((len(records), *value.shape), value.dtype)
            arrays[name][index] = value
    return arrays


def read_split(builder: Any, split: str, cache: str) -> Frames:
    """One split of a prepared dataset.

    Args:
        builder: from `open_dataset`.
        split: "train", "validation" or "test".
        cache: one of `CACHES`.

    Raises:
        InputError: no such split or cache.
    """
    if split not in builder.info.splits:
        have = ", ".join(builder.info.splits)
        raise InputError(f"dataset {builder.info.full_name} has no split {split!r}; it has: {have}")
    if cache not in CACHES:
        raise InputError(f"dataset.cache={cache!r} is unknown; choose one of: {', '.join(CACHES)}")
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = grain.MapDataset.source(builder.as_data_source(split, deserialize_method=raw))

    def records(names: Sequence[str]) -> grain.MapDataset:
        wanted = tfds.features.FeaturesDict({name: builder.info.features[name] for name in names})
        return source.map(wanted.deserialize_example_np)

    return CachedFrames(records) if cache == "host" else StreamedFrames(records)


def identities(person_ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Training labels 0..C-1 in order of person_id, int32 [N], and their number C."""
    people, labels = np.unique(person_ids, return_inverse=True)
    return labels.astype(np.int32), len(people)
