"""Freeze tables: every parameter matches exactly one rule, and the paper's tables freeze what it says."""

import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs.shared import base
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.models.network import Model
from rgbd_reid_jax.training.freeze import merge, norms, partition

PARAMS = {
    "backbone": {"conv1": {"kernel": 1}, "bn1": {"scale": 2, "bias": 3}, "layer1_0": {"bn2": {"scale": 4, "bias": 5}}},
    "embedding": {"kernel": 6},
}


def paths(tree):
    return set(traverse_util.flatten_dict(tree, sep="/"))


def parameters(backbone):
    model = Model(backbone)
    params, _ = jax.eval_shape(lambda key: model.init(key, 64, 32), jax.random.key(0))
    return params


def test_partition_splits_and_merge_joins():
    rules = [(r"backbone/.*", "freeze"), (r"embedding/.*", "train")]
    trainable, frozen = partition(PARAMS, rules)
    assert trainable == {"embedding": {"kernel": 6}}
    assert frozen == {"backbone": PARAMS["backbone"]}
    assert merge(trainable, frozen) == PARAMS


def test_one_module_may_lie_on_both_sides():
    trainable, frozen = partition(PARAMS, [(r".*/kernel", "train"), (r".*/(scale|bias)", "freeze")])
    assert paths(trainable) == {"backbone/conv1/kernel", "embedding/kernel"}
    assert merge(trainable, frozen) == merge(frozen, trainable) == PARAMS


def test_all_may_train():
    trainable, frozen = partition(PARAMS, [(".*", "train")])
    assert trainable == PARAMS
    assert frozen == {}
    assert merge(trainable, frozen) == PARAMS


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [(r"backbone/.*", "train")],
            "freeze: parameter embedding/kernel must match exactly one rule; it matches none: "
            "add ('embedding/kernel', 'freeze')",
        ),
        (
            [(r"backbone/.*", "train"), (r".*/kernel", "freeze"), (r"embedding/.*", "freeze")],
            "backbone/conv1/kernel must match exactly one rule; it matches 'backbone/.*' and '.*/kernel': make one",
        ),
        ([(r"backbone", "train"), (r"embedding/.*", "train")], "parameter backbone/conv1/kernel must match"),
        ([(r".*", "train"), (r"neck/.*", "freeze")], "freeze: rule 'neck/.*' matches no parameter"),
        ([(r".*", "thaw")], "freeze: rule '.*' says 'thaw'; say 'train' or 'freeze'"),
    ],
)
def test_tables_that_do_not_fit_are_named(rules, message):
    with pytest.raises(InputError, match=re.escape(message)):
        partition(PARAMS, rules)


def test_norms_are_the_batch_norms_of_one_side():
    assert norms(PARAMS) == {"backbone/bn1", "backbone/layer1_0/bn2"}
    _, frozen = partition(PARAMS, [(r".*layer1.*", "freeze"), (r"(?!.*layer1).*", "train")])
    assert norms(frozen) == {"backbone/layer1_0/bn2"}
    assert norms({}) == frozenset()


@pytest.mark.parametrize("backbone", ["small", "resnet18"])
def test_the_shallow_table_trains_up_to_layer2(backbone):
    params = parameters(backbone)
    trainable, frozen = partition(params, base.SHALLOW_FREEZE)
    modules = {path.split("/")[1].split("_")[0] for path in paths(trainable)}
    assert modules == {"conv1", "bn1", "layer1", "layer2"}
    assert {path.split("/")[0] for path in paths(trainable)} == {"backbone"}
    assert {"/".join(path.split("/")[:2]).split("_")[0] for path in paths(frozen) if path.startswith("backbone")} == {
        "backbone/layer3",
        "backbone/layer4",
    }
    assert paths(trainable) | paths(frozen) == paths(params)


def test_the_resnet50_table_freezes_from_the_third_convolution_of_layer3_0():
    params = parameters("resnet50")
    trainable, frozen = partition(params, base.RESNET50_FREEZE)
    in_first_block = {path.split("/")[2] for path in paths(trainable) if "layer3" in path}
    assert in_first_block == {"conv1", "bn1", "conv2", "bn2"}
    assert {path.split("/")[1] for path in paths(trainable)} == {
        "conv1",
        "bn1",
        *(f"layer1_{index}" for index in range(3)),
        *(f"layer2_{index}" for index in range(4)),
        "layer3_0",
    }
    assert "backbone/layer3_0/downsample_conv/kernel" in paths(frozen)
    assert "embedding/kernel" in paths(frozen)
    # Stem 9,536; layer1 215,808; layer2 1,219,584; layer3_0's 512x256 and 3x3x256x256 with their norms.
    weights = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trainable))
    assert weights == 9_536 + 215_808 + 1_219_584 + (512 * 256 + 512) + (9 * 256 * 256 + 512)
