"""Rendered frames in chunks of people, kept on disk until the dataset is whole."""

import concurrent.futures
import pathlib

import jax
import numpy as np

from tfds_builders import chunks
from tfds_builders.recorded.images import encode_png
from tfds_builders.schema import IMAGES, LABELS, PAIRED
from tfds_builders.synthetic_rgbd import render, scene, sensor
from tfds_builders.synthetic_rgbd.config import SyntheticRgbdConfig, fingerprint
from tfds_builders.synthetic_rgbd.draws import exact

_FRAMES_PER_CHUNK = 384


def render_arrays(
    config: SyntheticRgbdConfig, split: str, index: np.ndarray, batch: int | None = None
) -> tuple[scene.Frames, sensor.Images]:
    """All frames of the people `index` of a split as arrays; `batch` frames per device call change nothing."""
    frames = scene.sample_frames(config, split, index)
    inputs = (render.cones(frames.shapes), render.view(frames), frames.key)
    batch, total = batch or sensor.max_batch(config), len(frames.key)
    done = []
    with exact():
        for start in range(0, total, batch):
            rows = np.minimum(np.arange(start, start + batch), total - 1)  # the last batch repeats its last frame
            parts, view, key = jax.tree.map(lambda v, rows=rows: v[rows], inputs)
            done.append(sensor.take_images(parts, view, key, sensor.settings(config)))
    return frames, sensor.Images(*(np.concatenate(column)[:total] for column in zip(*done, strict=True)))


def person_boxes(mask: np.ndarray) -> np.ndarray:
    """float32 [F, 4], (ymin, xmin, ymax, xmax) pixel edges around the nonzero pixels of [F, H, W]."""
    spans = []
    for axis in (2, 1):
        filled: np.ndarray = np.any(mask > 0, axis=axis)
        spans.append((filled.argmax(axis=1), filled.shape[1] - filled[:, ::-1].argmax(axis=1)))
    (top, bottom), (left, right) = spans
    return np.stack([top, left, bottom, right], axis=1).astype(np.float32)


def render_chunk(config: SyntheticRgbdConfig, split: str, index: np.ndarray) -> list[chunks.Example]:
    """Renders and encodes all frames of the people `index` of a split, as `schema.frame_features` wants them."""
    frames, images = render_arrays(config, split, index)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        columns = {name: list(pool.map(encode_png, getattr(images, name), chunksize=32)) for name in IMAGES}
    columns |= {name: frames.labels[name].tolist() for name in LABELS}
    columns |= {"person_box": person_boxes(images.mask), "intrinsics": frames.intrinsics.astype(np.float32)}
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) | {"modalities": PAIRED, "source": ""} for row in rows]


class ChunkStore:
    """The chunks of one config, rendered where they are not there yet.

    Args:
        config: what is rendered.
        parent: the folder that holds the dataset's version folders.
    """

    def __init__(self, config: SyntheticRgbdConfig, parent: pathlib.Path):
        self._config = config
        self._store = chunks.ChunkStore(parent, fingerprint(config))
        self.folder, self.remove, self.size = self._store.folder, self._store.remove, self._store.size
        self.frames_rendered = 0
        self._per_chunk = max(1, _FRAMES_PER_CHUNK // config.frames_per_person)

    @property
    def frames_per_chunk(self) -> int:
        """Frames of a chunk, but for the last of a split."""
        return self._per_chunk * self._config.frames_per_person

    def count(self, split: str) -> int:
        """Number of chunks of a split."""
        return -(-self._config.people(split) // self._per_chunk)

    def _people(self, split: str, number: int) -> np.ndarray:
        start = number * self._per_chunk
        return np.arange(start, min(start + self._per_chunk, self._config.people(split)))

    def _name(self, split: str, number: int) -> str:
        """The name tells how many people a chunk holds."""
        return f"{split}-{self._per_chunk}x{number:05d}"

    def path(self, split: str, number: int) -> pathlib.Path:
        """The file of one chunk."""
        return self._store.path(self._name(split, number))

    def frames_present(self, splits: tuple[str, ...]) -> int:
        """Frames of the chunk files that are there, whole or not."""
        there = ((s, n) for s in splits for n in range(self.count(s)) if self.path(s, n).exists())
        return sum(len(self._people(s, n)) for s, n in there) * self._config.frames_per_person

    def get(self, split: str, number: int) -> list[chunks.Example]:
        """Chunk `number` of a split: from disk if it is whole there, else rendered and written."""
        name, index = self._name(split, number), self._people(split, number)
        chunk = self._store.get(name)
        if chunk is None:
            chunk = render_chunk(self._config, split, index)
            self._store.put(name, chunks.pack(chunk))
            self.frames_rendered += len(chunk)
        return chunk
