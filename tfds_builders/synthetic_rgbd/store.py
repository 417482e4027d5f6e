"""Rendered frames in chunks of people, kept on disk until the dataset is whole.

A killed build starts again where it stopped: whole chunks are reused, damaged ones are rendered again.
A chunk file is its SHA-256 digest (32 bytes) followed by an npz archive.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import pathlib
import shutil
import zipfile
from typing import Any

import cv2
import jax
import numpy as np

from rgbd_reid_jax.core import files
from tfds_builders.schema import PAIRED
from tfds_builders.synthetic_rgbd import render, scene, sensor
from tfds_builders.synthetic_rgbd.config import SyntheticRgbdConfig, fingerprint
from tfds_builders.synthetic_rgbd.draws import exact

LABELS = ("person_id", "camera_id", "recording_id", "recording_type", "frame_id", "clothes_id")
IMAGES = ("rgb", "depth", "mask")
_FRAMES_PER_CHUNK = 384
_PNG_LEVEL = 1


@dataclasses.dataclass(frozen=True)
class Chunk:
    """F encoded frames.

    Attributes:
        images: for each of `IMAGES` the F PNG files.
        labels: for each of `LABELS` int32 [F].
        person_box: float32 [F, 4], (ymin, xmin, ymax, xmax) around the mask, pixel edges.
        intrinsics: float32 [F, 4], (fx, fy, cx, cy).
    """

    images: dict[str, list[bytes]]
    labels: dict[str, np.ndarray]
    person_box: np.ndarray
    intrinsics: np.ndarray

    def example(self, index: int) -> dict[str, Any]:
        """Frame `index` as `schema.frame_features` wants it."""
        example: dict[str, Any] = {name: self.images[name][index] for name in IMAGES}
        example |= {name: self.labels[name][index] for name in LABELS}
        example |= {"person_box": self.person_box[index], "intrinsics": self.intrinsics[index]}
        return example | {"modalities": np.int32(PAIRED)}


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


def encode_png(image: np.ndarray) -> bytes:
    """`image` uint8 [H, W, 3] (RGB), uint8 or uint16 [H, W] as a PNG file."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    assert done, "OpenCV could not encode a PNG"
    return encoded.tobytes()


def render_chunk(config: SyntheticRgbdConfig, split: str, index: np.ndarray, batch: int | None = None) -> Chunk:
    """Renders and encodes all frames of the people `index` of a split."""
    frames, images = render_arrays(config, split, index, batch)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        encoded = {name: list(pool.map(encode_png, getattr(images, name), chunksize=32)) for name in IMAGES}
    labels = {name: frames.labels[name].astype(np.int32) for name in LABELS}
    return Chunk(encoded, labels, person_boxes(images.mask), frames.intrinsics.astype(np.float32))


def _pack(chunk: Chunk) -> bytes:
    arrays: dict[str, Any] = dict(chunk.labels) | {"person_box": chunk.person_box, "intrinsics": chunk.intrinsics}
    for name, encoded in chunk.images.items():
        arrays[f"{name}_sizes"] = np.array([len(e) for e in encoded], np.int64)
        arrays[f"{name}_bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def _unpack(content: bytes) -> Chunk | None:
    """The chunk, or None if the content is not whole."""
    if len(content) < 32 or hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    try:
        arrays = np.load(io.BytesIO(content[32:]), allow_pickle=False)
    except (ValueError, zipfile.BadZipFile):
        return None
    images = {}
    for name in IMAGES:
        ends, whole = np.cumsum(arrays[f"{name}_sizes"]), arrays[f"{name}_bytes"].tobytes()
        images[name] = [whole[end - size : end] for end, size in zip(ends, arrays[f"{name}_sizes"], strict=True)]
    return Chunk(images, {name: arrays[name] for name in LABELS}, arrays["person_box"], arrays["intrinsics"])


class ChunkStore:
    """The chunks of one config below `parent`.

    Args:
        config: what is rendered.
        parent: the folder that holds the dataset's version folders; the store is `rendering-<fingerprint>` in it.
    """

    def __init__(self, config: SyntheticRgbdConfig, parent: pathlib.Path):
        self._config = config
        self._parent = pathlib.Path(parent)
        self.folder = self._parent / f"rendering-{fingerprint(config)}"
        self.frames_rendered = 0
        self._per_chunk = max(1, _FRAMES_PER_CHUNK // config.frames_per_person)

    def count(self, split: str) -> int:
        """Number of chunks of a split."""
        return -(-self._config.people(split) // self._per_chunk)

    def _people(self, split: str, number: int) -> np.ndarray:
        start = number * self._per_chunk
        return np.arange(start, min(start + self._per_chunk, self._config.people(split)))

    def path(self, split: str, number: int) -> pathlib.Path:
        """The file of one chunk; its name tells how many people a chunk holds."""
        return self.folder / f"{split}-{self._per_chunk}x{number:05d}.chunk"

    def frames_present(self, splits: tuple[str, ...]) -> int:
        """Frames of the chunk files that are there, whole or not."""
        there = ((s, n) for s in splits for n in range(self.count(s)) if self.path(s, n).exists())
        return sum(len(self._people(s, n)) for s, n in there) * self._config.frames_per_person

    def get(self, split: str, number: int) -> Chunk:
        """Chunk `number` of a split: from disk if it is whole there, else rendered and written."""
        path, index = self.path(split, number), self._people(split, number)
        chunk = _unpack(path.read_bytes()) if path.exists() else None
        if chunk is not None:
            return chunk
        chunk = render_chunk(self._config, split, index)
        files.write_bytes(path, _pack(chunk))
        self.frames_rendered += len(index) * self._config.frames_per_person
        return chunk

    def remove(self) -> None:
        """Deletes this store and those of other fingerprints beside it."""
        for folder in self._parent.glob("rendering-*"):
            shutil.rmtree(folder, ignore_errors=True)
