"""Embeds frames of one modality with a trained encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np

from rgbd_reid_jax.core.distributed import replicate
from rgbd_reid_jax.core.mesh import replicated, shard_batch
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.data.frames import Frames, Placed
from rgbd_reid_jax.data.inputs import InputSpec, plain_input
from rgbd_reid_jax.data.pipeline import Fetch, prefetched, with_images
from rgbd_reid_jax.losses.distillation import l2_normalise
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.models.network import Model

RAW_IMAGES = {"rgb": ("rgb",), "depth": ("depth", "mask")}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network with its input: raw frames of one modality to embeddings.

    Attributes:
        model: the network, without classifier.
        spec: size and depth representation.
        modality: "rgb" or "depth".
        normalise: scale embeddings to unit length, so that Euclidean order is cosine order.
    """

    model: Model
    spec: InputSpec
    modality: str
    normalise: bool

    def __call__(self, params: Any, batch_stats: Any, batch: Mapping[str, Any]) -> jax.Array:
        """Raw images (`rgb`, or `depth` and `mask`) to float32 [B, D]."""
        images = plain_input(self.spec, self.modality, batch)
        embedding = self.model.embed(params, batch_stats, images)
        return l2_normalise(embedding) if self.normalise else embedding


class Embedder:
    """An encoder compiled once for batches of one size, over all devices.

    Args:
        encoder: what to compute.
        batch_size: frames per step, rounded up to a multiple of the devices; the last batch is padded
            and its padding cut off again.
        mesh: all devices.
    """

    def __init__(self, encoder: Encoder, batch_size: int, mesh: jax.sharding.Mesh):
        self._encoder, self._mesh = encoder, mesh
        self._batch = -(-batch_size // mesh.size) * mesh.size

        def embed(params: Any, batch_stats: Any, batch: Mapping[str, Any], placed: Placed) -> jax.Array:
            return encoder(params, batch_stats, with_images(batch, placed))

        self._embed = jax.jit(embed, out_shardings=replicated(mesh))

    def __call__(self, params: Any, batch_stats: Any, frames: Frames, stage: str = "") -> np.ndarray:
        """Embeddings of all frames in order: float32 [N, D]; with `stage`, long work prints progress."""
        names = RAW_IMAGES[self._encoder.modality]
        params, batch_stats = replicate((params, batch_stats), self._mesh, "weights")  # once, not per batch
        placed = frames.placed(names, self._mesh)
        fetch = Fetch(frames, names, {}, (jax.process_index(), jax.process_count()), placed)
        starts = range(0, len(frames), self._batch)
        rows = grain.MapDataset.source(starts).map(lambda start: self._rows(start, len(frames)))
        progress = Progress(stage, len(frames), unit="frame") if stage else None
        pieces: list[Any] = []
        for start, batch in zip(starts, prefetched(rows.map(fetch), frames, placed), strict=True):
            pieces.append(self._embed(params, batch_stats, shard_batch(batch, self._mesh), placed))
            pieces[-2:-1] = [np.asarray(piece) for piece in pieces[-2:-1]]  # one batch ahead of the devices, no more
            if progress:
                progress.update(min(start + self._batch, len(frames)))
        return np.concatenate(pieces)[: len(frames)]

    def _rows(self, start: int, count: int) -> np.ndarray:
        rows = np.minimum(np.arange(start, start + self._batch), count - 1)
        return np.stack([rows, rows], axis=1)


def labelled(embedding: np.ndarray, frames: Frames, modality: str) -> Embeddings:
    """Embeddings [N, D] with the labels of their frames."""
    names = {field.name for field in dataclasses.fields(Embeddings)} & frames.labels.keys()
    labels: dict[str, Any] = {name: frames.labels[name] for name in names}
    return Embeddings(embedding=embedding, modality=modality, **labels)
