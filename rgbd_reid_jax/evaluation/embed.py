"""Embeds frames of one modality with a trained encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np

from rgbd_reid_jax.core.compiler import compiler_options
from rgbd_reid_jax.core.distributed import replicate
from rgbd_reid_jax.core.errors import memory_for
from rgbd_reid_jax.core.mesh import replicated, shard_batch
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.data.frames import Frames, Placed
from rgbd_reid_jax.data.inputs import InputSpec, plain_input
from rgbd_reid_jax.data.pipeline import Fetch, prefetched, with_images
from rgbd_reid_jax.losses.pairs import l2_normalise
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.models.convolution import PREPARED
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.models.pair import Gate

RAW_IMAGES = {"rgb": ("rgb",), "depth": ("depth", "mask")}
Outputs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network with its input: raw frames of one modality to embeddings.

    Attributes:
        model: the network, without classifier.
        spec: size and depth representation.
        modality: "rgb" or "depth".
        normalise: scale embeddings to unit length, so that Euclidean order is cosine order.
        gate: the gate that this modality puts on the other one (on itself, if of kind "self"); its parameters are
            `params["gate"]`.
    """

    model: Model
    spec: InputSpec
    modality: str
    normalise: bool
    gate: Gate | None = None

    def __call__(self, params: Any, batch_stats: Any, batch: Mapping[str, Any]) -> jax.Array:
        """Raw images (`rgb`, or `depth` and `mask`) to float32 [B, D]."""
        return self.outputs(params, batch_stats, batch)["embedding"]

    def answer(self, params: Any, batch_stats: Any, batch: Mapping[str, Any]) -> Outputs:
        """What an exported program gives: `embedding`, and `gate` where it is pairwise."""
        found = self.outputs(params, batch_stats, batch)
        return {name: found[name] for name in self.answers}

    @property
    def answers(self) -> tuple[str, ...]:
        """The names in `answer`."""
        return ("embedding", "gate") if self.gate and self.gate.spec.kind == "pairwise" else ("embedding",)

    def outputs(self, params: Any, batch_stats: Any, batch: Mapping[str, Any]) -> Outputs:
        """What a comparison with the other modality needs.

        Returns:
            `embedding` float32 [B, D]; with a pairwise gate also `gate` float32 [B, D]; with one in the middle `map`,
            the gated stage's [B, h, w, C], and `gate` float32 [B, C].
        """
        images = plain_input(self.spec, self.modality, batch)
        kind = self.gate.spec.kind if self.gate else "none"
        found: Outputs = {}
        if self.gate and kind == "middle":
            part = self.gate.spec.part
            found["map"] = self.model.lower(params, batch_stats, images, self.modality, part)
            found["gate"] = self.gate(params["gate"], found["map"].mean(axis=(1, 2)))
            embedding = self.model.upper(params, batch_stats, found["map"], self.modality, part)
        else:
            embedding = self.model.embed(params, batch_stats, images, self.modality)
        embedding = self._scaled(embedding)
        if self.gate and kind == "pairwise":
            found["gate"] = self.gate(params["gate"], embedding)
        if self.gate and kind == "self":
            embedding = embedding * self.gate(params["gate"], embedding)
        return found | {"embedding": embedding}

    def prepared(self, params: Any, batch_stats: Any) -> Any:
        """What `outputs` computes on CPUs from the weights alone; it uses that where `params[PREPARED]` holds it."""
        return self.model.prepared(params, batch_stats, self.spec.height, self.spec.width, self.modality)

    def gated(self, params: Any, batch_stats: Any, maps: jax.Array, gates: jax.Array) -> jax.Array:
        """Embeddings float32 [B, D] of maps [B, h, w, C] under gates [B, C] of the other modality's images."""
        assert self.gate is not None, "called with a gate in the middle alone"
        chosen = maps * gates[:, None, None].astype(maps.dtype)
        return self._scaled(self.model.upper(params, batch_stats, chosen, self.modality, self.gate.spec.part))

    def _scaled(self, embedding: jax.Array) -> jax.Array:
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

        def embed(params: Any, batch_stats: Any, batch: Mapping[str, Any], placed: Placed) -> Outputs:
            return encoder.outputs(params, batch_stats, with_images(batch, placed))

        options = compiler_options(mesh.devices.flat[0])
        self._embed = jax.jit(embed, out_shardings=replicated(mesh), compiler_options=options)
        self._prepare = jax.jit(encoder.prepared, out_shardings=replicated(mesh))

    def __call__(self, params: Any, batch_stats: Any, frames: Frames, stage: str = "") -> dict[str, np.ndarray]:
        """`Encoder.outputs` of all frames in order, [N, ...] each; with `stage`, long work prints progress.

        Raises:
            InputError: the devices have too little memory.
        """
        fewer = self._batch // 2 // self._mesh.size * self._mesh.size
        mend = f"say --config.evaluation.batch_size={fewer}" if fewer else "choose a smaller network or input"
        with memory_for(f"embedding {self._encoder.modality} with evaluation.batch_size={self._batch}", mend):
            return self._outputs(params, batch_stats, frames, stage)

    def _outputs(self, params: Any, batch_stats: Any, frames: Frames, stage: str) -> dict[str, np.ndarray]:
        names = RAW_IMAGES[self._encoder.modality]
        params, batch_stats = replicate((params, batch_stats), self._mesh, "weights")  # once, not per batch
        if self._mesh.devices.flat[0].platform == "cpu":
            params = {**params, PREPARED: self._prepare(params, batch_stats)}
        placed = frames.placed(names, self._mesh)
        fetch = Fetch(frames, names, {}, (jax.process_index(), jax.process_count()), placed)
        starts = range(0, len(frames), self._batch)
        rows = grain.MapDataset.source(starts).map(lambda start: self._rows(start, len(frames)))
        progress = Progress(stage, len(frames), unit="frame") if stage else None
        pieces: list[Outputs] = []
        for start, batch in zip(starts, prefetched(rows.map(fetch), frames, placed), strict=True):
            pieces.append(self._embed(params, batch_stats, shard_batch(batch, self._mesh), placed))
            pieces[-2:-1] = [_on_host(piece) for piece in pieces[-2:-1]]  # one batch ahead of the devices, no more
            if progress:
                progress.update(min(start + self._batch, len(frames)))
        pieces[-1:] = [_on_host(piece) for piece in pieces[-1:]]
        return {name: np.concatenate([piece[name] for piece in pieces])[: len(frames)] for name in pieces[0]}

    def _rows(self, start: int, count: int) -> np.ndarray:
        rows = np.minimum(np.arange(start, start + self._batch), count - 1)
        return np.stack([rows, rows], axis=1)


def _on_host(piece: Outputs) -> Outputs:
    return {name: np.asarray(value) for name, value in piece.items()}


def labelled(embedding: np.ndarray, frames: Frames, modality: str, gate: np.ndarray | None = None) -> Embeddings:
    """Embeddings [N, D], and their gates if they have some, with the labels of their frames."""
    names = {field.name for field in dataclasses.fields(Embeddings)} & frames.labels.keys()
    labels: dict[str, Any] = {name: frames.labels[name] for name in names}
    return Embeddings(embedding=embedding, modality=modality, gate=gate, **labels)
