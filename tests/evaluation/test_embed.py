"""Embedding a split: padding, order and devices leave no trace."""

from typing import Any

import jax
import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.frames import CachedFrames, DeviceFrames, Frames, read_split, subset
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES, Embedder, Encoder, labelled
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.protocols.registry import evaluate


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
    outputs = Embedder(encoder, batch_size, mesh_of(devices))(*network[1:], frames=frames)
    assert set(outputs) == {"embedding"}
    found = outputs["embedding"]
    assert found.shape == (13, 8)
    assert found.dtype == np.float32
    expected = one_by_one(network, encoder, frames)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01  # frames differ, so their order shows


@pytest.mark.parametrize("kind", [CachedFrames, DeviceFrames])
def test_the_ragged_batch_too_lies_on_all_devices(network, make_frames, mesh_of, monkeypatch, kind):
    embedder, seen = Embedder(encoder_of(network, "depth"), 8, mesh_of(8)), []
    embed = embedder._embed
    monkeypatch.setattr(embedder, "_embed", lambda *arguments: seen.append(arguments) or embed(*arguments))
    embedder(*network[1:], frames=make_frames(13, kind=kind))
    assert len(seen) == 2  # eight frames, and five with three that pad them
    for params, _, batch, _ in seen:
        for rows in batch.values():
            assert rows.sharding.device_set == set(jax.devices())
            assert [shard.data.shape[0] for shard in rows.addressable_shards] == [1] * 8
        assert all(leaf.sharding.device_set == set(jax.devices()) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("batch_size", "devices", "mend"),
    [
        (13, 1, "say --config.evaluation.batch_size=6"),
        (24, 8, "say --config.evaluation.batch_size=8"),
        (3, 8, "choose a smaller network"),
    ],
)
def test_too_little_memory_names_the_setting_that_takes_less(
    network, frames, mesh_of, monkeypatch, too_large, batch_size, devices, mend
):
    embedder = Embedder(encoder_of(network, "depth"), batch_size, mesh_of(devices))
    monkeypatch.setattr(embedder, "_embed", too_large)
    taken = -(-batch_size // devices) * devices
    text = f"^embedding depth with evaluation.batch_size={taken} needs more memory than its devices have; {mend}"
    with pytest.raises(InputError, match=text):
        embedder(*network[1:], frames=frames)


def test_normalised_embeddings_have_unit_length(network, frames, mesh_of):
    raw, unit = (
        Embedder(encoder_of(network, "rgb", normalise), 13, mesh_of(1))(*network[1:], frames=frames)["embedding"]
        for normalise in (False, True)
    )
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.ptp(lengths) > 0.001
    np.testing.assert_allclose(unit, raw / lengths, atol=1e-4)


def test_parameters_may_lie_on_the_host(network, frames, mesh_of):
    embedder = Embedder(encoder_of(network, "rgb"), 8, mesh_of(2))
    on_host = jax.device_get(network[1:])
    found, expected = (embedder(*one, frames=frames)["embedding"] for one in (on_host, network[1:]))
    np.testing.assert_array_equal(found, expected)


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
    for name in ("person_id", "camera_id", "recording_id", "frame_id", "clothes_id", "recording_type"):
        np.testing.assert_array_equal(getattr(found, name), frames.labels[name])


def test_no_more_images_are_read_than_the_modality_needs(network, frames, mesh_of, monkeypatch):
    asked, gather = [], frames.gather

    def watched(indices, names):
        asked.append(tuple(names))
        return gather(indices, names)

    monkeypatch.setattr(frames, "gather", watched)
    for modality in ("rgb", "depth"):
        Embedder(encoder_of(network, modality), 8, mesh_of(1))(*network[1:], frames=frames)
    assert asked == [("rgb",)] * 2 + [("depth", "mask")] * 2


@pytest.mark.parametrize("modality", ["rgb", "depth"])
@pytest.mark.parametrize("devices", [1, 8])
def test_all_caches_give_the_same_bits(network, make_frames, mesh_of, modality, devices):
    embedder = Embedder(encoder_of(network, modality), 4, mesh_of(devices))
    streamed, cached, placed = (
        embedder(*network[1:], frames=make_frames(13, kind=kind))["embedding"]
        for kind in (Frames, CachedFrames, DeviceFrames)
    )
    np.testing.assert_array_equal(streamed, cached)
    np.testing.assert_array_equal(streamed, placed)


@pytest.mark.parametrize("kind", [CachedFrames, DeviceFrames])
def test_some_frames_are_embedded_as_among_all(network, make_frames, mesh_of, kind):
    embedder = Embedder(encoder_of(network, "depth"), 4, mesh_of(2))
    frames = make_frames(13, kind=kind)
    whole = embedder(*network[1:], frames=frames)["embedding"]
    some = np.arange(13) % 3 == 2
    found = embedder(*network[1:], frames=subset(frames, some))["embedding"]
    np.testing.assert_allclose(found, whole[some], atol=1e-6)


def test_names_of_cameras_and_passages_reach_the_embeddings(tmp_path):
    from tfds_builders.tvrid import example_tree
    from tfds_builders.tvrid.tvrid_dataset_builder import config_of, prepare

    example_tree.write(tmp_path / "tree")
    builder = prepare(
        config_of("crops128", {"height": 16, "width": 16}), tmp_path / "data", tmp_path / "tree", workers=1
    )
    frames = read_split(builder, "test", "none")
    found = labelled(np.zeros((len(frames), 8), np.float32), frames, "rgb")
    metadata: Any = builder.info.metadata
    cameras = metadata["cameras"]
    assert found.camera_name is not None
    assert found.passage_name is not None
    for code, name in zip(found.camera_id, found.camera_name, strict=True):
        assert cameras[str(code)] == name
    assert len(set(found.passage_name)) > 1
    found.save(tmp_path / "rgb.npz")
    np.testing.assert_array_equal(Embeddings.load(tmp_path / "rgb.npz").camera_name, found.camera_name)
    assert evaluate("tvrid", found, found)["num_query"] > 0
