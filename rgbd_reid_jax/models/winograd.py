"""Winograd's minimal filtering: 3x3 convolutions of stride 1 and padding 1 with fewer products.

Lavin and Gray, arXiv:1509.09308. F(m x m, 3 x 3) makes tiles of m x m outputs from overlapping tiles of the image that
are two places wider, with one product per place of those: (m + 2)^2 instead of 9 m^2. With d the image's tiles, e those
of the output's gradient, k the kernel, * a product of matrices over channels at each place of a tile:

    output    Y  = A' [(G k G') * (B' d B)] A
    gradient  dk = G' [(B' d B)' * (A e A')] G

and the image's gradient is the output's formula with the kernel turned and its channels swapped. The transforms are
weighted sums, so results are those of the definition up to rounding.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rgbd_reid_jax.models.products import product, summed_product

Matrix = tuple[tuple[float, ...], ...]
Parts = Sequence[jax.Array] | jax.Array
Grid = list[list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class Filtering:
    """F(m x m, 3 x 3).

    Attributes:
        image: B', [m + 2, m + 2].
        kernel: G, [m + 2, 3].
        output: A', [m, m + 2].
        turned: the order of G's rows for a kernel that is turned round: a point and its inverse change places.
    """

    image: Matrix
    kernel: Matrix
    output: Matrix
    turned: tuple[int, ...]

    @property
    def tile(self) -> int:
        """m."""
        return len(self.output)


# Points 0, 1, -1 and infinity.
F2 = Filtering(
    image=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    kernel=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
    output=((1, 1, 1, 0), (0, 1, -1, -1)),
    turned=(3, 1, 2, 0),
)
# Points 0, a, -a, b, -b and infinity; their products round to about half of what those of 0, 1, -1, 2, -2 do.
_A, _B = math.sqrt(0.5), math.sqrt(2)
F4 = Filtering(
    image=(
        (1, 0, -2.5, 0, 1, 0),
        (0, -2 * _A, -2, _A, 1, 0),
        (0, 2 * _A, -2, -_A, 1, 0),
        (0, -0.5 * _B, -0.5, _B, 1, 0),
        (0, 0.5 * _B, -0.5, -_B, 1, 0),
        (0, 1, 0, -2.5, 0, 1),
    ),
    kernel=((1, 0, 0), (1, _A, 0.5), (1, -_A, 0.5), (0.5, 0.5 * _B, 1), (0.5, -0.5 * _B, 1), (0, 0, 1)),
    output=(
        (1, -2 / 3, -2 / 3, 1 / 3, 1 / 3, 0),
        (0, -2 / 3 * _A, 2 / 3 * _A, 1 / 3 * _B, -1 / 3 * _B, 0),
        (0, -1 / 3, -1 / 3, 2 / 3, 2 / 3, 0),
        (0, -1 / 3 * _A, 1 / 3 * _A, 2 / 3 * _B, -2 / 3 * _B, 1),
    ),
    turned=(5, 3, 4, 1, 2, 0),
)


def convolution(form: Filtering, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The output.

    Args:
        form: which F.
        x: float [B, H, W, C].
        kernel: the same dtype, [3, 3, C, O].

    Returns:
        The same dtype, [B, H, W, O].
    """
    return filtered(form, x, kernel_transform(form, kernel))


def image_gradient(form: Filtering, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """The image's gradient, [B, H, W, C], for the output's, [B, H, W, O]."""
    return given_image_gradient(form, kernel_transform(form, kernel), gradient)


def given_image_gradient(form: Filtering, kernel: Grid, gradient: jax.Array) -> jax.Array:
    """`image_gradient` for a kernel of which `kernel_transform` was taken.

    Turning the kernel changes the order of the rows of G k G' and of its columns; the products contract the other
    channels, so that nothing is transposed.
    """
    return filtered(form, gradient, [[kernel[i][j] for j in form.turned] for i in form.turned], 1)


def kernel_gradient(form: Filtering, x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The kernel's gradient, [3, 3, C, O], for the image, [B, H, W, C], and the output's, [B, H, W, O]."""
    tile, back = form.tile, _transposed(form.kernel)
    _, height, width, _ = gradient.shape
    filled = jnp.pad(gradient, ((0, 0), (0, -height % tile), (0, -width % tile), (0, 0)))
    spread = [
        _sums(_transposed(form.output), [row[:, :, place::tile] for place in range(tile)])
        for row in _sums(_transposed(form.output), [filled[:, place::tile] for place in range(tile)])
    ]
    sums = [
        [summed_product(*pair) for pair in zip(*pairs, strict=True)]
        for pairs in zip(_image_transform(form, x), spread, strict=True)
    ]
    return jnp.stack([jnp.stack(row) for row in _both_ways(back, sums)])


def filtered(form: Filtering, x: jax.Array, kernel: Grid, over: int = 0) -> jax.Array:
    """The output for a kernel of which `kernel_transform` was taken, and whose channels `over` are summed."""
    batch, height, width, _ = x.shape
    products = [
        [product(*pair, over=over) for pair in zip(*pairs, strict=True)]
        for pairs in zip(_image_transform(form, x), kernel, strict=True)
    ]
    rows = _both_ways(form.output, products)
    y = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)  # [B, h, m, w, m, O]
    filled = y.reshape(batch, form.tile * y.shape[1], form.tile * y.shape[3], y.shape[5])
    return filled[:, :height, :width]


def _image_transform(form: Filtering, x: jax.Array) -> Grid:
    """B' d B: at each place of a tile [B, h, w, C], of the tiles at every m-th row and column."""
    tile = form.tile
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1 + -height % tile), (1, 1 + -width % tile), (0, 0)))

    def along(x: jax.Array, axis: int) -> list[jax.Array]:
        span = x.shape[axis] - tile - 1
        return _sums(form.image, [lax.slice_in_dim(x, at, at + span, tile, axis) for at in range(tile + 2)])

    return [along(row, 2) for row in along(padded, 1)]


def kernel_transform(form: Filtering, kernel: jax.Array) -> Grid:
    """G k G': at each place of a tile [C, O]. It depends on the kernel alone."""
    return _both_ways(form.kernel, [list(row) for row in kernel])


def _both_ways(matrix: Matrix, grid: Grid) -> Grid:
    """M g M'."""
    columns = [_sums(matrix, column) for column in zip(*[_sums(matrix, row) for row in grid], strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _sums(matrix: Matrix, parts: Parts) -> list[jax.Array]:
    """Each row's weighted sum of the parts."""
    return [
        functools.reduce(
            operator.add,
            [part if weight == 1 else weight * part for weight, part in zip(row, parts, strict=True) if weight],
        )
        for row in matrix
    ]


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
