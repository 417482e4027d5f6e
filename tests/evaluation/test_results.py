"""Every direction is ranked, under its own name and with its own query and gallery."""

import jax
import numpy as np
import pytest

from rgbd_reid_jax.evaluation import results
from rgbd_reid_jax.evaluation.compare import Compared, Comparison
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS, Embeddings


@pytest.fixture(scope="module")
def sets():
    """Four people before two cameras: RGB tells them apart, depth puts all in one place but for a little."""
    person, camera = np.repeat(np.arange(4), 4), np.tile(np.arange(2), 8)
    frame = np.arange(16)
    ids = (person, camera, 2 * person + camera, frame, person)
    random = np.random.default_rng(0)
    rgb = np.eye(4)[person] + random.normal(0, 0.01, (16, 4))
    depth = random.normal(0, 1, (16, 4))
    return {
        "rgb": Embeddings(rgb.astype(np.float32), *ids, "rgb"),
        "depth": Embeddings(depth.astype(np.float32), *ids, "depth"),
    }


@pytest.fixture(scope="module")
def found(sets):
    compared = {name: Compared(one, ({}, {})) for name, one in sets.items()}
    return results.rank_directions(compared, Comparison("cross_camera", {}, multi_frame=False, top_k=0))


def test_keys(found):
    assert set(found) == {"results", "intervals", "chance", "queries", "clothes", "camera_pair"}
    for part in found.values():
        assert list(part) == ["rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth"]
    for direction in DIRECTIONS:
        ranks = {"mAP", "rank1", "rank5", "rank10"}
        assert set(found["chance"][direction]) == ranks
        assert set(found["results"][direction]) == ranks | {"mAP_trapezoid", "mINP"}
        assert set(found["intervals"][direction]) == ranks | {"mAP_trapezoid", "mINP"}
        for name, (low, high) in found["intervals"][direction].items():
            assert low <= found["results"][direction][name] <= high
        for part in ("results", "chance"):
            assert all(0 <= value <= 1 for value in found[part][direction].values())
        assert set(found["queries"][direction]) == {"num_query", "num_query_skipped", "num_gallery", "tie_rate"}


def test_directions_are_not_mixed_up(sets, found):
    assert found["results"]["rgb_to_rgb"]["mAP"] == 1.0
    assert found["results"]["depth_to_depth"]["mAP"] < 0.9
    assert found["results"]["rgb_to_depth"] != found["results"]["depth_to_rgb"]


def brute_force_map(query, gallery):
    """Mean average precision with the same camera's frames left out."""
    precisions = []
    for row in range(len(query.embedding)):
        rest = np.flatnonzero(gallery.camera_id != query.camera_id[row])
        order = rest[np.argsort(((gallery.embedding[rest] - query.embedding[row]) ** 2).sum(axis=1))]
        hits = gallery.person_id[order] == query.person_id[row]
        precisions.append(np.mean(np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)))
    return np.mean(precisions)


@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
def test_the_arrow_points_from_query_to_gallery(sets, found, direction):
    query, gallery = (sets[modality] for modality in direction.split("_to_"))
    assert found["results"][direction]["mAP"] == pytest.approx(brute_force_map(query, gallery), abs=1e-6)


def test_environment_names_versions_and_devices():
    found = results.environment()
    assert found["packages"]["jax"] == jax.__version__
    assert found["packages"]["numpy"] == np.__version__
    assert found["devices"].startswith("8 x ")
    assert found["processes"] == 1
    assert 50 < found["peak_memory_mib"] < 1e6  # MiB, whatever the system's unit
