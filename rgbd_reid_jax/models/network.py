"""The re-identification network: backbone, pooling, embedding neck, identity classifier.

As in the paper's step I (arXiv:1810.11641): global average pool -> Dense(128, He fan-out) -> BatchNorm ->
ReLU -> Dropout -> Dense(C, N(0, 0.001)). The retrieval embedding is the ReLU's output.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.models.resnet import RESNETS, NormMode, ResNet, batch_norm, he_normal

Tree = Mapping[str, Any]


class Output(NamedTuple):
    """What the network gives for a batch.

    Attributes:
        feature: float32 [B, C], before the neck.
        embedding: float32 [B, D], after the neck.
        dropped: float32 [B, D], the embedding after dropout (the embedding itself outside training).
        logits: float32 [B, number of identities]; [B, 0] without a classifier.
    """

    feature: jax.Array
    embedding: jax.Array
    dropped: jax.Array
    logits: jax.Array


class _Network(nn.Module):
    backbone: str
    embedding_dim: int
    dropout: float
    num_identities: int | None
    last_stride: int | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mode: NormMode) -> Output:
        x = ResNet(RESNETS[self.backbone], self.last_stride, self.dtype, name="backbone")(x, mode)
        feature = x.astype(jnp.float32).mean(axis=(1, 2))
        neck = nn.Dense(self.embedding_dim, kernel_init=he_normal, name="embedding")(feature)
        embedding = nn.relu(batch_norm(self.path, "embedding_bn", mode, jnp.float32)(neck))
        dropped = nn.Dropout(self.dropout)(embedding, deterministic=not mode.train)
        logits = jnp.zeros((x.shape[0], 0))
        if self.num_identities is not None:
            init = nn.initializers.normal(0.001)
            logits = nn.Dense(self.num_identities, kernel_init=init, name="classifier")(dropped)
        return Output(feature, embedding, dropped, logits)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as two functions of pytrees, `init` and `apply`.

    Attributes:
        backbone: a key of `RESNETS`.
        embedding_dim: D, the embedding's size.
        dropout: rate on the embedding.
        num_identities: size of the classifier; None leaves it out.
        last_stride: stride of the last stage; None keeps the backbone's own.
        compute_dtype: "float32" or "bfloat16"; parameters, statistics and the neck stay float32.

    Raises:
        InputError: unknown backbone or dtype.
    """

    backbone: str
    embedding_dim: int = 128
    dropout: float = 0.5
    num_identities: int | None = None
    last_stride: int | None = None
    compute_dtype: str = "float32"

    def __post_init__(self):
        if self.backbone not in RESNETS:
            raise InputError(f"model.backbone={self.backbone!r} is unknown; choose one of: {', '.join(RESNETS)}")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise InputError(f"model.compute_dtype={self.compute_dtype!r} is unknown; choose float32 or bfloat16")

    def _module(self) -> _Network:
        return _Network(
            self.backbone,
            self.embedding_dim,
            self.dropout,
            self.num_identities,
            self.last_stride,
            jnp.dtype(self.compute_dtype),
        )

    def without_classifier(self) -> "Model":
        """The same network without its identity classifier."""
        return dataclasses.replace(self, num_identities=None)

    def init(self, key: jax.Array, height: int, width: int) -> tuple[Tree, Tree]:
        """Fresh parameters and batch statistics for inputs of `height` x `width`."""
        images = jnp.zeros((1, height, width, 3))
        variables = self._module().init(key, images, NormMode(train=False))
        return variables["params"], variables["batch_stats"]

    def embed(self, params: Tree, batch_stats: Tree, images: jax.Array) -> jax.Array:
        """Embeddings in evaluation mode: float32 [B, H, W, 3] to float32 [B, D]."""
        variables = {"params": params, "batch_stats": batch_stats}
        output: Any = self._module().apply(variables, images, NormMode(train=False))
        return output.embedding

    def train(
        self,
        params: Tree,
        batch_stats: Tree,
        images: jax.Array,
        key: jax.Array,
        running: frozenset[str] = frozenset(),
    ) -> tuple[Output, Tree]:
        """A forward pass in training mode.

        Args:
            params: parameters.
            batch_stats: running statistics.
            images: float32 [B, H, W, 3].
            key: PRNG key of the dropout.
            running: batch-norm layers that keep their running statistics.

        Returns:
            The output and the new running statistics.
        """
        variables = {"params": params, "batch_stats": batch_stats}
        output, updates = self._module().apply(
            variables, images, NormMode(True, running), rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return output, updates["batch_stats"]
