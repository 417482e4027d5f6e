"""How two modalities' images are compared, whatever the method: plain distances, gates, or pair by pair.

Within a modality such a gate has no part: it is one modality's say in the filters of the other. The control that gates
itself is part of its encoder (`embed.py`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgbd_reid_jax.core.compiler import compiler_options
from rgbd_reid_jax.core.errors import memory_for
from rgbd_reid_jax.core.mesh import batch_sharding, make_mesh, replicated
from rgbd_reid_jax.evaluation.embed import Encoder
from rgbd_reid_jax.evaluation.top_k import rerank_top
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.protocols.passages import mean_of_frames
from rgbd_reid_jax.metrics.ranking import RankingResult, natural_metric, rank

_PAIRS = 512  # compared at once by networks, or as many more as devices can share


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """One modality's images as its encoder sees them.

    Attributes:
        embeddings: with `gate` where gates are pairwise.
        weights: the encoder's (parameters, batch statistics).
        maps: float [N, h, w, C], what the other side's gates choose from, of a gate in the middle.
        map_gates: float32 [N, C], the gates on the other side's maps.
    """

    embeddings: Embeddings
    weights: tuple[Any, Any]
    maps: np.ndarray | None = None
    map_gates: np.ndarray | None = None


class Comparison:
    """Ranks one side by the other.

    Args:
        protocol: exclusion rule.
        encoders: by modality, for gates in the middle.
        multi_frame: compare recordings, each the mean of its frames.
        top_k: with a gate in the middle, how many of a query's nearest are compared pair by pair.
        mesh: devices of this process, which share the ranking, and pairs for the networks; one when None.
    """

    def __init__(
        self,
        protocol: str,
        encoders: Mapping[str, Encoder],
        multi_frame: bool,
        top_k: int,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._protocol, self._encoders = protocol, encoders
        self._multi_frame, self._top_k = multi_frame, top_k
        self._mesh = mesh or make_mesh(devices=jax.local_devices()[:1])

        def distance(
            weights: Mapping[str, tuple[Any, Any]], maps: Mapping[str, jax.Array], gates: Mapping[str, jax.Array]
        ):
            rgb, depth = (
                encoders[own].gated(*weights[own], maps[own], gates[opposite])
                for own, opposite in (("rgb", "depth"), ("depth", "rgb"))
            )
            return jnp.sqrt(jnp.sum((rgb - depth) ** 2, axis=1))

        self._distance = jax.jit(distance, compiler_options=compiler_options(self._mesh.devices.flat[0]))

    def sides(self, sets: Mapping[str, Compared]) -> dict[str, Embeddings]:
        """What is ranked: the embeddings, or their means over recordings."""
        found = {name: one.embeddings for name, one in sets.items()}
        if self._multi_frame:
            found = {name: mean_of_frames(one, "evaluation.multi_frame") for name, one in found.items()}
        return found

    def __call__(
        self, sets: Mapping[str, Compared], query: str, gallery: str, stage: str = "", *, pair_by_pair: bool = True
    ) -> RankingResult:
        """Ranks the gallery modality for every query of the query modality.

        Args:
            sets: by modality.
            query: modality of the queries.
            gallery: modality of the gallery.
            stage: names long work in progress lines; none are printed without.
            pair_by_pair: re-rank with a gate in the middle, where there is one.
        """
        with memory_for(f"ranking {gallery} images for {query} images"):
            return self._ranked(sets, query, gallery, stage, pair_by_pair)

    def _ranked(
        self, sets: Mapping[str, Compared], query: str, gallery: str, stage: str, pair_by_pair: bool
    ) -> RankingResult:
        sides = self.sides(sets)
        metric = natural_metric(sides[query], sides[gallery])
        if not (query != gallery and pair_by_pair and self._top_k and sets[query].maps is not None):
            return rank(sides[query], sides[gallery], self._protocol, metric=metric, mesh=self._mesh)
        return rerank_top(
            sides[query],
            sides[gallery],
            self._protocol,
            self._top_k,
            self._pair_distance(sets, query, gallery),
            batch=-(-_PAIRS // self._mesh.size) * self._mesh.size,
            stage=stage,
            mesh=self._mesh,
        )

    def _pair_distance(self, sets: Mapping[str, Compared], query: str, gallery: str):
        # By way of the host: weights may lie on the devices of several processes, of which one alone ranks.
        weights = jax.device_get({name: one.weights for name, one in sets.items()})
        weights = jax.device_put(weights, replicated(self._mesh))

        def distance(query_rows: np.ndarray, gallery_rows: np.ndarray) -> jax.Array:
            rows = {query: query_rows, gallery: gallery_rows}
            maps = {name: _taken(one.maps, rows[name]) for name, one in sets.items()}
            gates = {name: _taken(one.map_gates, rows[name]) for name, one in sets.items()}
            return self._distance(weights, *jax.device_put((maps, gates), batch_sharding(self._mesh)))

        return distance


def _taken(array: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    assert array is not None, "both sides have a gate in the middle or none has"
    return array[rows]
