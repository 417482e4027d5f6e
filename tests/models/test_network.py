"""The network's two functions: which statistics it uses, when it drops out, and in which precision."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import batch_sharding, replicated
from rgbd_reid_jax.losses.triplet import batch_hard_triplet
from rgbd_reid_jax.models.batch_norm import NormMode
from rgbd_reid_jax.models.convolution import PREPARED
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.models.resnet import RESNETS, ResNet
from rgbd_reid_jax.models.vit import VITS, ViTSpec

_KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def network(tiny_model):
    """(model, params, batch_stats, images, jitted train)."""
    params, batch_stats = jax.device_get(jax.jit(tiny_model.init, static_argnums=(1, 2))(_KEY, 16, 8))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 8, 3)), jnp.float32)
    return tiny_model, params, batch_stats, images, jax.jit(tiny_model.train, static_argnums=4)


def flat(tree) -> Any:
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def test_training_uses_the_batch_and_moves_the_running_statistics_by_a_tenth(network):
    _, params, batch_stats, images, train = network
    stats = jax.tree.map(lambda leaf: leaf + np.float32(0.25), batch_stats)
    output, updated = train(params, stats, images, _KEY, frozenset())
    neck = np.asarray(output.feature) @ params["embedding"]["kernel"] + params["embedding"]["bias"]
    mean, variance = neck.mean(axis=0), neck.var(axis=0)
    np.testing.assert_allclose(updated["embedding_bn"]["mean"], 0.9 * 0.25 + 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(updated["embedding_bn"]["var"], 0.9 * 1.25 + 0.1 * variance, atol=1e-5)
    embedding = np.maximum((neck - mean) / np.sqrt(variance + 1e-5), 0)
    np.testing.assert_allclose(output.embedding, embedding, atol=1e-4)
    assert all((np.asarray(leaf) != flat(stats)[path]).any() for path, leaf in flat(updated).items())


def test_running_layers_use_and_keep_their_statistics(network):
    _, params, batch_stats, images, train = network
    stats = jax.tree.map(lambda leaf: leaf + 0.25, batch_stats)
    running = frozenset({"backbone/layer2_0/bn1", "embedding_bn"})
    output, updated = train(params, stats, images, _KEY, running)
    before = flat(stats)
    for path, leaf in flat(updated).items():
        kept = path.rsplit("/", 1)[0] in running
        assert np.array_equal(leaf, before[path]) == kept, path
    neck = np.asarray(output.feature) @ params["embedding"]["kernel"] + params["embedding"]["bias"]
    np.testing.assert_allclose(output.embedding, np.maximum((neck - 0.25) / np.sqrt(1.25 + 1e-5), 0), atol=1e-4)


def parts_of(rows, count, together):
    """Which rows go into which of `count` parts."""
    return [[row for row in range(rows) if row // together % count == part] for part in range(count)]


@pytest.mark.parametrize(("count", "modality"), [(2, "depth"), (4, "depth"), (2, "both")])
def test_a_micro_batch_has_its_own_statistics_and_all_outputs_are_in_order(network, count, modality):
    model, params, batch_stats, images, _ = network
    cut = dataclasses.replace(model, micro_batches=count)
    output, updated = jax.jit(cut.train, static_argnums=(4, 5))(
        params, batch_stats, images, _KEY, frozenset(), modality
    )
    stats, train = batch_stats, jax.jit(model.train)
    for rows in parts_of(8, count, 2 if modality == "both" else 1):
        expected, stats = train(params, stats, images[np.array(rows)], _KEY)
        for one, other in zip(output, expected, strict=True):
            np.testing.assert_allclose(one[np.array(rows)], other, rtol=1e-5, atol=1e-5)
    for path, leaf in flat(updated).items():
        np.testing.assert_allclose(leaf, flat(stats)[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_norm_group_has_its_own_statistics_and_the_running_ones_are_their_mean(network):
    model, params, batch_stats, images, _ = network
    cut = dataclasses.replace(model, norm_groups=2)
    stats = jax.tree.map(lambda leaf: leaf + np.float32(0.25), batch_stats)
    output, updated = jax.jit(cut.train)(params, stats, images, _KEY)
    train = jax.jit(model.train)
    halves = [train(params, stats, half, _KEY) for half in (images[:4], images[4:])]
    for index, one in enumerate(output):
        expected = np.concatenate([half[0][index] for half in halves])
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)
    means = jax.tree.map(lambda one, other: (one + other) / 2, halves[0][1], halves[1][1])
    for path, leaf in flat(updated).items():
        np.testing.assert_allclose(leaf, flat(means)[path], rtol=1e-4, atol=1e-6, err_msg=path)
    assert np.abs(np.asarray(output.embedding - train(params, stats, images, _KEY)[0].embedding)).max() > 0.01


@pytest.mark.parametrize(("groups", "needed"), [(1, True), (8, False)])
def test_devices_with_a_norm_group_of_their_own_wait_for_no_other(network, mesh_of, groups, needed):
    model, params, batch_stats, images, _ = network
    cut = dataclasses.replace(model, norm_groups=groups)
    mesh = mesh_of(8)
    placed = jax.device_put((params, batch_stats), replicated(mesh))
    rows = jax.device_put(jnp.concatenate([images, -images]), batch_sharding(mesh))
    program = jax.jit(lambda *given: cut.train(*given, _KEY)[0].embedding).lower(*placed, rows).compile()
    assert ("all-reduce" in str(program.as_text())) == needed
    one = jax.jit(cut.train)(params, batch_stats, np.asarray(rows), _KEY)[0].embedding
    np.testing.assert_allclose(program(*placed, rows), one, rtol=1e-4, atol=1e-4)


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch_in_less_memory(network, mesh_of):
    model, params, batch_stats, images, _ = network
    images = jnp.concatenate([images, -images])
    layers = frozenset(path.rsplit("/", 1)[0] for path in flat(batch_stats))  # batch statistics would differ
    identity = jnp.arange(16) % 4

    def slopes(count, devices):
        cut = dataclasses.replace(model, micro_batches=count)

        def loss(params, images):
            output, _ = cut.train(params, batch_stats, images, _KEY, layers)
            mined, _ = batch_hard_triplet(output.embedding, identity, margin=0.5)  # pairs across the parts
            return mined + (output.logits**2).sum()

        mesh = mesh_of(devices)
        placed = jax.device_put(params, replicated(mesh)), jax.device_put(images, batch_sharding(mesh))
        program = jax.jit(jax.grad(loss)).lower(*placed).compile()
        memory: Any = program.memory_analysis()
        return flat(program(*placed)), memory.temp_size_in_bytes

    whole, most = slopes(1, 1)
    for count, devices in ((4, 1), (2, 8)):
        found, least = slopes(count, devices)
        for path, leaf in whole.items():
            scale = np.abs(leaf).max()
            np.testing.assert_allclose(found[path], leaf, rtol=1e-4, atol=1e-5 * scale + 1e-7, err_msg=path)
        if devices == 1:
            assert least < 0.6 * most


def test_all_layers_running_is_evaluation(network):
    model, params, batch_stats, images, train = network
    layers = frozenset(path.rsplit("/", 1)[0] for path in flat(batch_stats))
    output, updated = train(params, batch_stats, images, _KEY, layers)
    np.testing.assert_allclose(output.embedding, jax.jit(model.embed)(params, batch_stats, images), atol=1e-5)
    for path, leaf in flat(updated).items():
        np.testing.assert_array_equal(leaf, flat(batch_stats)[path])


def test_logits_are_the_classifier_on_the_dropped_embedding(network):
    _, params, batch_stats, images, train = network
    output, _ = train(params, batch_stats, images, _KEY, frozenset())
    expected = np.asarray(output.dropped) @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(output.logits, expected, atol=1e-6)
    assert output.logits.shape == (8, 4)
    assert np.asarray(output.embedding).min() == 0  # a rectifier's output


def test_dropout_is_for_training_only(network):
    model, params, batch_stats, images, _ = network
    dropping = dataclasses.replace(model, dropout=0.5)
    train = jax.jit(dropping.train)
    output, _ = train(params, batch_stats, images, _KEY)
    kept = np.asarray(output.embedding) > 0
    ratio = np.asarray(output.dropped)[kept] / np.asarray(output.embedding)[kept]
    assert set(np.round(ratio, 4)) == {0.0, 2.0}
    other, _ = train(params, batch_stats, images, jax.random.key(1))
    assert (np.asarray(other.dropped) != output.dropped).any()
    embed = jax.jit(dropping.embed)
    first = np.asarray(embed(params, batch_stats, images))
    np.testing.assert_array_equal(first, embed(params, batch_stats, images))
    np.testing.assert_array_equal(first, jax.jit(model.embed)(params, batch_stats, images))


def test_an_embedding_does_not_depend_on_its_batch(network):
    model, params, batch_stats, images, _ = network
    embed = jax.jit(model.embed)
    whole, alone = embed(params, batch_stats, images), embed(params, batch_stats, images[5:6])
    np.testing.assert_allclose(whole[5], alone[0], atol=1e-5)


@pytest.mark.parametrize("own_parts", [0, 3])
def test_embeddings_are_the_same_with_what_is_prepared(own_parts):
    model = Model("small", 8, own_parts=own_parts)
    params, batch_stats = jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 64, 32)
    prepared: Any = jax.jit(model.prepared, static_argnums=(2, 3, 4))(params, batch_stats, 64, 32, "rgb")
    # 3x3 kernels of stride 1 from 64 channels; those of the other modality's own parts are left out.
    found = {"/".join(path[-3:-1]) for path, tiles in traverse_util.flatten_dict(prepared).items() if tiles}
    assert found == {"layer2_0/conv2", "layer3_0/conv2", "layer4_0/conv1", "layer4_0/conv2"}
    assert set(prepared) == ({"backbone_rgb", "backbone"} if own_parts else {"backbone"})
    images = jax.random.normal(jax.random.key(1), (4, 64, 32, 3))
    embed = jax.jit(model.embed, static_argnums=3)
    given = embed({**params, PREPARED: prepared}, batch_stats, images, "rgb")
    np.testing.assert_allclose(given, embed(params, batch_stats, images, "rgb"), rtol=1e-6, atol=1e-6)
    without = jax.tree.map(jnp.zeros_like, prepared)  # and they are used
    assert np.abs(embed({**params, PREPARED: without}, batch_stats, images, "rgb") - given).max() > 1e-2


def test_without_a_classifier_the_rest_is_the_same(network):
    model, params, batch_stats, images, _ = network
    bare = model.without_classifier()
    shape, _ = jax.eval_shape(lambda key: bare.init(key, 16, 8), _KEY)
    assert flat(jax.tree.map(jnp.shape, params)).keys() - flat(jax.tree.map(jnp.shape, shape)).keys() == {
        "classifier/kernel",
        "classifier/bias",
    }
    rest = {name: value for name, value in params.items() if name != "classifier"}
    np.testing.assert_array_equal(
        jax.jit(bare.embed)(rest, batch_stats, images), jax.jit(model.embed)(params, batch_stats, images)
    )


def test_bfloat16_computes_the_backbone_only(network):
    model, params, batch_stats, images, train = network
    half = dataclasses.replace(model, compute_dtype="bfloat16")
    output, updated = jax.jit(half.train)(params, batch_stats, images, _KEY)
    for leaf in (output.feature, output.embedding, output.logits, *jax.tree.leaves(updated)):
        assert leaf.dtype == jnp.float32
    shape = jax.eval_shape(lambda key: half.init(key, 16, 8), _KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(shape)} == {jnp.dtype("float32")}
    exact, _ = train(params, batch_stats, images, _KEY, frozenset())
    difference = np.abs(np.asarray(output.feature - exact.feature)).max()
    assert 1e-5 < difference < 0.1 * np.abs(exact.feature).max()


def test_initialisation_is_a_function_of_the_key(network):
    model, params, *_ = network
    init = jax.jit(model.init, static_argnums=(1, 2))
    again, _ = init(_KEY, 16, 8)
    other, _ = init(jax.random.key(1), 16, 8)
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(leaf, flat(again)[path])
        if path.endswith("kernel"):
            assert (leaf != flat(other)[path]).any()
    kernel = np.asarray(params["classifier"]["kernel"])
    assert 0.0005 < kernel.std() < 0.0015


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, r"model\.backbone='vgg' is unknown; choose one of: tiny, small, resnet18"),
        ({"compute_dtype": "float16"}, r"model\.compute_dtype='float16' is unknown; choose float32 or bfloat16"),
        ({"neck": "long"}, r"model\.neck='long' is unknown; choose one of: paper, triplet, bnneck"),
        ({"pool": "max"}, r"model\.pool='max' is unknown; choose one of: average, gem, cls"),
        ({"pool": "cls"}, r"small has no class token; choose average or gem"),
        ({"embedding_dim": 0}, r"embedding_dim=0 needs model\.neck='bnneck', not 'paper'"),
    ],
)
def test_unknown_choices_are_named(change, message):
    with pytest.raises(InputError, match=message):
        Model(**{"backbone": "small", **change})


def test_gem_is_the_generalised_mean_of_the_map(network):
    model, _, _, images, _ = network
    gem = dataclasses.replace(model, pool="gem", neck="bnneck", embedding_dim=0)
    fresh, stats = jax.jit(gem.init, static_argnums=(1, 2))(_KEY, 16, 8)
    assert float(fresh["gem_power"]) == 3.0
    average = dataclasses.replace(gem, pool="average")

    def feature(one, power):
        tree = {**fresh, "gem_power": jnp.float32(power)} if one is gem else {**fresh}
        tree = {name: leaf for name, leaf in tree.items() if one is gem or name != "gem_power"}
        return np.asarray(jax.jit(one.train)(tree, stats, images, _KEY)[0].feature)

    np.testing.assert_allclose(feature(gem, 1.0), feature(average, 0), atol=1e-5)
    module = ResNet(RESNETS["tiny"])
    variables = {"params": fresh["backbone"], "batch_stats": stats["backbone"]}
    output: Any = jax.jit(lambda v, x: module.apply(v, x, NormMode(True), mutable=["batch_stats"]))(variables, images)
    x = np.maximum(np.asarray(output[0], np.float64), 1e-6)
    np.testing.assert_allclose(feature(gem, 3.0), (x**3).mean((1, 2)) ** (1 / 3), atol=1e-5)


def test_bnneck_normalises_the_feature_without_shift_and_classifies_without_bias(network):
    model, _, _, images, _ = network
    neck = dataclasses.replace(model, neck="bnneck")
    params, stats = jax.jit(neck.init, static_argnums=(1, 2))(_KEY, 16, 8)
    assert set(params["embedding_bn"]) == {"scale"}
    assert set(params["classifier"]) == {"kernel"}
    output, _ = jax.jit(neck.train)(params, stats, images, _KEY)
    feature = np.asarray(output.feature, np.float64)
    assert feature.shape == (8, 8)
    expected = (feature - feature.mean(0)) / np.sqrt(feature.var(0) + 1e-5)
    np.testing.assert_allclose(output.embedding, expected, atol=1e-3)
    np.testing.assert_allclose(output.logits, np.asarray(output.dropped) @ params["classifier"]["kernel"], atol=1e-5)


def test_the_triplet_neck_ends_in_a_plain_dense_layer(network):
    model, _, _, images, _ = network
    neck = dataclasses.replace(model, neck="triplet", num_identities=None)
    params, stats = jax.jit(neck.init, static_argnums=(1, 2))(_KEY, 16, 8)
    assert params["embedding"]["kernel"].shape[1] == 1024
    assert params["embedding_out"]["kernel"].shape == (1024, 8)
    embedding = np.asarray(jax.jit(neck.embed)(params, stats, images))
    assert embedding.min() < 0 < embedding.max(), "no rectifier at the end"


def test_recomputing_blocks_changes_neither_outputs_nor_gradients(network):
    model, params, batch_stats, images, _ = network
    again = dataclasses.replace(model, remat=True)
    assert jax.tree.structure(jax.eval_shape(lambda: again.init(_KEY, 16, 8))) == jax.tree.structure(
        (params, batch_stats)
    )

    def loss(one):
        def of(tree):
            output, _ = one.train(tree, batch_stats, images, _KEY)
            return (output.logits**2).sum() + (output.embedding**2).sum()

        return jax.jit(jax.value_and_grad(of))(params)

    plain, recomputed = loss(model), loss(again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, recomputed)


def test_a_vision_transformer_makes_embeddings_and_says_which_sizes_fit():
    VITS["tiny14"] = ViTSpec(1, 12, 2)
    try:
        model = Model("tiny14", embedding_dim=4, pool="cls", num_identities=3, remat=True)
        params, stats = jax.jit(model.init, static_argnums=(1, 2))(_KEY, 28, 14)
        assert params["backbone"]["pos_embed"].shape == (1, 3, 12)
        images = jnp.ones((2, 28, 14, 3))
        output, _ = jax.jit(model.train)(params, stats, images, _KEY)
        assert output.embedding.shape == (2, 4)
        with pytest.raises(InputError, match="tiny14 needs multiples of 14; say 252x126"):
            model.init(_KEY, 256, 128)
        half = dataclasses.replace(model, compute_dtype="bfloat16", pool="average")
        assert jax.eval_shape(half.embed, params, stats, images).dtype == jnp.float32
    finally:
        del VITS["tiny14"]
