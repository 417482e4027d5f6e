"""Two encoders trained together, with a cross-modal gate between them: attention and mutual distillation.

The paper (CVIU 2022, doi:10.1016/j.cviu.2021.103352) says of its attention that "the gating signal from one modality
can dynamically activate the most discriminant CNN filters of the other modality"; layer, formula and test procedure are
in no source that we can read. So these are our readings, and two controls:

- none      no gate: what the joint training does by itself.
- self      an encoder gates its own embedding, e * a(e): as many weights, nothing of the other modality.
- pairwise  for a query q and a gallery item g of the other modality, q * a(g) is compared with g * b(q).
- middle    after a stage of the residual network, one modality's map chooses the filters of the other: the map times a
            gate of the other map's mean, then the remaining layers (after gated Siamese networks, Varior et al.,
            arXiv:1607.08378, and pose-guided gated fusion, Bhuiyan et al., WACV 2020). A pair's distance needs both
            images, so it orders the nearest k of a query alone.

A gate is 2 sigmoid(W norm(x) + w) of the layer-normalised summary x, W of low rank if so configured. It starts as 1
everywhere: an untrained gate changes nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.modalities import MODALITIES
from rgbd_reid_jax.models.convolution import he_normal
from rgbd_reid_jax.models.network import Model, Tree
from rgbd_reid_jax.models.resnet import RESNETS

GATES = ("none", "self", "pairwise", "middle")


@dataclasses.dataclass(frozen=True)
class GateSpec:
    """A gate.

    Attributes:
        kind: one of `GATES`.
        rank: of its matrix; 0 is a full one.
        dropout: rate on the normalised summary.
        after: of "middle": the residual stage (1 .. 3) whose map is gated.
    """

    kind: str = "none"
    rank: int = 16
    dropout: float = 0.0
    after: int = 2

    @property
    def part(self) -> int:
        """The part of the residual network that sees the gated map first."""
        return self.after + 1


class _Gate(nn.Module):
    width: int
    rank: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.LayerNorm(use_bias=False, use_scale=False, name="norm")(x.astype(jnp.float32))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        if self.rank:
            x = nn.Dense(self.rank, use_bias=False, kernel_init=he_normal, name="reduce")(x)
        return 2.0 * nn.sigmoid(nn.Dense(self.width, kernel_init=nn.initializers.zeros, name="expand")(x))


@dataclasses.dataclass(frozen=True)
class Gate:
    """A gate as functions of pytrees.

    Attributes:
        spec: what it is.
        width: channels of its summary and of what it gates.
    """

    spec: GateSpec
    width: int

    def _module(self) -> _Gate:
        return _Gate(self.width, self.spec.rank, self.spec.dropout)

    def init(self, key: jax.Array) -> Tree:
        """Fresh parameters."""
        return self._module().init(key, jnp.zeros((1, self.width)), False)["params"]

    def __call__(self, params: Tree, summary: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """float [B, C] to the gate float32 [B, C] in (0, 2); with a key, in training mode."""
        rngs = {} if key is None else {"dropout": key}
        found: Any = self._module().apply({"params": params}, summary, key is not None, rngs=rngs)
        return found


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two encoders of one shape, a gate of each, and an identity classifier for both.

    Attributes:
        network: either encoder, without classifier.
        gate: the gate's kind and size.
        num_identities: size of the classifier; None leaves it out.

    Raises:
        InputError: the network has no such stage to gate, or parts of its own.
    """

    network: Model
    gate: GateSpec
    num_identities: int | None = None

    def __post_init__(self):
        if self.network.own_parts:
            raise InputError("model.own_parts must be 0 in stage pair, whose two networks share nothing")
        if self.gate.kind == "middle" and self.network.backbone not in RESNETS:
            raise InputError(f"a gate of kind 'middle' needs a ResNet, not {self.network.backbone}; choose pairwise")

    def gate_of(self) -> Gate | None:
        """The gate as functions; None without one."""
        return None if self.gate.kind == "none" else Gate(self.gate, gate_width(self.network, self.gate))

    def init(self, encoders: Mapping[str, tuple[Tree, Tree]], key: jax.Array) -> tuple[Tree, Tree]:
        """Parameters {"rgb", "depth", "gate_rgb", "gate_depth", "classifier"} and statistics {"rgb", "depth"}.

        Args:
            encoders: (parameters, statistics) by modality from which the encoders start. A classifier among those of
                depth, or else of RGB, becomes the one of both.
            key: PRNG key of what is new.
        """
        params: dict[str, Any] = {}
        for name in MODALITIES:
            params[name] = {path: leaf for path, leaf in encoders[name][0].items() if path != "classifier"}
        gate = self.gate_of()
        if gate is not None:
            for index, name in enumerate(MODALITIES):
                params[f"gate_{name}"] = gate.init(jax.random.fold_in(key, index))
        if self.num_identities is not None:
            known = [encoders[name][0]["classifier"] for name in ("depth", "rgb") if "classifier" in encoders[name][0]]
            params["classifier"] = known[0] if known else self._classifier(jax.random.fold_in(key, 2))
        return params, {name: encoders[name][1] for name in MODALITIES}

    def _classifier(self, key: jax.Array) -> Tree:
        assert self.num_identities is not None, "asked for with a classifier alone"
        size = (embedding_width(self.network), self.num_identities)
        kernel = nn.initializers.normal(0.001)(key, size)
        return {"kernel": kernel} if self.network.neck == "bnneck" else {"kernel": kernel, "bias": jnp.zeros(size[1])}


def embedding_width(model: Model) -> int:
    """D, the size of a network's embedding."""
    if model.embedding_dim:
        return model.embedding_dim
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), 56, 56))  # 56 is a multiple of every patch
    return shapes[0]["embedding_bn"]["scale"].shape[0]


def gate_width(model: Model, spec: GateSpec) -> int:
    """Channels that a gate sees and gates: those of the embedding, or of the map after stage `spec.after`.

    Raises:
        InputError: the network has no such stage.
    """
    if spec.kind != "middle":
        return embedding_width(model)
    resnet = RESNETS[model.backbone]
    if not 1 <= spec.after < len(resnet.widths):
        raise InputError(
            f"gate.after={spec.after}: {model.backbone} has stages 1 .. {len(resnet.widths)}, "
            f"and one must follow; choose 1 .. {len(resnet.widths) - 1}"
        )
    return resnet.widths[spec.after - 1] * (4 if resnet.bottleneck else 1)
