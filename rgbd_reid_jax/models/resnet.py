"""Residual networks: torchvision's ResNets, and a small one for CPUs.

He, Zhang, Ren, Sun: "Deep Residual Learning", arXiv:1512.03385; the stride sits on the 3x3 convolution of
a bottleneck (ResNet v1.5), as in torchvision. Parameter names follow torchvision's (`layer3_0/conv2`), so
that freeze tables and weight tables read like the paper's.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgbd_reid_jax.models.batch_norm import NormMode, batch_norm
from rgbd_reid_jax.models.convolution import Conv
from rgbd_reid_jax.models.max_pool import max_pool


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """The shape of a residual network.

    Attributes:
        blocks: residual blocks per stage.
        widths: channels per stage, before a bottleneck's expansion by 4.
        bottleneck: 1x1-3x3-1x1 blocks instead of 3x3-3x3.
        stem_kernel: size of the first convolution, whose stride is 2.
        stem_width: its channels.
        stem_pool: 3x3 max pooling with stride 2 after it.
        strides: stride of each stage's first block.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool
    stem_kernel: int = 7
    stem_width: int = 64
    stem_pool: bool = True
    strides: tuple[int, ...] = (1, 2, 2, 2)


_WIDE = (64, 128, 256, 512)
RESNETS = {
    "tiny": ResNetSpec((1, 1), (4, 8), False, 3, 4, False, (1, 1)),  # to try a run out: it compiles in seconds
    # 64x32 input gives an 8x4 map at the end.
    "small": ResNetSpec((1, 1, 1, 1), (32, 64, 128, 128), False, 5, 32, False, (1, 2, 2, 1)),
    "resnet18": ResNetSpec((2, 2, 2, 2), _WIDE, False),
    "resnet34": ResNetSpec((3, 4, 6, 3), _WIDE, False),
    "resnet50": ResNetSpec((3, 4, 6, 3), _WIDE, True),
    "resnet101": ResNetSpec((3, 4, 23, 3), _WIDE, True),
}


@jax.custom_vjp
def rectified_sum(x: jax.Array, y: jax.Array) -> jax.Array:
    """`nn.relu(x + y)` of finite maps, in a form that XLA keeps.

    A relu is one more operation on one map, cheap enough for XLA on CPUs to compute a residual block's output again,
    from those of all blocks before it, wherever it is used. A sum of two maps is not; neither is a gradient that asks
    the output, which is kept anyway, where it was positive.
    """
    return jnp.maximum(x, -y) + y


def _forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    z = rectified_sum(x, y)
    return z, z


def _backward(z: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    passed = jnp.where(z > 0, gradient, 0)
    return passed, passed


rectified_sum.defvjp(_forward, _backward)


class _Block(nn.Module):
    """One residual block."""

    width: int
    stride: int
    bottleneck: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mode: NormMode) -> jax.Array:
        out = self.width * (4 if self.bottleneck else 1)
        kernels = (1, 3, 1) if self.bottleneck else (3, 3)
        strided = 1 if self.bottleneck else 0
        y = x
        for index, kernel in enumerate(kernels):
            last = index == len(kernels) - 1
            stride = self.stride if index == strided else 1
            y = Conv(out if last else self.width, kernel, stride, self.dtype, name=f"conv{index + 1}")(y)
            y = batch_norm(self.path, f"bn{index + 1}", mode, self.dtype)(y)
            y = y if last else nn.relu(y)
        if x.shape[-1] != out or self.stride != 1:
            x = Conv(out, 1, self.stride, self.dtype, name="downsample_conv")(x)
            x = batch_norm(self.path, "downsample_bn", mode, self.dtype)(x)
        return rectified_sum(x, y)


PARTS = 5
"""A residual network's parts, in order: the stem and four stages of blocks."""


class ResNet(nn.Module):
    """Images to a feature map, or between the maps of two of its parts.

    Attributes:
        spec: its shape.
        last_stride: stride of the last stage, 2 as published or 1 for a finer map; None keeps the spec's.
        dtype: of the computation; parameters stay float32.
        remat: recompute each block in the backward pass instead of keeping its activations.
    """

    spec: ResNetSpec
    last_stride: int | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mode: NormMode, begin: int = 0, end: int = PARTS) -> jax.Array:
        """The parts from `begin` up to but without `end`: float32 [B, H, W, 3], or the map before, to [B, h, w, C]."""
        spec = self.spec
        x = x.astype(self.dtype)
        if begin == 0 < end:
            x = Conv(spec.stem_width, spec.stem_kernel, 2, self.dtype, name="conv1")(x)
            x = nn.relu(batch_norm(self.path, "bn1", mode, self.dtype)(x))
            if spec.stem_pool:
                x = max_pool(x)
        kind: Any = nn.remat(_Block, static_argnums=(2,)) if self.remat else _Block
        for stage in range(max(begin, 1) - 1, min(end - 1, len(spec.blocks))):
            count, width, stride = spec.blocks[stage], spec.widths[stage], spec.strides[stage]
            if self.last_stride is not None and stage == len(spec.blocks) - 1:
                stride = self.last_stride
            for index in range(count):
                block = kind(
                    width, stride if index == 0 else 1, spec.bottleneck, self.dtype, name=f"layer{stage + 1}_{index}"
                )
                x = block(x, mode)
        return x
