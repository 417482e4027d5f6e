"""Batch norm, with a choice of which rows share statistics.

Ioffe and Szegedy, arXiv:1502.03167. Its gradient is written out: the derivative of the definition, as transformed by
JAX, keeps the centred map beside the map itself, one more pass over memory in each direction. Barriers make the mean of
each use another one to XLA, which would otherwise centre the map once and keep it.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_MOMENTUM, _EPSILON = 0.9, 1e-5  # torchvision's, in Flax's sense of momentum


@dataclasses.dataclass(frozen=True)
class NormMode:
    """Which statistics batch norm uses.

    Attributes:
        train: the batch's (updating the running ones); otherwise the running ones everywhere.
        running: paths of layers ("backbone/layer3_0/bn3") that use running statistics even in training.
        groups: equal parts of the batch, in order, each of which has statistics of its own in training.
    """

    train: bool
    running: frozenset[str] = frozenset()
    groups: int = 1


def batch_norm(path: tuple[str, ...], name: str, mode: NormMode, dtype: Any, *, use_bias: bool = True) -> nn.Module:
    """The batch norm `name` of the module at `path`; momentum and epsilon as torchvision's.

    Deviation: running variances are those of the batch, torchvision's are unbiased: n / (n - 1) times as large.
    """
    running = not mode.train or "/".join((*path, name)) in mode.running
    return _BatchNorm(0 if running else mode.groups, dtype, use_bias, name=name)


class _BatchNorm(nn.Module):
    """Batch norm with the statistics of each of `groups` equal parts of the batch, or for 0 with the running ones.

    A part that lies on one device needs nothing of the others: no all-reduce forwards or backwards, but for the
    running statistics, which are the means of the parts' (Hoffer et al., "Train longer, generalize better",
    arXiv:1705.08741, go through the parts in turn instead). Parameters are named as in `nn.BatchNorm`.
    """

    groups: int
    dtype: Any
    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., C] to the same shape in `dtype`."""
        width = (x.shape[-1],)
        kept = (
            self.variable("batch_stats", "mean", lambda: jnp.zeros(width)),
            self.variable("batch_stats", "var", lambda: jnp.ones(width)),
        )
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width) if self.use_bias else jnp.zeros(width)
        if not self.groups:
            mean, variance = (variable.value for variable in kept)
            return _line(x, mean, lax.rsqrt(variance + _EPSILON), scale, bias).astype(self.dtype)
        if self.groups == 1:  # not as one part of one: reshaped maps are computed again by XLA for each of their uses
            y, *statistics = normalised(x, scale, bias)
        else:
            parts = x.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])
            y, *statistics = jax.vmap(normalised, (0, None, None))(parts, scale, bias)
            y, statistics = y.reshape(x.shape), [found.mean(axis=0) for found in statistics]
        for variable, found in zip(kept, statistics, strict=True):
            variable.value = _MOMENTUM * variable.value + (1 - _MOMENTUM) * found
        return y.astype(self.dtype)


@jax.custom_vjp
def normalised(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A batch normalised over all its axes but the last.

    Args:
        x: float [N, ..., C].
        scale: float32 [C].
        bias: float32 [C].

    Returns:
        float32 [N, ..., C], and its means and variances, float32 [C]; gradients of those are left out.
    """
    return _forward(x, scale, bias)[0]


Found = tuple[jax.Array, jax.Array, jax.Array]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[Found, tuple[jax.Array, ...]]:
    exact, axes = x.astype(jnp.float32), _outer(x)
    mean = exact.mean(axes)
    variance = jnp.maximum((exact * exact).mean(axes) - mean * mean, 0.0)
    factor = lax.rsqrt(variance + _EPSILON)
    return (_line(x, mean, factor, scale, bias), mean, variance), (x, scale, mean, factor)


def _backward(residuals: tuple[jax.Array, ...], gradients: Found) -> Found:
    """With z = (x - mean) factor, per channel: dscale = sum(g z), dx = scale factor (g - mean(g) - z mean(g z))."""
    x, scale, mean, factor = residuals
    gradient, exact, axes = gradients[0], x.astype(jnp.float32), _outer(x)
    of_bias = gradient.sum(axes)
    mean = lax.optimization_barrier(mean)
    of_scale = (gradient * (exact - _beside(x, mean))).sum(axes) * factor
    mean, of_scale = lax.optimization_barrier((mean, of_scale))
    rows = x.size // mean.size
    centred = exact - _beside(x, mean)
    found = gradient - _beside(x, of_bias / rows) - centred * _beside(x, factor * of_scale / rows)
    return (found * _beside(x, factor * scale)).astype(x.dtype), of_scale, of_bias


normalised.defvjp(_forward, _backward)


def _line(x: jax.Array, mean: jax.Array, factor: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    centred = x.astype(jnp.float32) - _beside(x, mean)
    return centred * _beside(x, factor * scale) + _beside(x, bias)


def _outer(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))


def _beside(x: jax.Array, statistics: jax.Array) -> jax.Array:
    """[C] as [1, ..., C]."""
    return jnp.expand_dims(statistics, _outer(x))
