"""Convolutions against XLA's own: values and gradients, sharded, recomputed, mapped, exported, in a network."""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from rgbd_reid_jax.models.batch_norm import NormMode
from rgbd_reid_jax.models.convolution import Conv, convolution, prepared, prepared_convolution
from rgbd_reid_jax.models.resnet import RESNETS, ResNet


def plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def drawn(*shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def both_gradients(function, stride, size):
    """(output, gradients of image and kernel) for a given gradient of the output, compiled."""

    def run(x, kernel, gradient):
        y, pull = jax.vjp(lambda x, kernel: function(x, kernel, stride, (size - 1) // 2), x, kernel)
        return y, *pull(gradient)

    return jax.jit(run)


def operands(height, width, size, stride, channels, out, dtype=jnp.float32, batch=8):
    pad = (size - 1) // 2
    high, wide = ((length + 2 * pad - size) // stride + 1 for length in (height, width))
    return (
        drawn(batch, height, width, channels, dtype=dtype),
        drawn(size, size, channels, out, dtype=dtype, seed=1),
        drawn(batch, high, wide, out, dtype=dtype, seed=2),
    )


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


# Every kernel and stride of RESNETS; widths below and above where another form is taken; even, odd and tiny maps.
MAPS = [(8, 4), (9, 6), (6, 9), (7, 5), (4, 2), (1, 1)]
KERNELS = [
    *((7, 2, 3, 8), (5, 2, 3, 8), (3, 2, 3, 4), (3, 2, 64, 72), (3, 1, 64, 72), (3, 1, 72, 64), (3, 1, 16, 64)),
    *((1, 1, 8, 16), (1, 2, 8, 16), (1, 1, 40, 32), (1, 2, 32, 40)),
]
TILES = [
    *((8, 8, 3, 1, 128, 136), (9, 10, 3, 1, 128, 136), (15, 12, 3, 1, 64, 72)),
    *((6, 9, 3, 1, 128, 136), (4, 2, 3, 1, 128, 128)),
]


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "channels", "out"),
    [*((*shape, *kernel) for shape in MAPS for kernel in KERNELS), *TILES],
)
def test_values_and_gradients_are_those_of_xla(height, width, size, stride, channels, out):
    arguments = operands(height, width, size, stride, channels, out, batch=3)
    expected = both_gradients(plain, stride, size)(*arguments)
    assert_close(both_gradients(convolution, stride, size)(*arguments), expected, 3e-6)


@pytest.mark.parametrize(("size", "stride", "channels"), [(5, 2, 3), (3, 1, 64), (3, 2, 32), (1, 2, 32)])
def test_bfloat16_is_that_of_xla_bit_for_bit(size, stride, channels):
    arguments = operands(8, 4, size, stride, channels, 64, jnp.bfloat16)
    expected = both_gradients(plain, stride, size)(*arguments)
    assert_close(both_gradients(convolution, stride, size)(*arguments), expected, 0)


@pytest.mark.parametrize(("height", "width", "tolerance"), [(8, 4, 2e-6), (16, 8, 6e-6)])  # small and large tiles
def test_rounding_is_about_that_of_the_definition(height, width, tolerance):
    x, kernel, gradient = (np.asarray(one, np.float64) for one in operands(height, width, 3, 1, 128, 128))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [[padded[:, i : i + height, j : j + width] for j in range(3)] for i in range(3)]
    y = np.sum([windows[i][j] @ kernel[i, j] for i in range(3) for j in range(3)], axis=0)
    summed = np.array([[np.tensordot(one, gradient, ((0, 1, 2), (0, 1, 2))) for one in row] for row in windows])
    found = both_gradients(convolution, 1, 3)(*(jnp.asarray(one, jnp.float32) for one in (x, kernel, gradient)))
    assert_close((found[0], found[2]), (y.astype(np.float32), summed.astype(np.float32)), tolerance)


@pytest.mark.parametrize(
    ("height", "size", "stride", "channels"),
    [
        *((8, 7, 2, 3), (8, 5, 2, 3), (8, 3, 1, 64), (8, 3, 2, 64), (8, 1, 2, 32), (8, 1, 1, 96), (16, 3, 1, 128)),
        *((8, 3, 1, 128), (16, 3, 2, 64)),
    ],
)
def test_a_sharded_batch_gives_the_same(mesh_of, height, size, stride, channels):
    arguments = operands(height, height // 2, size, stride, channels, max(64, channels), batch=16)
    run = both_gradients(convolution, stride, size)
    rows, everywhere = (NamedSharding(mesh_of(8), PartitionSpec(*axes)) for axes in (("data",), ()))
    sharded = [jax.device_put(one, where) for one, where in zip(arguments, (rows, everywhere, rows), strict=True)]
    text = run.lower(*sharded).compile().as_text() or ""
    assert "all-gather" not in text
    assert "all-to-all" not in text
    found = run(*sharded)
    assert found[0].sharding.is_equivalent_to(rows, 4)
    assert_close(found, run(*arguments), 1e-6 if height == 8 else 3e-6)  # large tiles round more


@pytest.mark.parametrize(
    ("height", "size", "stride", "channels", "places"),
    [(8, 3, 1, 64, 4), (16, 3, 1, 128, 6), (8, 3, 1, 32, 0), (8, 3, 2, 64, 0), (8, 1, 1, 64, 0), (8, 5, 2, 3, 0)],
)
def test_what_depends_on_the_kernel_alone_can_be_given(height, size, stride, channels, places):
    """The same bits, and the kernel itself is not looked at where it is."""
    x, kernel, _ = operands(height, height // 2, size, stride, channels, channels)
    pad = (size - 1) // 2
    given = jax.jit(lambda kernel: prepared(x[:1], kernel, stride, pad))(kernel)
    assert [len(row) for row in given] == places * [places]
    run = jax.jit(lambda x, kernel, given: prepared_convolution(x, kernel, given, stride, pad))
    expected = jax.jit(lambda x, kernel: convolution(x, kernel, stride, pad))(x, kernel)
    np.testing.assert_array_equal(run(x, jnp.zeros_like(kernel) if places else kernel, given), expected)
    halves = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert prepared(*halves, stride, pad) == []


@pytest.mark.parametrize(("height", "channels"), [(8, 64), (16, 128)])
def test_gradients_with_what_is_given_are_those_without(height, channels):
    """All of the gradient is the kernel's; the image's looks at what is given instead of the kernel."""
    x, kernel, gradient = operands(height, height // 2, 3, 1, channels, channels)
    given = prepared(x[:1], kernel, 1, 1)
    assert given

    def gradients(x, kernel, given):
        run = functools.partial(prepared_convolution, stride=1, padding=1)
        return jax.vjp(run, x, kernel, given)[1](gradient)

    found = jax.jit(gradients)(x, kernel, given)
    assert_close(found[:2], both_gradients(convolution, 1, 3)(x, kernel, gradient)[1:], 1e-6)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(found[2]))
    images, _, _ = jax.jit(gradients)(x, jnp.zeros_like(kernel), given)
    assert_close([images], [found[0]], 1e-6)


@pytest.mark.parametrize(
    ("height", "size", "stride", "channels"),
    [(8, 5, 2, 3), (8, 3, 1, 64), (8, 1, 2, 32), (8, 1, 1, 96), (8, 3, 1, 128), (16, 3, 2, 64)],
)
def test_recomputed_and_mapped(height, size, stride, channels):
    arguments = operands(height, height // 2, size, stride, channels, max(64, channels))
    run = both_gradients(convolution, stride, size)
    expected = run(*arguments)
    again = jax.checkpoint(convolution, static_argnums=(2, 3))
    assert_close(both_gradients(again, stride, size)(*arguments), expected, 1e-6)
    mapped = jax.vmap(run)(*(jnp.stack([one, 2 * one]) for one in arguments))
    assert_close([one[0] for one in mapped], expected, 1e-6)
    assert_close([one[1] for one in mapped], [4 * expected[0], 4 * expected[1], 4 * expected[2]], 1e-6)


def test_a_program_for_any_batch_and_several_platforms():
    x, kernel, _ = operands(8, 4, 3, 1, 64, 64)
    (batch,) = jax.export.symbolic_shape("batch")
    forward = jax.jit(functools.partial(convolution, stride=1, padding=1))
    assert "stablehlo.convolution" not in forward.lower(x, kernel).as_text()
    program = jax.export.export(forward, platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), kernel
    )
    padded, weights = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64), np.asarray(kernel, np.float64)
    products = [
        padded[:, row : row + 8, column : column + 4] @ weights[row, column] for row, column in np.ndindex(3, 3)
    ]
    exact = np.sum(products, axis=0)
    for count in (1, 8):  # in float64, since XLA's own convolution is off by 1e-6 on some processors
        found = program.call(x[:count], kernel)
        assert found.dtype == x.dtype
        assert_close([np.asarray(found, np.float64)], [exact[:count]], 1e-6)


def test_accelerators_get_the_plain_convolution_in_both_directions():
    arguments = operands(8, 4, 3, 1, 128, 128)
    run = both_gradients(convolution, 1, 3)
    for platform, convolutions in (("cpu", 0), ("tpu", 3)):
        text = run.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == convolutions


def test_the_layer_is_that_of_flax():
    x = drawn(2, 8, 4, 32)
    ours = Conv(40, 3, 2)
    theirs = nn.Conv(
        40,
        (3, 3),
        (2, 2),
        padding=((1, 1), (1, 1)),
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    )
    variables = ours.init(jax.random.key(0), x)
    expected = theirs.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert_close([ours.apply(variables, x)], [theirs.apply(expected, x)], 1e-6)


def test_a_network_of_recomputed_blocks_has_the_same_gradients():
    images = drawn(4, 32, 16, 3)
    variables = jax.jit(ResNet(RESNETS["small"]).init, static_argnums=2)(jax.random.key(0), images, NormMode(False))

    def gradients(remat):
        def loss(params):
            module = ResNet(RESNETS["small"], remat=remat)
            y, _ = module.apply({**variables, "params": params}, images, NormMode(True), mutable=["batch_stats"])
            return jnp.sum(y**2)

        return jax.jit(jax.grad(loss))(variables["params"])

    assert_close(jax.tree.leaves(gradients(True)), jax.tree.leaves(gradients(False)), 1e-3)
