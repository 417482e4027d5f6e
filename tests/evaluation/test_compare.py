"""How two modalities are compared: each kind of gate against pair by pair loops, and recordings against their means."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.evaluation import compare
from rgbd_reid_jax.evaluation.compare import Compared, Comparison
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES, Embedder, Encoder, labelled
from rgbd_reid_jax.evaluation.results import rank_directions
from rgbd_reid_jax.metrics import counting
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS, Embeddings
from rgbd_reid_jax.metrics.ranking import natural_metric, rank
from rgbd_reid_jax.models.pair import GateSpec, Pair

_PROTOCOL = "cross_camera"
_CROSS = (("rgb", "depth"), ("depth", "rgb"))
_WITHIN = (("rgb", "rgb"), ("depth", "depth"))


@pytest.fixture(scope="module")
def network(tiny_model):
    return tiny_model.without_classifier()


class Made:
    """Encoders of both modalities with trained gates, and the frames as they see them."""

    def __init__(self, network, kind, frames, mesh):
        pair = Pair(network, GateSpec(kind, rank=2, after=1))
        self.gate: Any = pair.gate_of()
        self.encoders, self.sets, self.images = {}, {}, {}
        for index, name in enumerate(("rgb", "depth")):
            params, batch_stats = network.init(jax.random.key(index), 16, 8)
            if self.gate:
                random = np.random.default_rng(index)
                fresh = self.gate.init(jax.random.key(index))
                params["gate"] = jax.tree.map(lambda x, r=random: r.normal(0, 0.8, x.shape).astype(np.float32), fresh)
            self.encoders[name] = Encoder(network, InputSpec(16, 8, "relative"), name, True, self.gate)
            weights = params, batch_stats
            found = Embedder(self.encoders[name], 8, mesh)(*weights, frames=frames)
            if "map" in found:
                embeddings = labelled(found["embedding"], frames, name)
                self.sets[name] = Compared(embeddings, weights, found["map"], found["gate"])
            else:
                embeddings = labelled(found["embedding"], frames, name, found.get("gate"))
                self.sets[name] = Compared(embeddings, weights)
            self.images[name] = frames.gather(np.arange(len(frames)), RAW_IMAGES[name])

    def comparison(self, top_k=0, multi_frame=False, mesh=None):
        return Comparison(_PROTOCOL, self.encoders, multi_frame, top_k, mesh)

    def gates(self, name, summary):
        """float64 [N, C], the gate's formula on float64 summaries."""
        params: Any = jax.device_get(self.sets[name].weights[0]["gate"])
        x = (summary - summary.mean(axis=1, keepdims=True)) / np.sqrt(summary.var(axis=1, keepdims=True) + 1e-6)
        z = x @ params["reduce"]["kernel"] @ params["expand"]["kernel"] + params["expand"]["bias"]
        return 2 / (1 + np.exp(-z))


@pytest.fixture(scope="module")
def made(network, make_frames, mesh_of):
    """Makes both encoders with gates of a kind, once for each."""
    found = {}

    def make(kind):
        if kind not in found:
            found[kind] = Made(network, kind, make_frames(16), mesh_of(1))
        return found[kind]

    return make


def scores(distance, query: Embeddings, gallery: Embeddings):
    """Step AP of each query, the same camera's frames left out; distances float64 [Q, G]."""
    found = []
    for row in range(len(query)):
        rest = np.flatnonzero(gallery.camera_id != query.camera_id[row])
        order = rest[np.argsort(distance[row, rest], kind="stable")]
        hits = gallery.person_id[order] == query.person_id[row]
        found.append(np.mean(np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)))
    return np.array(found)


def euclidean(query, gallery):
    q, g = (one.embedding.astype(np.float64) for one in (query, gallery))
    return np.sqrt(((q[:, None] - g[None]) ** 2).sum(axis=2))


def test_pairwise_gates_rank_as_the_formula(made):
    of_kind = made("pairwise")
    sides = {name: one.embeddings for name, one in of_kind.sets.items()}
    gates = {name: of_kind.gates(name, one.embedding.astype(np.float64)) for name, one in sides.items()}
    for name, one in sides.items():
        assert one.gate is not None
        np.testing.assert_allclose(one.gate, gates[name], rtol=1e-3)
    for query, gallery in _CROSS:
        q, g = (sides[name].embedding.astype(np.float64) for name in (query, gallery))
        # The gallery's gate is for the query's channels, and the other way round.
        apart = q[:, None] * gates[gallery][None] - g[None] * gates[query][:, None]
        distance = np.sqrt((apart**2).sum(axis=2))
        result = of_kind.comparison()(of_kind.sets, query, gallery)
        expected = scores(distance, sides[query], sides[gallery])
        np.testing.assert_allclose(result.ap, expected, atol=1e-6)
        assert not np.allclose(expected, scores(euclidean(sides[query], sides[gallery]), sides[query], sides[gallery]))


@pytest.mark.parametrize("kind", ["pairwise", "middle", "self", "none"])
def test_within_a_modality_no_gate_has_a_part(made, kind):
    of_kind = made(kind)
    for query, gallery in _WITHIN:
        one = of_kind.sets[query].embeddings
        result = of_kind.comparison(top_k=8)(of_kind.sets, query, gallery)
        np.testing.assert_allclose(result.ap, scores(euclidean(one, one), one, one), atol=1e-6)


def test_an_encoder_that_gates_itself_gives_the_gated_embedding(made):
    plain, gated = made("none"), made("self")
    for name in ("rgb", "depth"):
        embedding = plain.sets[name].embeddings.embedding.astype(np.float64)
        expected = embedding * gated.gates(name, embedding)
        np.testing.assert_allclose(gated.sets[name].embeddings.embedding, expected, rtol=1e-3, atol=1e-5)
        assert gated.sets[name].embeddings.gate is None


@pytest.fixture(scope="module")
def pair_by_pair(made):
    """float64 [N, N], RGB by depth: each pair through both networks, gated by each other's mean map."""
    of_kind = made("middle")
    maps, gates = {}, {}
    for name in ("rgb", "depth"):
        encoder, weights = of_kind.encoders[name], of_kind.sets[name].weights
        images = encoder.outputs(*weights, of_kind.images[name])["map"]
        maps[name] = np.asarray(images, np.float64)
        gates[name] = of_kind.gates(name, maps[name].mean(axis=(1, 2)))
    count = len(maps["rgb"])
    row, column = (one.ravel() for one in np.mgrid[:count, :count])
    found = {}
    for own, rows, other, partners in (("rgb", row, "depth", column), ("depth", column, "rgb", row)):
        gated = maps[own][rows] * gates[other][partners][:, None, None]
        model, weights = of_kind.encoders[own].model, of_kind.sets[own].weights
        embedding = np.asarray(model.upper(*weights, gated.astype(np.float32), own, 2), np.float64)
        found[own] = embedding / np.sqrt((embedding**2).sum(axis=1, keepdims=True) + 1e-6)
    return np.sqrt(((found["rgb"] - found["depth"]) ** 2).sum(axis=1)).reshape(count, count)


@pytest.mark.parametrize("top_k", [16, 3])
@pytest.mark.parametrize(("query", "gallery"), _CROSS)
def test_gates_in_the_middle_re_rank_the_nearest(made, pair_by_pair, top_k, query, gallery):
    of_kind = made("middle")
    sides = [of_kind.sets[name].embeddings for name in (query, gallery)]
    costly = pair_by_pair if query == "rgb" else pair_by_pair.T
    distance = 10 + euclidean(*sides)  # all that is beyond the nearest comes after them
    for row in range(len(distance)):
        rest = np.flatnonzero(sides[1].camera_id != sides[0].camera_id[row])
        nearest = rest[np.argsort(distance[row, rest], kind="stable")][:top_k]
        distance[row, nearest] = costly[row, nearest]
    result = of_kind.comparison(top_k)(of_kind.sets, query, gallery)
    np.testing.assert_allclose(result.ap, scores(distance, *sides), atol=1e-6)
    plain = of_kind.comparison(top_k)(of_kind.sets, query, gallery, pair_by_pair=False)
    np.testing.assert_allclose(plain.ap, scores(euclidean(*sides), *sides), atol=1e-6)
    assert not np.allclose(plain.ap, result.ap)


@pytest.mark.parametrize("kind", ["pairwise", "middle"])
def test_devices_share_the_ranking_and_change_nothing(made, mesh_of, monkeypatch, kind):
    of_kind, seen, real = made(kind), [], counting.gallery_mesh
    monkeypatch.setattr(counting, "gallery_mesh", lambda mesh: seen.append(mesh.size) or real(mesh))
    one, eight = (of_kind.comparison(3, mesh=mesh_of(count))(of_kind.sets, "rgb", "depth") for count in (1, 8))
    np.testing.assert_array_equal(eight.ap, one.ap)
    assert seen == [1, 8]


def test_devices_share_the_pairs(made, mesh_of, monkeypatch):
    of_kind, found = made("middle"), []
    monkeypatch.setattr(compare, "rerank_top", lambda *sides, batch, **_: (sides[4], batch))
    monkeypatch.setattr(compare, "_PAIRS", 13)
    for count in (1, 8):
        distance, batch = of_kind.comparison(3, mesh=mesh_of(count))(of_kind.sets, "rgb", "depth")
        assert batch == {1: 13, 8: 16}[count]
        found.append(distance(np.arange(batch), np.arange(batch) % 8))
        assert found[-1].sharding.device_set == set(jax.devices()[:count])
        assert {shard.data.shape for shard in found[-1].addressable_shards} == {(batch // count,)}
    np.testing.assert_allclose(found[1][:13], found[0], rtol=1e-5)
    assert np.ptp(found[0]) > 0.01  # pairs differ, so their order shows


def test_too_little_memory_for_the_ranking_is_one_line(made, too_large, monkeypatch):
    of_kind = made("middle")
    for name in ("rank", "rerank_top"):
        monkeypatch.setattr(compare, name, too_large)
    for top_k in (0, 3):
        with pytest.raises(InputError, match=r"^ranking depth images for rgb images needs more memory than"):
            of_kind.comparison(top_k)(of_kind.sets, "rgb", "depth")


def test_pairs_come_in_batches_of_one_size(made, monkeypatch):
    of_kind = made("middle")
    whole = of_kind.comparison(5)(of_kind.sets, "rgb", "depth")
    monkeypatch.setattr(compare, "_PAIRS", 7)
    few = of_kind.comparison(5)(of_kind.sets, "rgb", "depth")
    np.testing.assert_allclose(few.ap, whole.ap, atol=1e-6)


def test_results_tell_both_of_gates_in_the_middle(made):
    of_kind = made("middle")
    found = rank_directions(of_kind.sets, of_kind.comparison(4))
    assert set(found["without_gate"]) == {"rgb_to_depth", "depth_to_rgb"}
    for direction, of_direction in found["without_gate"].items():
        query, gallery = DIRECTIONS[direction]
        for scores_of, pair_by_pair in ((of_direction, False), (found["results"][direction], True)):
            result = of_kind.comparison(4)(of_kind.sets, query, gallery, pair_by_pair=pair_by_pair)
            assert scores_of["mAP"] == pytest.approx(result.mean_ap, abs=1e-9)
    assert "without_gate" not in rank_directions(made("pairwise").sets, made("pairwise").comparison(4))


@pytest.mark.parametrize("kind", ["none", "pairwise"])
def test_recordings_are_the_means_of_their_frames(made, kind):
    of_kind = made(kind)
    means = {}
    for name, one in of_kind.sets.items():
        whole = dataclasses.replace(
            one.embeddings, recording_id=10 * one.embeddings.person_id + one.embeddings.camera_id
        )
        of_kind.sets[name] = dataclasses.replace(one, embeddings=whole)
        rows = [np.flatnonzero(whole.recording_id == recording) for recording in np.unique(whole.recording_id)]
        assert {len(one) for one in rows} == {2}
        first = whole.take(np.array([one[0] for one in rows]))

        def mean(column, rows=rows):
            return None if column is None else np.stack([column[one].mean(axis=0) for one in rows])

        embedding: Any = mean(whole.embedding)
        means[name] = dataclasses.replace(
            first, embedding=embedding, gate=mean(whole.gate), frame_id=np.zeros(len(rows), np.int64)
        )
    for query, gallery in DIRECTIONS.values():
        found = of_kind.comparison(multi_frame=True)(of_kind.sets, query, gallery)
        metric = natural_metric(means[query], means[gallery])
        assert metric == ("gated" if kind == "pairwise" and query != gallery else "euclidean")
        expected = rank(means[query], means[gallery], _PROTOCOL, metric=metric)
        assert len(found.ap) == 8
        np.testing.assert_allclose(found.ap, expected.ap, atol=1e-6)


def test_programs_answer_with_the_gate_where_another_side_needs_it(made):
    for kind, names in (("none", ()), ("self", ()), ("middle", ()), ("pairwise", ("gate",))):
        encoder, one = made(kind).encoders["rgb"], made(kind).sets["rgb"]
        answer = encoder.answer(*one.weights, made(kind).images["rgb"])
        assert encoder.answers == tuple(answer) == ("embedding", *names)
        np.testing.assert_allclose(answer["embedding"], one.embeddings.embedding, atol=1e-5)
