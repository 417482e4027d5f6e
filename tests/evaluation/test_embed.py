"""Embedding a split: padding, order and devices leave no trace."""

import types
from typing import Any

import jax
import numpy as np
import pytest

from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES, Embedder, Encoder, labelled


@pytest.fixture(scope="module")
def network(tiny_model):
    """(model without classifier, parameters, batch statistics)."""
    model = tiny_model.without_classifier()
    params, batch_stats = jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 16, 8)
    return model, params, batch_stats


@pytest.fixture(scope="module")
def frames(make_frames):
    return make_frames(13)


def encoder_of(network, modality, normalise=True):
    return Encoder(network[0], InputSpec(16, 8, "relative_masked"), modality, normalise)


def one_by_one(network, encoder, frames):
    """The plain answer: each frame alone, on one device."""
    embed = jax.jit(encoder)
    images = [frames.gather(np.array([index]), RAW_IMAGES[encoder.modality]) for index in range(len(frames))]
    return np.concatenate([np.asarray(embed(*network[1:], batch=one)) for one in images])


@pytest.mark.parametrize("modality", ["rgb", "depth"])
@pytest.mark.parametrize(("batch_size", "devices"), [(4, 1), (8, 8), (3, 8), (64, 8)])
def test_ragged_batches_equal_frames_one_by_one(network, frames, mesh_of, modality, batch_size, devices):
    encoder = encoder_of(network, modality)
    found = Embedder(encoder, batch_size, mesh_of(devices))(*network[1:], frames=frames)
    assert found.shape == (13, 8)
    assert found.dtype == np.float32
    expected = one_by_one(network, encoder, frames)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01  # frames differ, so their order shows


def test_normalised_embeddings_have_unit_length(network, frames, mesh_of):
    raw, unit = (
        Embedder(encoder_of(network, "rgb", normalise), 13, mesh_of(1))(*network[1:], frames=frames)
        for normalise in (False, True)
    )
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.ptp(lengths) > 0.001
    np.testing.assert_allclose(unit, raw / lengths, atol=1e-4)


def test_parameters_may_lie_on_the_host(network, frames, mesh_of):
    embedder = Embedder(encoder_of(network, "rgb"), 8, mesh_of(2))
    on_host = jax.device_get(network[1:])
    np.testing.assert_array_equal(embedder(*on_host, frames=frames), embedder(*network[1:], frames=frames))


def test_progress_is_printed_for_a_named_stage_alone(network, frames, mesh_of, capsys):
    embedder = Embedder(encoder_of(network, "rgb"), 8, mesh_of(2))
    embedder(*network[1:], frames=frames)
    assert capsys.readouterr().out == ""
    embedder(*network[1:], frames=frames, stage="embed test rgb")
    assert capsys.readouterr().out.startswith("[embed test rgb] frame 13/13  100 %")


def test_labels_are_those_of_the_frames(frames):
    embedding = np.zeros((13, 8), np.float32)
    found = labelled(embedding, frames, "depth")
    assert found.modality == "depth"
    for name in ("person_id", "camera_id", "recording_id", "frame_id", "clothes_id"):
        np.testing.assert_array_equal(getattr(found, name), frames.labels[name])


def test_no_more_images_are_read_than_the_modality_needs(network, frames, mesh_of):
    asked = []

    def gather(indices, names):
        asked.append(tuple(names))
        return frames.gather(indices, names)

    class Watched(types.SimpleNamespace):
        def __len__(self):
            return 13

    watched: Any = Watched(gather=gather)
    for modality in ("rgb", "depth"):
        Embedder(encoder_of(network, modality), 8, mesh_of(1))(*network[1:], frames=watched)
    assert asked == [("rgb",)] * 2 + [("depth", "mask")] * 2
