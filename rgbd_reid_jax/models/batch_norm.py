"""Batch norm, with a choice of which rows share statistics."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
    if mode.groups > 1 and not running:
        return _GroupedBatchNorm(mode.groups, dtype, use_bias, name=name)
    return nn.BatchNorm(
        use_running_average=running, momentum=_MOMENTUM, epsilon=_EPSILON, dtype=dtype, use_bias=use_bias, name=name
    )


class _GroupedBatchNorm(nn.Module):
    """Batch norm in training with the statistics of each of `groups` equal parts of the batch.

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
        parts = x.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:]).astype(jnp.float32)
        axes = tuple(range(1, parts.ndim - 1))
        mean = parts.mean(axes)
        variance = jnp.maximum((parts * parts).mean(axes) - mean * mean, 0.0)
        for variable, found in zip(kept, (mean, variance), strict=True):
            variable.value = _MOMENTUM * variable.value + (1 - _MOMENTUM) * found.mean(axis=0)
        factor = jax.lax.rsqrt(variance + _EPSILON) * scale[None]
        y = (parts - jnp.expand_dims(mean, axes)) * jnp.expand_dims(factor, axes)
        return (y.reshape(x.shape) + bias.reshape((1,) * (x.ndim - 1) + width)).astype(self.dtype)
