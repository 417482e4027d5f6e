"""A weighted sum of losses by name, whatever each of them looks at.

    loss = sum over the names of weight * LOSS(name)

Names, by what they look at (`Views`): rows with their identities ("identity" and `METRIC_LOSSES`); two embeddings of
the same instant (`DISTILLATION_LOSSES`, "logits"), all of the teacher's ("bank_similarity"), or its maps ("maps"); the
matrix of distances between both modalities (`PAIR_LOSSES`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rgbd_reid_jax.losses.distillation import (
    DISTILLATION_LOSSES,
    bank_similarity,
    logits_divergence,
    map_error,
    mean_cosine,
)
from rgbd_reid_jax.losses.gated import PAIR_LOSSES
from rgbd_reid_jax.losses.identity import accuracy, identity_loss
from rgbd_reid_jax.losses.metric import METRIC_LOSSES, NEED_BOTH_MODALITIES
from rgbd_reid_jax.losses.pairs import Figures

IDENTITY, LOGITS, BANK, MAPS = "identity", "logits", "bank_similarity", "maps"
TWIN_LOSSES = (*DISTILLATION_LOSSES, LOGITS)
LOSSES = (IDENTITY, *METRIC_LOSSES, *TWIN_LOSSES, BANK, MAPS, *PAIR_LOSSES)
NEED_CLASSIFIER = (IDENTITY, LOGITS)
ONE_MODALITY = (IDENTITY, *(name for name in METRIC_LOSSES if name not in NEED_BOTH_MODALITIES))
TWO_MODALITIES = (IDENTITY, *METRIC_LOSSES)
WITH_TEACHER = (*TWO_MODALITIES, *TWIN_LOSSES, BANK, MAPS)
WITH_PAIRS = (*TWO_MODALITIES, *TWIN_LOSSES, *PAIR_LOSSES)


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """What the losses can be told.

    Attributes:
        smoothing: label smoothing of "identity", in [0, 1).
        margin: of the triplet losses that have one, in units of distance (the paper's triplet teacher: 0.5).
        circle_margin: m of the circle loss.
        circle_scale: its scale.
        temperature: of "contrastive", "bank_similarity" and "pair_softmax".
        logits_temperature: of "logits".
    """

    smoothing: float = 0.0
    margin: float = 0.5
    circle_margin: float = 0.25
    circle_scale: float = 128.0
    temperature: float = 0.1
    logits_temperature: float = 4.0


@dataclasses.dataclass(frozen=True)
class Views:
    """What a step has computed of a batch; None where a stage has no such thing.

    Attributes:
        identity: int32 [B].
        feature: float32 [R, D], rows for metric losses: [B], or [2 B] with both modalities of each in turn.
        logits: float32 [R, C] of the same rows, or [B, C] where one modality alone is classified.
        both: whether rows hold two modalities in turn.
        twins: float32 [B, D] twice: what is taught, and its target, of the same instants.
        twin_logits: float32 [B, C] twice, of the same.
        symmetric: both of the twins learn, so that "logits" goes both ways.
        squared: float32 [B, B], squared distances between the RGB and the depth rows.
        bank: float32 [N, D], the targets of all training frames.
        maps: float [B, h, w, C] of some stages, twice: the student's, and the teacher's of the same view.
    """

    identity: jax.Array
    feature: jax.Array | None = None
    logits: jax.Array | None = None
    both: bool = False
    twins: tuple[jax.Array, jax.Array] | None = None
    twin_logits: tuple[jax.Array, jax.Array] | None = None
    symmetric: bool = False
    squared: jax.Array | None = None
    bank: jax.Array | None = None
    maps: tuple[Sequence[jax.Array], Sequence[jax.Array]] | None = None

    def classified(self) -> tuple[jax.Array, jax.Array]:
        """The logits and the identities of their rows."""
        assert self.logits is not None, "settings check that identity losses have a classifier"
        alone = len(self.logits) == len(self.identity)
        return self.logits, self.identity if alone else self.rows()[0]

    def rows(self) -> tuple[jax.Array, jax.Array | None]:
        """int32 [R] twice: identities of the rows, and their modality (None where they have one)."""
        if not self.both:
            return self.identity, None
        return jnp.repeat(self.identity, 2), jnp.tile(jnp.arange(2, dtype=jnp.int32), len(self.identity))


def used(weights: Mapping[str, float]) -> dict[str, float]:
    """The losses whose weight is not 0."""
    return {name: weight for name, weight in weights.items() if weight}


def weighted_loss(weights: Mapping[str, float], options: LossOptions, views: Views) -> tuple[jax.Array, Figures]:
    """The weighted sum, a float32 scalar, and figures to log.

    Args:
        weights: name of a loss to its weight; a weight of 0 leaves it out.
        options: of the losses.
        views: what they look at.

    Returns:
        The sum; and each loss by name if there are several, its own figures as "<loss>/<figure>", "accuracy" of the
        classifier, and "twin_cosine", between twins.
    """
    wanted, figures = used(weights), {}
    total = jnp.zeros(())
    for name, weight in wanted.items():
        value, own = _loss(name, options, views)
        total = total + weight * value
        figures |= {f"{name}/{figure}": number for figure, number in own.items()}
        if len(wanted) > 1:
            figures[name] = value
    if views.logits is not None and IDENTITY in wanted:
        figures["accuracy"] = accuracy(*views.classified())
    if views.twins is not None:
        figures["twin_cosine"] = mean_cosine(*views.twins)
    return total, figures


def _loss(name: str, options: LossOptions, views: Views) -> tuple[jax.Array, Figures]:
    if name == IDENTITY:
        return identity_loss(*views.classified(), options.smoothing), {}
    if name in METRIC_LOSSES:
        identity, modality = views.rows()
        return METRIC_LOSSES[name](views.feature, identity, modality, **_keywords(name, options))
    if name in PAIR_LOSSES:
        return PAIR_LOSSES[name](views.squared, views.identity, **_keywords(name, options))
    if name in DISTILLATION_LOSSES:
        assert views.twins is not None, "settings check it"
        return DISTILLATION_LOSSES[name](*views.twins, views.identity, **_keywords(name, options)), {}
    if name == BANK:
        assert views.twins is not None, "settings check it"
        assert views.bank is not None, "settings check it"
        return bank_similarity(*views.twins, views.bank, **_keywords(name, options)), {}
    if name == MAPS:
        assert views.maps is not None, "settings check it"
        return map_error(*views.maps), {}
    assert name == LOGITS, "settings check names"
    assert views.twin_logits is not None, "settings check it"
    own, other = views.twin_logits
    if not views.symmetric:
        return logits_divergence(own, other, options.logits_temperature), {}
    # Each learns from the other, which stays as it is meanwhile: arXiv:1706.00384, Algorithm 1.
    ways = [
        logits_divergence(one, jax.lax.stop_gradient(two), options.logits_temperature)
        for one, two in ((own, other), (other, own))
    ]
    return 0.5 * (ways[0] + ways[1]), {}


def _keywords(name: str, options: LossOptions) -> dict[str, Any]:
    """The options that a loss takes."""
    if name in ("triplet", "cross_modal_triplet", "hetero_centre_triplet", "pair_triplet"):
        return {"margin": options.margin}
    if name.endswith("circle"):
        return {"margin": options.circle_margin, "scale": options.circle_scale}
    if name in ("contrastive", BANK, "pair_softmax"):
        return {"temperature": options.temperature}
    return {}
