"""The encoded records of a split: labels without decoding an image, images of the frames that are asked for.

A record is a serialized `tf.train.Example` (what TFDS writes); it is parsed once, and its PNG or JPEG bytes are decoded
without holding the interpreter's lock, so threads decode side by side. TFDS's own reader gives the same arrays, one
feature after the other, at several times the cost per record.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.png import decode_greys
from tfds_builders import schema

IMAGES, IMAGE_TYPES = schema.IMAGES, schema.IMAGE_TYPES
LABELS = (*schema.LABELS, "modalities")
NAMES = ("camera_name", "passage_name")
"""Texts that some datasets have and evaluation protocols use."""

# Unlike the others, IMREAD_UNCHANGED never turns an image by its EXIF tag.
_FLAGS = {
    "rgb": cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    "depth": cv2.IMREAD_UNCHANGED,
    "mask": cv2.IMREAD_UNCHANGED,
}
_TOGETHER = 8  # records that are read before their images are decoded: they fit a core's caches
_IN_A_ROW = 512  # records that are read at once for their labels, which takes a third of the time


class Source(Protocol):
    """Bytes by index: what `builder.as_data_source` gives."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> bytes: ...

    def __getitems__(self, indices: Sequence[int], /) -> Sequence[bytes]: ...


class Records:
    """The records of one split.

    Args:
        source: serialized examples.
        name: of the split, for messages: "synthetic_rgbd/quick/1.1.0 train".
    """

    def __init__(self, source: Source, name: str):
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def labels(self) -> dict[str, np.ndarray]:
        """One int64 [N] per name in `LABELS`, text [N] per name in `NAMES` that is there; no image is decoded."""
        found = {name: np.empty(len(self), np.int64) for name in LABELS}
        texts: dict[str, list[str]] = {}
        for start in range(0, len(self), _IN_A_ROW):
            rows = range(start, min(start + _IN_A_ROW, len(self)))
            for row, record in zip(rows, self._source.__getitems__(rows), strict=True):
                features = _parsed(record)
                for name, column in found.items():
                    column[row] = features[name].int64_list.value[0]
                for name in NAMES:
                    if name in features:
                        texts.setdefault(name, []).append(features[name].bytes_list.value[0].decode())
        return found | {name: np.array(column) for name, column in texts.items()}

    def decode(self, indices: Sequence[int] | np.ndarray, images: Sequence[str]) -> dict[str, np.ndarray]:
        """Images of some frames, stacked.

        Args:
            indices: int [n].
            images: some of `IMAGES`.

        Returns:
            `rgb` uint8 [n, H, W, 3], `depth` uint16 [n, H, W, 1], `mask` uint8 [n, H, W, 1].

        Raises:
            InputError: a record cannot be decoded, or its image has another size or type than the others.
        """
        found: dict[str, np.ndarray] = {}
        rows = [int(index) for index in indices] if len(images) else []
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            records = [_parsed(self._source[row]) for row in some]
            for name in images:
                files = [features[name].bytes_list.value[0] for features in records]
                for place, image in enumerate(self._decoded(files, name, some), start):
                    if not place:
                        found[name] = np.empty((len(rows), *image.shape), image.dtype)
                    if image.shape != found[name].shape[1:]:
                        raise self._damaged(rows[place], f"{name} is {image.shape}, others are {found[name].shape[1:]}")
                    found[name][place] = image
        return found

    def _decoded(self, files: Sequence[bytes], name: str, rows: Sequence[int]) -> Iterator[np.ndarray]:
        decoded = [None] * len(files) if name == "rgb" else decode_greys(files)
        for row, encoded, image in zip(rows, files, decoded, strict=True):
            if image is None and encoded:
                image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _FLAGS[name])
            if image is None:
                raise self._damaged(row, f"its {name} image cannot be decoded")
            shaped = image if image.ndim == 3 else image[:, :, None]
            dtype, channels = IMAGE_TYPES[name]
            if shaped.dtype != dtype or shaped.shape[2] != channels:
                raise self._damaged(row, f"{name} is {shaped.dtype} {list(shaped.shape)}, not {np.dtype(dtype)}")
            yield shaped

    def _damaged(self, row: int, what: str) -> InputError:
        return InputError(f"{self._name}, record {row}: {what}; delete the dataset's folder and build it again")


def _parsed(record: bytes) -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue] (made at import)
