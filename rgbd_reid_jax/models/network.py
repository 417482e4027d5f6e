"""The re-identification network: backbone, pooling, neck, identity classifier.

Necks, from the pooled map to the embedding that is compared:

- paper: Dense(D, He fan-out) -> BatchNorm -> ReLU, then Dropout -> Dense(identities, N(0, 0.001)); the paper's softmax
  teacher (arXiv:1810.11641, step I).
- triplet: Dense(1024) -> BatchNorm -> ReLU -> Dense(D); the paper's triplet teacher.
- bnneck: Dense(D) (none where D is 0) -> BatchNorm without shift, then a classifier without bias. Metric losses see the
  input of the batch norm, `feature`, the classifier and the ranking its output (Luo et al., arXiv:1903.07071).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.models.resnet import RESNETS, NormMode, ResNet, batch_norm, he_normal
from rgbd_reid_jax.models.vit import VITS, ViT

Tree = Mapping[str, Any]
NECKS = ("paper", "triplet", "bnneck")
POOLS = ("average", "gem", "cls")
_TRIPLET_HIDDEN = 1024


class Output(NamedTuple):
    """What the network gives for a batch.

    Attributes:
        feature: float32 [B, C], before the neck (of "bnneck": before its batch norm).
        embedding: float32 [B, D], after the neck.
        dropped: float32 [B, D], the embedding after dropout (the embedding itself outside training).
        logits: float32 [B, number of identities]; [B, 0] without a classifier.
    """

    feature: jax.Array
    embedding: jax.Array
    dropped: jax.Array
    logits: jax.Array


class _Network(nn.Module):
    model: "Model"

    @nn.compact
    def __call__(self, x: jax.Array, mode: NormMode) -> Output:
        model = self.model
        feature = self._pooled(x, mode)
        if model.neck == "bnneck":
            if model.embedding_dim:
                feature = nn.Dense(model.embedding_dim, kernel_init=he_normal, name="embedding")(feature)
            embedding = batch_norm(self.path, "embedding_bn", mode, jnp.float32, use_bias=False)(feature)
        else:
            width = model.embedding_dim if model.neck == "paper" else _TRIPLET_HIDDEN
            neck = nn.Dense(width, kernel_init=he_normal, name="embedding")(feature)
            embedding = nn.relu(batch_norm(self.path, "embedding_bn", mode, jnp.float32)(neck))
            if model.neck == "triplet":
                embedding = nn.Dense(model.embedding_dim, kernel_init=he_normal, name="embedding_out")(embedding)
        dropped = nn.Dropout(model.dropout)(embedding, deterministic=not mode.train)
        logits = jnp.zeros((x.shape[0], 0))
        if model.num_identities is not None:
            init = nn.initializers.normal(0.001)
            bias = model.neck != "bnneck"
            logits = nn.Dense(model.num_identities, use_bias=bias, kernel_init=init, name="classifier")(dropped)
        return Output(feature, embedding, dropped, logits)

    def _pooled(self, x: jax.Array, mode: NormMode) -> jax.Array:
        """The backbone's feature of each image, float32 [B, C]."""
        model, dtype = self.model, jnp.dtype(self.model.compute_dtype)
        if model.backbone in VITS:
            token, x = ViT(VITS[model.backbone], dtype, model.remat, name="backbone")(x)
            if model.pool == "cls":
                return token.astype(jnp.float32)
        else:
            backbone = ResNet(RESNETS[model.backbone], model.last_stride, dtype, model.remat, name="backbone")
            x = backbone(x, mode)
        x = x.astype(jnp.float32)
        if model.pool == "gem":
            power = self.param("gem_power", nn.initializers.constant(3.0), ())
            return _generalised_mean(x, power)
        return x.mean(axis=(1, 2))


def _generalised_mean(x: jax.Array, power: jax.Array) -> jax.Array:
    """GeM pooling (Radenovic et al., arXiv:1711.02512): (mean of x^p)^(1/p) over [B, h, w, C], x clamped above 0."""
    return (jnp.maximum(x, 1e-6) ** power).mean(axis=(1, 2)) ** (1.0 / power)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as two functions of pytrees, `init` and `apply`.

    Attributes:
        backbone: a key of `RESNETS` or `VITS`.
        embedding_dim: D, the embedding's size; 0 with the neck "bnneck" keeps the backbone's own.
        dropout: rate on the embedding.
        num_identities: size of the classifier; None leaves it out.
        last_stride: stride of the last stage; None keeps the backbone's own.
        compute_dtype: "float32" or "bfloat16"; parameters, statistics, pooling and the neck stay float32.
        neck: one of `NECKS`.
        pool: one of `POOLS`; "cls" is the class token of a vision transformer.
        remat: recompute each block in the backward pass: less memory for about a third more computation.

    Raises:
        InputError: an unknown choice, or two that do not fit together.
    """

    backbone: str
    embedding_dim: int = 128
    dropout: float = 0.5
    num_identities: int | None = None
    last_stride: int | None = None
    compute_dtype: str = "float32"
    neck: str = "paper"
    pool: str = "average"
    remat: bool = False

    def __post_init__(self):
        if self.backbone not in RESNETS and self.backbone not in VITS:
            known = ", ".join([*RESNETS, *VITS])
            raise InputError(f"model.backbone={self.backbone!r} is unknown; choose one of: {known}")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise InputError(f"model.compute_dtype={self.compute_dtype!r} is unknown; choose float32 or bfloat16")
        for name, choices in (("neck", NECKS), ("pool", POOLS)):
            if getattr(self, name) not in choices:
                chosen = getattr(self, name)
                raise InputError(f"model.{name}={chosen!r} is unknown; choose one of: {', '.join(choices)}")
        if self.pool == "cls" and self.backbone not in VITS:
            raise InputError(f"model.pool='cls': {self.backbone} has no class token; choose average or gem")
        if not self.embedding_dim and self.neck != "bnneck":
            raise InputError(f"model.embedding_dim=0 needs model.neck='bnneck', not {self.neck!r}; give a size")

    def _module(self) -> _Network:
        return _Network(self)

    def patch_grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of patches of an input (vision transformers), else None.

        Raises:
            InputError: the patches do not tile it.
        """
        if self.backbone not in VITS:
            return None
        patch = VITS[self.backbone].patch
        if height % patch or width % patch:
            near = f"{round(height / patch) * patch}x{round(width / patch) * patch}"
            raise InputError(f"input {height}x{width}: {self.backbone} needs multiples of {patch}; say {near}")
        return height // patch, width // patch

    def without_classifier(self) -> "Model":
        """The same network without its identity classifier."""
        return dataclasses.replace(self, num_identities=None)

    def init(self, key: jax.Array, height: int, width: int) -> tuple[Tree, Tree]:
        """Fresh parameters and batch statistics for inputs of `height` x `width`.

        Raises:
            InputError: a vision transformer's patches do not tile the input.
        """
        self.patch_grid(height, width)
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
