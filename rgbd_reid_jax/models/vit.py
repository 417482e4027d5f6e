"""Vision transformers with DINOv2's arithmetic.

Dosovitskiy et al., arXiv:2010.11929; Oquab et al., "DINOv2", arXiv:2304.07193: pre-norm blocks, exact GELU, layer scale
on both branches, a class token, learned positions, a final layer norm. Parameter names follow the published ones
(`block3/attn_qkv`).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_normal = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """The shape of a vision transformer.

    Attributes:
        depth: blocks.
        width: channels of a token.
        heads: attention heads.
        patch: height and width of a patch in pixels.
    """

    depth: int
    width: int
    heads: int
    patch: int = 14


VITS = {
    "vit_small14": ViTSpec(12, 384, 6),
    "vit_base14": ViTSpec(12, 768, 12),
}


def _norm(name: str, dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


class _Block(nn.Module):
    """x + scale1 * attention(norm1(x)), then x + scale2 * MLP(norm2(x))."""

    spec: ViTSpec
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, heads = self.spec.width, self.spec.heads

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=_normal, dtype=self.dtype, name=name)

        def scaled(branch: jax.Array, name: str) -> jax.Array:
            gamma = self.param(name, nn.initializers.constant(1e-5), (width,))
            return branch * gamma.astype(branch.dtype)[None, None]

        y = _norm("norm1", self.dtype)(x)
        qkv = dense(3 * width, "attn_qkv")(y).reshape(*y.shape[:2], 3, heads, width // heads)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        x = x + scaled(dense(width, "attn_proj")(y.reshape(x.shape)), "ls1")
        y = nn.gelu(dense(4 * width, "mlp_fc1")(_norm("norm2", self.dtype)(x)), approximate=False)
        return x + scaled(dense(width, "mlp_fc2")(y), "ls2")


class ViT(nn.Module):
    """Images to a class token and a map of patch tokens.

    Attributes:
        spec: its shape.
        dtype: of the computation; parameters stay float32.
        remat: recompute each block in the backward pass instead of keeping its activations.
    """

    spec: ViTSpec
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [B, H, W, 3] to [B, C] and [B, H / patch, W / patch, C]; H and W are multiples of the patch."""
        spec, size = self.spec, (self.spec.patch, self.spec.patch)
        x = nn.Conv(spec.width, size, size, padding="VALID", dtype=self.dtype, name="patch_embed")(x.astype(self.dtype))
        grid = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, spec.width)
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, spec.width)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, spec.width)), x], axis=1)
        x = x + self.param("pos_embed", _normal, (1, x.shape[1], spec.width)).astype(self.dtype)
        block = nn.remat(_Block) if self.remat else _Block
        for index in range(spec.depth):
            x = block(spec, self.dtype, name=f"block{index}")(x)
        x = _norm("norm", self.dtype)(x)
        return x[:, 0], x[:, 1:].reshape(x.shape[0], *grid, spec.width)
