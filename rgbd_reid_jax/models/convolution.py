"""Convolutions that are fast on a CPU too.

On accelerators and in bfloat16 a convolution is XLA's. XLA's on CPUs are slow with few channels, on narrow maps and in
gradients of 1x1 kernels; there float32 takes, by the shapes alone and never by the batch size:

- 1x1 kernels: one matrix product per direction.
- 3x3 kernels of stride 1 and padding 1, from 64 channels: Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray,
  arXiv:1509.09308), 16 products for 4 outputs instead of 36. With d the overlapping 4x4 tiles of the image, e the
  2x2 tiles of the output's gradient, k the kernel, * a product of matrices over channels at each of the 16 places:

      output    Y  = A' [(G k G') * (B' d B)] A
      gradient  dk = G' [(B' d B)' * (A e A')] G

  and the image's gradient is the output's formula with the kernel turned and its channels swapped. The transforms
  are sums and halves, so results are those of the definition up to rounding.
- the 5x5 kernel on an image's few channels: two columns are read as one of twice the channels, which moves no data.
- outputs narrower than the kernel, where XLA's loops take a hundred times as long: the image's parts under the kernel's
  places side by side, as one product.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW = 8  # input channels below which columns are paired
_MANY = 64  # channels from which Winograd pays: its transforms grow with them, its products with their square
_COLUMNS = 512  # below which a product is quicker with its factors exchanged, if that writes more columns
_TURNED = (3, 1, 2, 0)

Grid = list[list[jax.Array]]
Form = Callable[..., jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """A convolution (correlation, as networks have it).

    Args:
        x: float [B, H, W, C].
        kernel: the same dtype, [k, k, C, O].
        stride: in both directions.
        padding: rows and columns of zeros on each side.

    Returns:
        The same dtype, [B, (H + 2 padding - k) // stride + 1, likewise, O].
    """
    return _by_platform(*_forms(stride, padding), x, kernel)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolution(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    quick, plain = _forms(stride, padding)
    images, kernels = functools.partial(_image_gradient, quick), functools.partial(_kernel_gradient, quick)
    if _pointwise(residuals[1], padding):
        kernels = functools.partial(_pointwise_kernel_gradient, stride)
    if _tiled(residuals[1], stride, padding):
        images, kernels = _winograd_image_gradient, _winograd_kernel_gradient
    # Two choices rather than one of both: where the image needs no gradient, its own is left out.
    return (
        _by_platform(images, functools.partial(_image_gradient, plain), *residuals, gradient),
        _by_platform(kernels, functools.partial(_kernel_gradient, plain), *residuals, gradient),
    )


convolution.defvjp(_forward, _backward)


def _forms(stride: int, padding: int) -> tuple[Form, Form]:
    """CPUs' convolution and the other platforms'."""
    return functools.partial(_quick, stride=stride, padding=padding), functools.partial(
        _plain, stride=stride, padding=padding
    )


def _by_platform(quick: Form, plain: Form, *arguments: jax.Array) -> jax.Array:
    if arguments[0].dtype != jnp.float32:
        return plain(*arguments)
    return lax.platform_dependent(*arguments, cpu=quick, default=plain)


def _image_gradient(form: Form, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    return jax.vjp(lambda one: form(one, kernel), x)[1](gradient)[0]


def _kernel_gradient(form: Form, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    return jax.vjp(lambda one: form(x, one), kernel)[1](gradient)[0]


def _plain(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=_LAYOUT)


def _quick(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    size = kernel.shape[0]
    if _pointwise(kernel, padding):
        return _product(x[:, ::stride, ::stride], kernel[0, 0])
    if _tiled(kernel, stride, padding):
        return _winograd(x, kernel)
    if _narrow(x, kernel, stride, padding):
        return _side_by_side(x, kernel, stride, padding)
    if kernel.shape[2] < _FEW and size == 5 and stride == 2 and x.shape[2] % 2 == 0:
        return _in_pairs(x, kernel, padding)
    return _plain(x, kernel, stride, padding)


def _pointwise(kernel: jax.Array, padding: int) -> bool:
    return kernel.shape[0] == 1 and padding == 0


def _pointwise_kernel_gradient(stride: int, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    del kernel
    return _summed_product(x[:, ::stride, ::stride], gradient)[None, None]


def _product(x: jax.Array, matrix: jax.Array, over: int = 0) -> jax.Array:
    """[B, h, w, C] times [C, O], or with `over` 1 times the transpose of [O, C]."""
    return lax.dot_general(x, matrix, (((3,), (over,)), ((), ())))


def _summed_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """[C, O], the sum of the outer products of [B, h, w, C] and [B, h, w, O].

    XLA's product is slow where it writes few columns: then the other order, turned round. The barrier keeps XLA from
    turning it back.
    """
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    if y.shape[1] < min(x.shape[1], _COLUMNS):
        return lax.optimization_barrier(_summed_product(y, x)).T
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())))


def _in_pairs(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """A convolution of stride 2, with two columns read as one of twice the channels."""
    batch, height, width, channels = x.shape
    size, left = kernel.shape[0], padding % 2  # the kernel's first column is the second of a pair if padding is odd
    right = (left + size) % 2
    kernel = jnp.pad(kernel, ((0, 0), (left, right), (0, 0), (0, 0)))
    kernel = kernel.reshape(size, -1, 2 * channels, kernel.shape[3])
    before = (padding + left) // 2
    columns = (width + 2 * padding - size) // 2 + 1
    after = columns - 1 + kernel.shape[1] - before - width // 2
    pairs = x.reshape(batch, height, width // 2, 2 * channels)
    return lax.conv_general_dilated(
        pairs, kernel, (2, 1), ((padding, padding), (before, after)), dimension_numbers=_LAYOUT
    )


def _narrow(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> bool:
    """Whether the output is narrower than the kernel."""
    size = kernel.shape[0]
    return min((length + 2 * padding - size) // stride + 1 for length in x.shape[1:3]) < size


def _side_by_side(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """A convolution as one product with the images' parts under each place of the kernel, one after another."""
    size = kernel.shape[0]
    high, wide = ((length + 2 * padding - size) // stride * stride + 1 for length in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    places = [
        padded[:, row : row + high : stride, column : column + wide : stride]
        for row in range(size)
        for column in range(size)
    ]
    return _product(jnp.concatenate(places, axis=3), kernel.reshape(-1, kernel.shape[3]))


def _tiled(kernel: jax.Array, stride: int, padding: int) -> bool:
    """Whether Winograd's form is taken."""
    return kernel.shape[0] == 3 and stride == 1 and padding == 1 and min(kernel.shape[2:]) >= _MANY


def _winograd(x: jax.Array, kernel: jax.Array, *, turned: bool = False) -> jax.Array:
    """The 3x3 convolution of stride 1 and padding 1; `turned`, with the kernel turned and its channels swapped.

    Turning exchanges the first and the last row of G k G', and its columns likewise; the products contract the other
    channels, so that nothing is transposed.
    """
    batch, height, width, _ = x.shape
    rows = [_kernel_transform(row) for row in _kernel_transform([kernel[0], kernel[1], kernel[2]])]
    if turned:
        rows = [[rows[i][j] for j in _TURNED] for i in _TURNED]
    product = functools.partial(_product, over=1 if turned else 0)
    products = [[product(*pair) for pair in zip(*pairs, strict=True)] for pairs in zip(_tiles(x), rows, strict=True)]
    columns = [_output_transform([row[index] for row in products]) for index in range(4)]
    tiles = [_output_transform([column[index] for column in columns]) for index in range(2)]
    y = jnp.stack([jnp.stack(row, axis=3) for row in tiles], axis=2)  # [B, h, 2, w, 2, O]
    even = y.reshape(batch, 2 * y.shape[1], 2 * y.shape[3], y.shape[5])
    return even[:, :height, :width]


def _winograd_image_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    del x
    return _winograd(gradient, kernel, turned=True)


def _winograd_kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    del kernel
    _, height, width, _ = gradient.shape
    even = jnp.pad(gradient, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    tiles = [_gradient_transform(row, 2) for row in _gradient_transform(even, 1)]
    sums = [
        [_summed_product(*pair) for pair in zip(*pairs, strict=True)] for pairs in zip(_tiles(x), tiles, strict=True)
    ]
    columns = [_kernel_back([row[index] for row in sums]) for index in range(4)]
    return jnp.stack([jnp.stack(_kernel_back([column[index] for column in columns])) for index in range(3)])


def _tiles(x: jax.Array) -> Grid:
    """B' d B: 4 x 4 arrays [B, h, w, C], of the image's overlapping 4x4 tiles at every second row and column."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    return [_image_transform(row, 2) for row in _image_transform(padded, 1)]


def _image_transform(x: jax.Array, axis: int) -> list[jax.Array]:
    """B' along an axis."""
    span = x.shape[axis] - 3
    d = [lax.slice_in_dim(x, start, start + span, 2, axis) for start in range(4)]
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _kernel_transform(k: Sequence[jax.Array] | jax.Array) -> list[jax.Array]:
    """G."""
    ends, middle = 0.5 * (k[0] + k[2]), 0.5 * k[1]
    return [k[0], ends + middle, ends - middle, k[2]]


def _kernel_back(d: Sequence[jax.Array]) -> list[jax.Array]:
    """G'."""
    ends = 0.5 * (d[1] + d[2])
    return [d[0] + ends, 0.5 * (d[1] - d[2]), ends + d[3]]


def _output_transform(m: Sequence[jax.Array]) -> list[jax.Array]:
    """A'."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _gradient_transform(x: jax.Array, axis: int) -> list[jax.Array]:
    """A along an axis."""
    first, second = (lax.slice_in_dim(x, start, x.shape[axis], 2, axis) for start in range(2))
    return [first, first + second, first - second, -second]


class Conv(nn.Module):
    """A square convolution without bias; its parameter `kernel` is float32 [k, k, C, O].

    Attributes:
        features: channels of the output, O.
        size: of the kernel, k.
        stride: in both directions.
        dtype: of the computation.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, h, w, O], padded by (k - 1) // 2 as torchvision does, "SAME" differs at stride 2."""
        kernel = self.param("kernel", he_normal, (self.size, self.size, x.shape[-1], self.features))
        form = _plain if self.is_initializing() else convolution  # traced for its shape alone, and much quicker
        return form(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, (self.size - 1) // 2)
