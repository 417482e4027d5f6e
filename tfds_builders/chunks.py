"""Finished parts of a long build, kept on disk until the dataset is whole.

A build that is killed starts again where it stopped: whole chunks are reused, damaged ones are made again.
A chunk is a list of examples; its file is their SHA-256 digest (32 bytes) followed by a msgpack list.

`shards` hands chunks to TFDS. Its `GeneratorBasedBuilder` would hold a whole split in memory, and from 1 GiB on import
TensorFlow to sort it; its `ShardBasedBuilder` writes what it is given in that order and holds one shard.
"""

import functools
import hashlib
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

from rgbd_reid_jax.core import files

SHARD_BYTES = 256 << 20
"""Greatest size of a shard, and so about what a build holds in memory."""
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


def folder_name(fingerprint: str) -> str:
    """The name of a store's folder."""
    return f"building-{fingerprint}"


class ChunkStore:
    """The chunks of one dataset.

    Args:
        parent: the folder that holds the dataset's version folders.
        fingerprint: changes whenever chunks would hold other data; the store is `folder_name(fingerprint)` in `parent`.
    """

    def __init__(self, parent: pathlib.Path, fingerprint: str):
        self._parent = pathlib.Path(parent)
        self.folder = self._parent / folder_name(fingerprint)

    def path(self, name: str) -> pathlib.Path:
        """The file of one chunk."""
        return self.folder / f"{name}.chunk"

    def get(self, name: str) -> list[Example] | None:
        """The examples of a chunk that is there and whole, else None."""
        try:
            return unpack(self.path(name).read_bytes())
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Writes a chunk from `pack`, whole or not at all."""
        files.write_bytes(self.path(name), content)

    def size(self) -> int:
        """Bytes of the chunks that are there."""
        return sum(path.stat().st_size for path in self.folder.glob("*.chunk"))

    def remove(self) -> None:
        """Deletes this store and those of other fingerprints beside it."""
        for folder in self._parent.glob(folder_name("*")):
            shutil.rmtree(folder, ignore_errors=True)


def shards(split: Iterator[list[Example]], count: int, chunk_bytes: int) -> list[Callable[[], Iterator]]:
    """The chunks of a split as `tfds.core.ShardBasedBuilder._shard_iterators_per_split` wants them.

    Args:
        split: all chunks in order; it is exhausted when the last shard is.
        count: their number.
        chunk_bytes: the greatest size of one.

    Returns:
        For each shard a function that gives its (key, example); to be called in order, once each.
    """
    per_shard = max(1, SHARD_BYTES // chunk_bytes)
    keys = itertools.count()

    def examples(last: bool) -> Iterator[tuple[int, Example]]:
        for chunk in split if last else itertools.islice(split, per_shard):
            for example in chunk:
                yield next(keys), example

    number = -(-count // per_shard)
    return [functools.partial(examples, index == number - 1) for index in range(number)]
