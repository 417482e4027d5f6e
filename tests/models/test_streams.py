"""Parts of a residual network one after the other, and two streams whose first parts are apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.models.resnet import PARTS, RESNETS, ResNetSpec

_KEY = jax.random.key(0)
_ROWS = 6


@pytest.fixture(scope="module")
def four():
    """A network of four residual stages, for inputs of 16x8. Nothing here is compiled as a whole: all variants share
    their operations.
    """
    RESNETS["four"] = ResNetSpec((1, 1, 1, 1), (4, 4, 8, 8), False, 3, 4, False, (1, 1, 1, 1))
    yield Model("four", embedding_dim=8, dropout=0.0, num_identities=3)
    del RESNETS["four"]


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(_ROWS, 16, 8, 3)), jnp.float32)


def flat(tree) -> Any:
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def started(model):
    """Parameters and statistics, each leaf moved by a little, so that no two streams and no two layers are alike."""
    params, batch_stats = model.init(_KEY, 16, 8)
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + random.uniform(0.0, 0.1, leaf.shape).astype(np.float32), (params, batch_stats)
    )


def assert_close(one, other):
    for path, leaf in flat(other).items():
        np.testing.assert_allclose(flat(one)[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("own", [0, 2])
def test_parts_one_after_the_other_are_the_whole_network(four, images, own):
    model = dataclasses.replace(four, own_parts=own)
    params, batch_stats = started(model)
    output, whole_stats = model.train(params, batch_stats, images, _KEY)
    assert all((leaf != flat(batch_stats)[path]).any() for path, leaf in flat(whole_stats).items())
    embedding = model.embed(params, batch_stats, images)
    for k in range(1, PARTS):
        maps, stats = model.train(params, batch_stats, images, _KEY, parts=(0, k))
        assert maps.shape == (_ROWS, 8, 4, {1: 4, 2: 4, 3: 4, 4: 8}[k])
        moved = {
            path.split("/")[1][:6] for path, leaf in flat(stats).items() if (leaf != flat(batch_stats)[path]).any()
        }
        assert moved == {"bn1", "layer1", "layer2", "layer3"} - {f"layer{stage}" for stage in range(k, 4)}
        found, stats = model.train(params, stats, maps, _KEY, parts=(k, None))
        assert_close(found._asdict(), output._asdict())
        assert_close(stats, whole_stats)
        lower = model.lower(params, batch_stats, images, "both", k)
        np.testing.assert_allclose(model.upper(params, batch_stats, lower, "both", k), embedding, rtol=1e-5, atol=1e-6)


def test_running_layers_run_in_parts_too(four, images):
    params, batch_stats = started(four)
    layers = frozenset(path.rsplit("/", 1)[0] for path in flat(batch_stats))
    maps, stats = four.train(params, batch_stats, images, _KEY, layers, parts=(0, 3))
    output, stats = four.train(params, stats, maps, _KEY, layers, parts=(3, None))
    np.testing.assert_allclose(output.embedding, four.embed(params, batch_stats, images), rtol=1e-5, atol=1e-6)
    assert_close(stats, batch_stats)


@pytest.mark.parametrize("own", range(PARTS + 1))
def test_rows_go_through_the_parts_of_their_modality(four, images, own):
    model = dataclasses.replace(four, own_parts=own)
    params, batch_stats = started(model)
    embedding = np.asarray(model.embed(params, batch_stats, images))
    parts = ("conv1", "layer1_0", "layer2_0", "layer3_0", "layer4_0")
    for first, name in enumerate(("rgb", "depth")):
        assert (f"backbone_{name}" in params) == (own > 0)
        alone = model.embed(params, batch_stats, images[first::2], name)
        np.testing.assert_allclose(alone, embedding[first::2], rtol=1e-5, atol=1e-5)
        if own:
            branch = params[f"backbone_{name}"]
            assert set(branch) - {"bn1"} == set(parts[:own])
            moved = params | {f"backbone_{name}": jax.tree.map(lambda leaf: 1.3 * leaf, branch)}
            found = np.asarray(model.embed(moved, batch_stats, images))
            assert (found[first::2] != embedding[first::2]).any(axis=1).all()
            np.testing.assert_array_equal(found[1 - first :: 2], embedding[1 - first :: 2])
    assert set(params.get("backbone", {})) - {"bn1"} == set(parts[own:])


@pytest.mark.parametrize("own", [1, 3, 5])
def test_every_parameter_of_both_streams_learns(four, images, own):
    model = dataclasses.replace(four, own_parts=own)
    params, batch_stats = started(model)

    def loss(params):
        output, _ = model.train(params, batch_stats, images, _KEY)
        return jnp.sum(output.logits**2) + jnp.sum(output.embedding**3)

    gradient = flat(jax.grad(loss)(params))
    assert {"backbone_rgb/conv1/kernel", "backbone_depth/conv1/kernel"} <= set(gradient)
    for path, leaf in gradient.items():
        if path != "embedding/bias":  # the batch norm after it takes a bias away
            assert np.abs(leaf).max() > 1e-6, path


def convolve(x, kernel, stride):
    pad = ((1, 1), (1, 1))
    return np.asarray(
        jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )


def test_shared_batch_norms_see_the_mixed_batch_and_the_others_their_own_rows(four, images):
    model = dataclasses.replace(four, own_parts=1)
    params, batch_stats = started(model)
    maps, _ = model.train(params, batch_stats, images, _KEY, parts=(0, 1))
    _, stats = model.train(params, batch_stats, images, _KEY)
    for first, name in enumerate(("rgb", "depth")):
        seen = convolve(images[first::2], params[f"backbone_{name}"]["conv1"]["kernel"], 2)
        before = batch_stats[f"backbone_{name}"]["bn1"]["mean"]
        np.testing.assert_allclose(
            stats[f"backbone_{name}"]["bn1"]["mean"], 0.9 * before + 0.1 * seen.mean(axis=(0, 1, 2)), atol=1e-5
        )
    seen = convolve(maps, params["backbone"]["layer1_0"]["conv1"]["kernel"], 1)
    before = batch_stats["backbone"]["layer1_0"]["bn1"]
    found = stats["backbone"]["layer1_0"]["bn1"]
    np.testing.assert_allclose(found["mean"], 0.9 * before["mean"] + 0.1 * seen.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["var"], 0.9 * before["var"] + 0.1 * seen.var(axis=(0, 1, 2)), rtol=1e-4)
    halves = [seen[first::2].mean(axis=(0, 1, 2)) for first in (0, 1)]
    assert np.abs(halves[0] - halves[1]).max() > 1e-3  # so the mixed mean is neither's


@pytest.mark.parametrize("neck", ["paper", "bnneck"])
def test_the_classifier_on_its_own_gives_the_logits(four, images, neck):
    model = dataclasses.replace(four, neck=neck)
    params, batch_stats = started(model)
    assert ("bias" in params["classifier"]) == (neck == "paper")
    output, _ = model.train(params, batch_stats, images, _KEY)
    np.testing.assert_allclose(model.classify(params, output.dropped), output.logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("neck", "name"), [("paper", "embedding"), ("triplet", "embedding"), ("bnneck", "feature")])
def test_what_metric_losses_see(four, images, neck, name):
    model = dataclasses.replace(four, neck=neck)
    output, _ = model.train(*started(model), images, _KEY)
    assert model.metric_feature(output) is getattr(output, name)


def test_a_vision_transformer_has_no_parts():
    with pytest.raises(InputError, match=r"model\.own_parts=2: vit_small14 has no parts; choose a ResNet, or 0"):
        Model("vit_small14", own_parts=2)
