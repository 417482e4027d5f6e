"""The re-identification network: backbone, pooling, neck, identity classifier.

Necks, from the pooled map to the embedding that is compared:

- paper: Dense(D, He fan-out) -> BatchNorm -> ReLU, then Dropout -> Dense(identities, N(0, 0.001)); the paper's softmax
  teacher (arXiv:1810.11641, step I).
- triplet: Dense(1024) -> BatchNorm -> ReLU -> Dense(D); the paper's triplet teacher.
- bnneck: Dense(D) (none where D is 0) -> BatchNorm without shift, then a classifier without bias. Metric losses see the
  input of the batch norm, `feature`, the classifier and the ranking its output (Luo et al., arXiv:1903.07071).

Two streams (`own_parts` > 0; Wu et al., ICCV 2017, doi:10.1109/ICCV.2017.575; Ye et al., arXiv:2001.04193): each
modality has the backbone's first parts for itself, the others and the neck are shared.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.modalities import BOTH, MODALITIES
from rgbd_reid_jax.models.batch_norm import NormMode, batch_norm
from rgbd_reid_jax.models.convolution import PREPARED, he_normal
from rgbd_reid_jax.models.resnet import PARTS, RESNETS, ResNet
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
    def __call__(
        self, x: jax.Array, mode: NormMode, modality: str = BOTH, begin: int = 0, end: int | None = None
    ) -> Output | jax.Array:
        """From the images, or from the map before part `begin`, to the output, or to the map before part `end`."""
        model = self.model
        if end is not None:
            return self._map(x, mode, modality, begin, end)
        feature = self._pooled(x, mode, modality, begin)
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

    def _pooled(self, x: jax.Array, mode: NormMode, modality: str, begin: int) -> jax.Array:
        """The backbone's feature of each image, float32 [B, C]."""
        model, dtype = self.model, jnp.dtype(self.model.compute_dtype)
        if model.backbone in VITS:
            token, x = ViT(VITS[model.backbone], dtype, model.remat, name="backbone")(x)
            if model.pool == "cls":
                return token.astype(jnp.float32)
        else:
            x = self._map(x, mode, modality, begin, PARTS)
        x = x.astype(jnp.float32)
        if model.pool == "gem":
            power = self.param("gem_power", nn.initializers.constant(3.0), ())
            return _generalised_mean(x, power)
        return x.mean(axis=(1, 2))

    def _map(self, x: jax.Array, mode: NormMode, modality: str, begin: int, end: int) -> jax.Array:
        """A residual network's parts from `begin` up to but without `end`."""
        model, own = self.model, self.model.own_parts

        def run(name: str, x: jax.Array, first: int, last: int) -> jax.Array:
            spec, dtype = RESNETS[model.backbone], jnp.dtype(model.compute_dtype)
            return ResNet(spec, model.last_stride, dtype, model.remat, name=name)(x, mode, first, last)

        if begin < own:
            if modality == BOTH:  # stacked rather than appended: rows stay on their devices
                halves = [
                    run(f"backbone_{name}", x[index::2], begin, min(own, end)) for index, name in enumerate(MODALITIES)
                ]
                x = jnp.stack(halves, axis=1).reshape(-1, *halves[0].shape[1:])
            else:
                x = run(f"backbone_{modality}", x, begin, min(own, end))
        return run("backbone", x, max(begin, own), end) if end > own else x


def _dealt(rows: jax.Array, count: int, together: int) -> jax.Array:
    """[B, ...] as [count, B / count, ...], dealt like cards, `together` rows at a time."""
    size, *shape = rows.shape
    dealt = rows.reshape(size // (count * together), count, together, *shape).swapaxes(0, 1)
    return dealt.reshape(count, size // count, *shape)


def _gathered(parts: jax.Array, together: int) -> jax.Array:
    """The inverse of `_dealt`."""
    count, size, *shape = parts.shape
    dealt = parts.reshape(count, size // together, together, *shape)
    return dealt.swapaxes(0, 1).reshape(count * size, *shape)


def _generalised_mean(x: jax.Array, power: jax.Array) -> jax.Array:
    """GeM pooling (Radenovic et al., arXiv:1711.02512): (mean of x^p)^(1/p) over [B, h, w, C], x clamped above 0."""
    return (jnp.maximum(x, 1e-6) ** power).mean(axis=(1, 2)) ** (1.0 / power)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _drawn(module: nn.Module, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """Fresh variables of a module whose images have a shape; compiled once for equal modules."""
    return module.init(key, jnp.zeros(shape), NormMode(train=False))


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
        own_parts: how many of a residual network's 5 parts (stem, four stages) each modality has for itself, from the
            first; 0 is one network for all it sees.
        micro_batches: into how many parts a batch is cut, one after the other.
        norm_groups: parts of a (micro-)batch that have batch-norm statistics of their own in training.

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
    own_parts: int = 0
    micro_batches: int = 1
    norm_groups: int = 1

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
        if self.own_parts and self.backbone in VITS:
            raise InputError(f"model.own_parts={self.own_parts}: {self.backbone} has no parts; choose a ResNet, or 0")
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
        shape = (2 if self.own_parts else 1, height, width, 3)
        variables = _drawn(self._module(), key, shape)
        return variables["params"], variables["batch_stats"]

    def embed(self, params: Tree, batch_stats: Tree, images: jax.Array, modality: str = BOTH) -> jax.Array:
        """Embeddings in evaluation mode.

        Args:
            params: parameters.
            batch_stats: running statistics.
            images: float32 [B, H, W, 3].
            modality: of the images; "both" where even rows are RGB and odd ones depth. Matters with `own_parts` alone.

        Returns:
            float32 [B, D].
        """
        return self._evaluated(params, batch_stats, images, modality).embedding

    def prepared(self, params: Tree, batch_stats: Tree, height: int, width: int, modality: str = BOTH) -> Tree:
        """What a forward pass computes from the parameters alone, for many batches of images of one size.

        All use it where `params[PREPARED]` holds it, on CPUs; accelerators do without. Kernels that train change: for
        `train` it may hold those that are frozen alone.
        """
        images = jnp.zeros((2 if modality == BOTH else 1, height, width, 3))
        variables, mode = {"params": params, "batch_stats": batch_stats}, NormMode(train=False)
        _, found = self._module().apply(variables, images, mode, modality, mutable=[PREPARED])
        return found.get(PREPARED) or {}

    def lower(
        self, params: Tree, batch_stats: Tree, images: jax.Array, modality: str, end: int, begin: int = 0
    ) -> jax.Array:
        """The map before part `end` in evaluation mode, [B, h, w, C], of images, or of the map before part `begin`."""
        return self._evaluated(params, batch_stats, images, modality, begin, end)

    def upper(self, params: Tree, batch_stats: Tree, maps: jax.Array, modality: str, begin: int) -> jax.Array:
        """Embeddings float32 [B, D] of maps that `lower` gave, in evaluation mode."""
        return self._evaluated(params, batch_stats, maps, modality, begin).embedding

    def _evaluated(
        self, params: Tree, batch_stats: Tree, x: jax.Array, modality: str, begin: int = 0, end: int | None = None
    ) -> Any:
        """Evaluation mode, with `micro_batches` of one part after the other: rows do not know each other there."""
        variables = {"params": params, "batch_stats": batch_stats, PREPARED: params.get(PREPARED, {})}

        def run(rows: jax.Array) -> Any:
            return self._module().apply(variables, rows, NormMode(train=False), modality, begin, end)

        if self.micro_batches == 1:
            return run(x)
        together = 2 if modality == BOTH else 1
        parts = jax.lax.map(run, _dealt(x, self.micro_batches, together))
        return jax.tree.map(lambda rows: _gathered(rows, together), parts)

    def train(
        self,
        params: Tree,
        batch_stats: Tree,
        images: jax.Array,
        key: jax.Array,
        running: frozenset[str] = frozenset(),
        modality: str = BOTH,
        parts: tuple[int, int | None] = (0, None),
    ) -> tuple[Any, Tree]:
        """A forward pass in training mode.

        With `micro_batches` above 1 the network sees one part of the batch after the other, and a backward pass
        computes each part again instead of keeping its activations: memory for one part, a third more computation.
        Losses still see the outputs of the whole batch, so mining is global; batch norms have the statistics of a part.

        Args:
            params: parameters.
            batch_stats: running statistics.
            images: float32 [B, H, W, 3], or the map before part `parts[0]`.
            key: PRNG key of the dropout.
            running: batch-norm layers that keep their running statistics.
            modality: as for `embed`.
            parts: (begin, end); an end of None goes on to the output.

        Returns:
            The `Output`, or the map before part `parts[1]`, and the new running statistics.
        """

        def run(stats: Tree, given: tuple[jax.Array, jax.Array]) -> tuple[Tree, Any]:
            x, dropout_key = given
            variables = {"params": params, "batch_stats": stats, PREPARED: params.get(PREPARED, {})}
            rngs = {"dropout": dropout_key}
            mode = NormMode(True, running, self.norm_groups)
            output, updates = self._module().apply(
                variables, x, mode, modality, *parts, rngs=rngs, mutable=["batch_stats"]
            )
            return updates["batch_stats"], output

        count = self.micro_batches
        if count == 1:
            batch_stats, output = run(batch_stats, (images, key))
            return output, batch_stats
        # Every `count`-th row, or pair of rows, goes into the same part: each device then has its share of each part.
        together = 2 if modality == BOTH else 1
        given = _dealt(images, count, together), jax.random.split(key, count)
        batch_stats, outputs = jax.lax.scan(jax.checkpoint(run), batch_stats, given)
        return jax.tree.map(lambda rows: _gathered(rows, together), outputs), batch_stats

    def classify(self, params: Tree, embedding: jax.Array) -> jax.Array:
        """Logits float32 [B, identities] of embeddings [B, D], by the classifier in `params`."""
        classifier = params["classifier"]
        logits = jnp.matmul(embedding, classifier["kernel"], precision=jax.lax.Precision.HIGHEST)
        return logits + classifier["bias"][None] if "bias" in classifier else logits

    def metric_feature(self, output: Output) -> jax.Array:
        """What metric losses compare: the embedding, but with "bnneck" the input of its batch norm."""
        return output.feature if self.neck == "bnneck" else output.embedding
