"""Embeds frames of one modality with a trained encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rgbd_reid_jax.core.mesh import replicated, shard_batch
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.data.dataset import Frames
from rgbd_reid_jax.data.inputs import InputSpec, plain_input
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
        self._embed = jax.jit(encoder, out_shardings=replicated(mesh))

    def __call__(self, params: Any, batch_stats: Any, frames: Frames, stage: str = "") -> np.ndarray:
        """Embeddings of all frames in order: float32 [N, D]; with `stage`, long work prints progress."""
        names = RAW_IMAGES[self._encoder.modality]
        params, batch_stats = jax.device_put((params, batch_stats), replicated(self._mesh))  # once, not per batch
        rows = self._batch // jax.process_count()
        offset = rows * jax.process_index()
        progress = Progress(stage, len(frames), unit="frame") if stage else None
        pieces = []
        for start in range(0, len(frames), self._batch):
            mine = np.minimum(np.arange(start + offset, start + offset + rows), len(frames) - 1)
            batch = shard_batch(frames.gather(mine, names), self._mesh)
            pieces.append(np.asarray(self._embed(params, batch_stats, batch)))
            if progress:
                progress.update(min(start + self._batch, len(frames)))
        return np.concatenate(pieces)[: len(frames)]


def labelled(embedding: np.ndarray, frames: Frames, modality: str) -> Embeddings:
    """Embeddings [N, D] with the labels of their frames."""
    names = ("person_id", "camera_id", "recording_id", "frame_id", "clothes_id")
    return Embeddings(embedding=embedding, modality=modality, **{name: frames.labels[name] for name in names})
