"""The backbones: torchvision's parameter counts and map sizes, and the numbers of a block by hand."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rgbd_reid_jax.models.batch_norm import NormMode
from rgbd_reid_jax.models.resnet import RESNETS, ResNet, ResNetSpec, rectified_sum

_KEY = jax.random.key(0)


def shapes(name, height=64, width=32, last_stride=None, dtype=jnp.float32) -> Any:
    """(output, parameters by path), without computing anything."""
    module = ResNet(RESNETS[name], last_stride, dtype)
    images = jnp.zeros((2, height, width, 3))
    output, variables = jax.eval_shape(lambda key: module.init_with_output(key, images, NormMode(False)), _KEY)
    return output, traverse_util.flatten_dict(variables["params"], sep="/")


def weights_by_formula(blocks, expansion):
    """7x7 stem; per block its convolutions and two numbers per batch-norm channel; a 1x1 where shapes change."""
    count, before = 3 * 64 * 49 + 2 * 64, 64
    for stage, (number, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
        out = width * expansion
        for index in range(number):
            if expansion == 4:
                count += before * width + 9 * width * width + width * out + 2 * (width + width + out)
            else:
                count += 9 * before * width + 9 * width * width + 2 * (width + width)
            if index == 0 and (stage > 0 or before != out):
                count += before * out + 2 * out
            before = out
    return count


@pytest.mark.parametrize(
    ("name", "published", "blocks", "expansion"),
    [
        ("resnet18", 11_176_512, (2, 2, 2, 2), 1),
        ("resnet34", 21_284_672, (3, 4, 6, 3), 1),
        ("resnet50", 23_508_032, (3, 4, 6, 3), 4),
        ("resnet101", 42_500_160, (3, 4, 23, 3), 4),
    ],
)
def test_parameter_counts_are_torchvisions(name, published, blocks, expansion):
    _, parameters = shapes(name)
    assert sum(leaf.size for leaf in parameters.values()) == published == weights_by_formula(blocks, expansion)


@pytest.mark.parametrize(
    ("name", "size", "last_stride", "expected"),
    [
        ("small", (64, 32), None, (8, 4, 128)),
        ("small", (64, 32), 2, (4, 2, 128)),
        ("resnet18", (256, 128), None, (8, 4, 512)),
        ("resnet50", (256, 128), None, (8, 4, 2048)),
        ("resnet50", (256, 128), 1, (16, 8, 2048)),
        ("resnet50", (224, 224), 2, (7, 7, 2048)),
    ],
)
def test_map_sizes(name, size, last_stride, expected):
    output, _ = shapes(name, *size, last_stride=last_stride)
    assert output.shape == (2, *expected)


def test_parameter_names_are_torchvisions():
    _, parameters = shapes("resnet50")
    assert parameters["layer3_0/conv2/kernel"].shape == (3, 3, 256, 256)
    assert parameters["layer3_0/downsample_conv/kernel"].shape == (1, 1, 512, 1024)
    assert parameters["layer4_2/bn3/scale"].shape == (2048,)
    assert not any("bias" in path and "bn" not in path for path in parameters)


def test_bfloat16_keeps_float32_parameters():
    output, parameters = shapes("small", dtype=jnp.bfloat16)
    assert output.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in parameters.values()} == {jnp.dtype("float32")}


def convolve(image, kernel, stride):
    """PyTorch's convolution [H, W, C] with padding (kernel - 1) // 2, as a loop."""
    size = kernel.shape[0]
    pad = (size - 1) // 2
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    height, width = ((length + 2 * pad - size) // stride + 1 for length in image.shape[:2])
    found = np.zeros((height, width, kernel.shape[3]))
    for row in range(height):
        for column in range(width):
            window = padded[row * stride : row * stride + size, column * stride : column * stride + size]
            found[row, column] = np.einsum("yxc,yxco->o", window, kernel)
    return found


def pool(image):
    """3x3 max pooling with stride 2 and padding 1."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = ((length - 1) // 2 + 1 for length in image.shape[:2])
    windows = [
        padded[y : y + 2 * height : 2, x : x + 2 * width : 2][:height, :width] for y in range(3) for x in range(3)
    ]
    return np.max(windows, axis=0)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_network_of_one_block_by_hand(bottleneck):
    module = ResNet(ResNetSpec((1,), (3,), bottleneck, 3, 4, True, (2,)))
    random = np.random.default_rng(0)
    image = random.normal(size=(13, 10, 3)).astype(np.float32)
    shape = jax.eval_shape(lambda: module.init(_KEY, jnp.asarray(image[None]), NormMode(False)))
    flat: Any = traverse_util.flatten_dict(shape)
    variables = traverse_util.unflatten_dict(
        {path: random.uniform(0.2, 1.0, leaf.shape).astype(np.float32) - 0.5 * (path[-1] in ("kernel", "mean", "bias"))
         for path, leaf in flat.items()}
    )  # fmt: skip
    params, stats = variables["params"], variables["batch_stats"]

    def layer(x, conv, norm, scope, stride=1):
        p, s = (params[scope], stats[scope]) if scope else (params, stats)
        y = convolve(x, p[conv]["kernel"], stride)
        y = (y - s[norm]["mean"]) / np.sqrt(s[norm]["var"] + 1e-5)
        return y * p[norm]["scale"] + p[norm]["bias"]

    def relu(x):
        return np.maximum(x, 0)

    x = pool(relu(layer(image, "conv1", "bn1", None, 2)))
    if bottleneck:  # the stride sits on the 3x3 convolution
        y = relu(layer(x, "conv1", "bn1", "layer1_0"))
        y = relu(layer(y, "conv2", "bn2", "layer1_0", 2))
        y = layer(y, "conv3", "bn3", "layer1_0")
    else:
        y = relu(layer(x, "conv1", "bn1", "layer1_0", 2))
        y = layer(y, "conv2", "bn2", "layer1_0")
    expected = relu(layer(x, "downsample_conv", "downsample_bn", "layer1_0", 2) + y)

    found = jax.jit(lambda v, i: module.apply(v, i, NormMode(False)))(variables, image[None])[0]
    assert found.shape == ((2, 2, 12) if bottleneck else (2, 2, 3))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_rectified_sum_is_the_relu_of_the_sum_bit_for_bit(dtype):
    draw = np.random.default_rng(0)
    x, y, gradient = (jnp.asarray(draw.integers(-9, 9, (64, 32)) * draw.choice([1, 0.1], 32), dtype) for _ in range(3))

    def both(function):
        z, pull = jax.vjp(function, x, y)
        return z, *pull(gradient)

    expected = both(lambda x, y: nn.relu(x + y))
    assert (expected[0] == 0).mean() > 0.4
    for found, known in zip(both(rectified_sum), expected, strict=True):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, known)


@pytest.mark.parametrize("train", [False, True])
def test_blocks_read_the_output_of_the_one_before_and_no_older_map(train):
    """The operations on maps have few of them to read: a block's output is not computed again from all before it."""
    spec = ResNetSpec((6,), (8,), True, 3, 32, False, (1,))
    x = jnp.ones((4, 32, 32, 3))
    module = ResNet(spec)
    variables = module.init(jax.random.key(0), x, NormMode(False))

    def loss(variables):
        y, _ = module.apply(variables, x, NormMode(train), mutable=["batch_stats"])
        return (y * y).sum()

    text = jax.jit(jax.grad(loss) if train else loss).lower(variables).compile().as_text() or ""
    entry = text[text.index("\nENTRY") :]
    arrays = re.findall(r"%([\w.\-]+) = f32\[([\d,]+)\]", entry)
    maps = {name for name, size in arrays if np.prod([int(length) for length in size.split(",")]) == 4 * 16 * 16 * 32}
    fusions = re.findall(r" fusion\((.*?)\), kind=kLoop", entry)
    read = [len(maps & set(re.findall(r"%([\w.\-]+)", operands))) for operands in fusions]
    assert len(maps) > 12
    assert max(read) <= 4
