"""Convolutions that are fast on a CPU too.

On accelerators and in bfloat16 a convolution is XLA's. On CPUs float32 takes other forms where XLA's are slower, by the
shapes alone and never by the batch size:

- 3x3 kernels of stride 1 and padding 1: Winograd's filtering (`winograd.py`), from 64 channels, in the kernel's
  gradient from 128.
- of the others 1x1 kernels, the gradients of 3x3 with stride 2, and all where the output is narrower than the kernel,
  for which XLA's loops take a hundred times as long: one product, with the image's parts under the kernel's places side
  by side.

What Winograd's filtering computes from kernels alone can be given, to be shared by many batches (`prepared`).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from rgbd_reid_jax.models import winograd
from rgbd_reid_jax.models.products import product, summed_product

PREPARED = "prepared"
"""The collection of what convolutions compute from their kernels alone; they use it where it is given."""
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_MANY = 64  # channels from which Winograd pays: its sums grow with them, its products with their square
_MANY_IN_GRADIENT = 128  # the same, in the kernel's gradient
_LARGE_MAP, _LARGE_KERNEL = 8, 128  # places and channels from which its larger tiles pay

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
    quick, plain = (functools.partial(form, stride=stride, padding=padding) for form in (_quick, _plain))
    return _by_platform(quick, plain, x, kernel)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolution(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Two choices rather than one of both: where the image needs no gradient, its own is left out.
    x, kernel = residuals
    return (
        _gradient_of_image(stride, padding, x, kernel, gradient),
        _gradient_of_kernel(stride, padding, x, kernel, gradient),
    )


def _gradient_of_image(stride: int, padding: int, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    plain = quick = functools.partial(_image_gradient, functools.partial(_plain, stride=stride, padding=padding))
    if _tiled(kernel, stride, padding):
        quick = functools.partial(_tiled_image_gradient, _tiles(x, kernel))
    elif _gradients_at_once(x, kernel, stride, padding):
        quick = functools.partial(_image_gradient, functools.partial(_at_once, stride=stride, padding=padding))
    return _by_platform(quick, plain, x, kernel, gradient)


def _gradient_of_kernel(stride: int, padding: int, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    plain = quick = functools.partial(_kernel_gradient, functools.partial(_plain, stride=stride, padding=padding))
    if _tiled(kernel, stride, padding) and min(kernel.shape[2:]) >= _MANY_IN_GRADIENT:
        quick = functools.partial(_tiled_kernel_gradient, _tiles(x, kernel))
    elif _gradients_at_once(x, kernel, stride, padding):
        quick = functools.partial(_kernel_gradient_at_once, stride, padding)
    return _by_platform(quick, plain, x, kernel, gradient)


convolution.defvjp(_forward, _backward)


def prepared(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> winograd.Grid:
    """What CPUs compute for a convolution from its kernel alone, for `prepared_convolution`; empty where nothing."""
    if x.dtype != jnp.float32 or not _tiled(kernel, stride, padding):
        return []
    return winograd.kernel_transform(_tiles(x, kernel), kernel)


def prepared_convolution(x: jax.Array, kernel: jax.Array, given: winograd.Grid, stride: int, padding: int) -> jax.Array:
    """`convolution` with what `prepared` gave for images of the same shape: many batches share that work."""
    return _given_convolution(x, kernel, given, stride, padding) if given else convolution(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _given_convolution(x: jax.Array, kernel: jax.Array, given: winograd.Grid, stride: int, padding: int) -> jax.Array:
    form = _tiles(x, kernel)
    return _by_platform(
        lambda x, _, given: winograd.filtered(form, x, given),
        lambda x, kernel, _: _plain(x, kernel, stride, padding),
        *(x, kernel, given),
    )


def _given_forward(
    x: jax.Array, kernel: jax.Array, given: winograd.Grid, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, winograd.Grid]]:
    return _given_convolution(x, kernel, given, stride, padding), (x, kernel, given)


def _given_backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array, winograd.Grid], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, winograd.Grid]:
    """What is given depends on the kernel, so all of the gradient is the kernel's."""
    x, kernel, given = residuals
    form = _tiles(x, kernel)
    plain = functools.partial(_plain, stride=stride, padding=padding)
    images = _by_platform(
        lambda x, kernel, given, gradient: winograd.given_image_gradient(form, given, gradient),
        lambda x, kernel, given, gradient: _image_gradient(plain, x, kernel, gradient),
        *(x, kernel, given, gradient),
    )
    kernels = _gradient_of_kernel(stride, padding, x, kernel, gradient)
    return images, kernels, jax.tree.map(jnp.zeros_like, given)


_given_convolution.defvjp(_given_forward, _given_backward)


def _by_platform(quick: Form, plain: Form, *arguments: Any) -> jax.Array:
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
    if _tiled(kernel, stride, padding):
        return winograd.convolution(_tiles(x, kernel), x, kernel)
    if _always_at_once(x, kernel, stride, padding):
        return _at_once(x, kernel, stride, padding)
    return _plain(x, kernel, stride, padding)


def _always_at_once(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> bool:
    """Whether one product is taken in both directions: the kernel is 1x1, or the output narrower than it."""
    size = kernel.shape[0]
    return size == 1 or min((length + 2 * padding - size) // stride + 1 for length in x.shape[1:3]) < size


def _gradients_at_once(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> bool:
    return _always_at_once(x, kernel, stride, padding) or (kernel.shape[0], stride) == (3, 2)


def _at_once(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """One product."""
    return product(_side_by_side(x, kernel.shape[0], stride, padding), kernel.reshape(-1, kernel.shape[3]))


def _side_by_side(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """The image's parts under each place of a kernel, one after another in the channels."""
    high, wide = ((length + 2 * padding - size) // stride * stride + 1 for length in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    places = [
        padded[:, row : row + high : stride, column : column + wide : stride]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(places, axis=3)


def _kernel_gradient_at_once(
    stride: int, padding: int, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    parts = _side_by_side(x, kernel.shape[0], stride, padding)
    return summed_product(parts, gradient).reshape(kernel.shape)


def _tiled(kernel: jax.Array, stride: int, padding: int) -> bool:
    """Whether Winograd's form is taken."""
    return kernel.shape[0] == 3 and stride == 1 and padding == 1 and min(kernel.shape[2:]) >= _MANY


def _tiles(x: jax.Array, kernel: jax.Array) -> winograd.Filtering:
    large = min(x.shape[1:3]) >= _LARGE_MAP and min(kernel.shape[2:]) >= _LARGE_KERNEL
    return winograd.F4 if large else winograd.F2


def _tiled_image_gradient(form: winograd.Filtering, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    del x
    return winograd.image_gradient(form, kernel, gradient)


def _tiled_kernel_gradient(form: winograd.Filtering, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    del kernel
    return winograd.kernel_gradient(form, x, gradient)


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
        x, kernel, padding = x.astype(self.dtype), kernel.astype(self.dtype), (self.size - 1) // 2
        if self.is_initializing():
            return _plain(x, kernel, self.stride, padding)  # traced for its shape alone, and much quicker
        if self.is_mutable_collection(PREPARED):
            self.put_variable(PREPARED, "kernel", prepared(x, kernel, self.stride, padding))
        given = self.get_variable(PREPARED, "kernel", [])
        return prepared_convolution(x, kernel, given, self.stride, padding)
