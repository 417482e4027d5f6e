"""Finished parts of a long build, kept on disk until the dataset is whole.

A build that is killed starts again where it stopped: whole chunks are reused, damaged ones are made again.
A chunk is a list of examples; its file is their SHA-256 digest (32 bytes) followed by a msgpack list.
"""

import hashlib
import pathlib
import shutil
from typing import Any

import msgpack
import numpy as np

from rgbd_reid_jax.core import files

_DIGEST_BYTES = 32
Example = dict[str, Any]
"""Feature name to bytes, text, number or array."""


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"a chunk cannot hold arrays of {array.dtype}")
        return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}
    raise TypeError(f"a chunk cannot hold {type(value)}")


def _array(value: dict) -> Any:
    if value.keys() == {"dtype", "shape", "data"}:
        return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
    return value


def pack(examples: list[Example]) -> bytes:
    """The file content of a chunk."""
    body: Any = msgpack.packb(examples, default=_plain)
    return hashlib.sha256(body).digest() + body


def unpack(content: bytes) -> list[Example] | None:
    """The chunk's examples, or None where the content is not whole."""
    body = content[_DIGEST_BYTES:]
    if len(content) <= _DIGEST_BYTES or hashlib.sha256(body).digest() != content[:_DIGEST_BYTES]:
        return None
    return msgpack.unpackb(body, object_hook=_array)


class ChunkStore:
    """The chunks of one dataset.

    Args:
        parent: the folder that holds the dataset's version folders.
        fingerprint: changes whenever chunks would hold other data; the store is `building-<fingerprint>` in `parent`.
    """

    def __init__(self, parent: pathlib.Path, fingerprint: str):
        self._parent = pathlib.Path(parent)
        self.folder = self._parent / f"building-{fingerprint}"

    def path(self, name: str) -> pathlib.Path:
        """The file of one chunk."""
        return self.folder / f"{name}.chunk"

    def get(self, name: str) -> list[Example] | None:
        """The examples of a chunk that is there and whole, else None."""
        path = self.path(name)
        return unpack(path.read_bytes()) if path.exists() else None

    def put(self, name: str, content: bytes) -> None:
        """Writes a chunk from `pack`, whole or not at all."""
        files.write_bytes(self.path(name), content)

    def remove(self) -> None:
        """Deletes this store and those of other fingerprints beside it."""
        for folder in self._parent.glob("building-*"):
            shutil.rmtree(folder, ignore_errors=True)
