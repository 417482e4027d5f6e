"""Every record of a dataset looked at: labels, and what its images are like.

`look_at` reads one split in one pass, on all cores; what is wrong with a record is noted and not raised, so that all
of it can be told at once.
"""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from rgbd_reid_jax.core import cpus
from rgbd_reid_jax.data.records import IMAGE_TYPES, IMAGES, LABELS, NAMES
from tfds_builders import schema
from tfds_builders.recorded.images import FARTHEST_MM

NEAREST_MM = 300
"""No person whose median depth is less is in view from head to hip: the unit is another one."""
_FAR_SHARE = 0.01
_CHUNK = 256  # records held at once
_BITS = {"rgb": schema.RGB, "depth": schema.DEPTH}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one record is like.

    Attributes:
        labels: by name, `LABELS`.
        file: what it was read from, "" where unknown.
        faults: (kind, one line) of each fault that it has by itself.
        size: (height, width), or None where no image decodes.
        content: digest of each recorded image, by modality.
        person_mm: median depth of the person in mm; 0 where there is none.
        names: `records.NAMES` of the record, "" where it has none.
    """

    labels: dict[str, int]
    file: str
    faults: tuple[tuple[str, str], ...] = ()
    size: tuple[int, int] | None = None
    content: dict[str, bytes] = dataclasses.field(default_factory=dict)
    person_mm: float = 0.0
    names: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of a split.

    Attributes:
        name: of the split.
        source: serialized records by index.
        seen: one per record.
        labels: int64 [N] by name, `LABELS`.
    """

    name: str
    source: Any
    seen: Sequence[Seen]
    labels: dict[str, np.ndarray]

    def called(self, row: int) -> str:
        """What a record is called in messages."""
        file = self.seen[row].file
        return f"{self.name} record {row}" + (f" ({file})" if file else "")

    def named(self, name: str) -> np.ndarray:
        """Text [N]: one of `records.NAMES`."""
        return np.array([one.names[name] for one in self.seen])

    def recorded(self, modality: str) -> np.ndarray:
        """bool [N]: of which records `modality` was recorded."""
        return self.labels["modalities"] & _BITS[modality] != 0


def look_at(name: str, source: Any, report: Callable[[int], object]) -> Split:
    """Looks at all records of a split.

    Args:
        name: of the split.
        source: serialized examples, `builder.as_data_source(name, deserialize_method=RAW_BYTES)`.
        report: is told how many records are done.
    """
    seen: list[Seen] = []
    with concurrent.futures.ThreadPoolExecutor(cpus.usable()) as pool:
        for start in range(0, len(source), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(source)))
            seen += pool.map(look, source.__getitems__(rows))
            report(len(seen))
    labels = {label: np.array([one.labels[label] for one in seen], np.int64) for label in LABELS}
    return Split(name, source, seen, labels)


def images_of(record: bytes) -> dict[str, np.ndarray | None]:
    """The images of a serialized record by name, as they were stored: [H, W] or [H, W, 3]; None where damaged."""
    features = _features(record)
    return {name: _decoded(features, name) for name in IMAGES}


def _features(record: bytes) -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue] (made at import)


def _decoded(features: Any, name: str) -> np.ndarray | None:
    encoded = np.frombuffer(b"".join(features[name].bytes_list.value), np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if len(encoded) else None
    return image[:, :, ::-1] if image is not None and image.ndim == 3 else image


def look(record: bytes) -> Seen:
    """What a serialized record is like."""
    features = _features(record)
    labels = {name: next(iter(features[name].int64_list.value), 0) for name in LABELS}
    file, *names = (b"".join(features[name].bytes_list.value).decode() for name in ("source", *NAMES))
    images = {name: _decoded(features, name) for name in IMAGES}
    faults = [("undecodable", f"its {name} image does not decode") for name in IMAGES if images[name] is None]
    good = {name: image for name, image in images.items() if image is not None}
    if not labels["modalities"]:
        faults.append(("no_modality", "it says that neither colour nor depth was recorded"))
    faults += _shape_faults(good)
    recorded = [name for name, bit in _BITS.items() if labels["modalities"] & bit and name in good]
    content = {name: _digest(good[name]) for name in recorded if good[name].any()}
    person_mm = 0.0
    if not faults and labels["modalities"] & schema.DEPTH:
        faults, person_mm = _depth_faults(good["depth"], good["mask"])
    size = next(((image.shape[0], image.shape[1]) for image in good.values()), None)
    return Seen(labels, file, tuple(faults), size, content, person_mm, dict(zip(NAMES, names, strict=True)))


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _shape_faults(images: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    faults = []
    for name, image in images.items():
        dtype, channels = IMAGE_TYPES[name]
        found = 1 if image.ndim == 2 else image.shape[2]
        if image.dtype != dtype or found != channels:
            wanted = f"{channels} x {np.dtype(dtype)}"
            faults.append(("wrong_type", f"its {name} image has {found} x {image.dtype} where {wanted} is due"))
    sizes = {name: f"{image.shape[1]}x{image.shape[0]}" for name, image in images.items()}
    if len(set(sizes.values())) > 1:
        faults.append(("size_mismatch", ", ".join(f"{name} {size}" for name, size in sizes.items())))
    return faults


def _depth_faults(depth: np.ndarray, mask: np.ndarray) -> tuple[list[tuple[str, str]], float]:
    """The faults of a depth image uint16 [H, W] with its mask, and the person's median depth in mm."""
    faults = []
    if not mask.any():
        faults.append(("empty_mask", "its mask has no person"))
    valid = depth > 0
    if not valid.any():
        return [*faults, ("no_depth", "no pixel has a depth")], 0.0
    on_person = valid & (mask > 0)
    person_mm = float(np.median(depth[on_person if on_person.any() else valid]))
    far = float((depth[valid] > FARTHEST_MM).mean())
    if not NEAREST_MM <= person_mm <= FARTHEST_MM:
        faults.append(("depth_range", f"the person is at {person_mm / 1000:.2f} m"))
    elif far > _FAR_SHARE:
        faults.append(("depth_range", f"{100 * far:.0f} % of its depths exceed {FARTHEST_MM / 1000:.0f} m"))
    return faults, person_mm
