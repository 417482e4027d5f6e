"""The losses on distances between people, by name and with one signature.

    loss, figures = METRIC_LOSSES[name](feature, identity, modality, **options)

`feature` is float [B, D], `identity` int32 [B], `modality` int32 [B], a number for each modality, or None in batches of
one modality. `loss` is a float32 scalar, a mean over anchors or people, and `figures` are float32 scalars to log.
Options are the function's keywords, `margin` for instance. The losses named `cross_modal_...` take positives and
negatives of another modality than the anchor alone; the same without it mixes all rows.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax

from rgbd_reid_jax.losses.centre import hetero_centre, hetero_centre_triplet
from rgbd_reid_jax.losses.circle import circle
from rgbd_reid_jax.losses.pairs import Figures
from rgbd_reid_jax.losses.triplet import batch_hard_triplet, weighted_triplet

MetricLoss = Callable[..., tuple[jax.Array, Figures]]

_ANY_BATCH: Mapping[str, MetricLoss] = {
    "triplet": batch_hard_triplet,
    "soft_triplet": partial(batch_hard_triplet, margin=None),
    "weighted_triplet": weighted_triplet,
    "circle": circle,
}
_BOTH_MODALITIES: Mapping[str, MetricLoss] = {
    **{f"cross_modal_{name}": partial(loss, cross_modal=True) for name, loss in _ANY_BATCH.items()},
    "hetero_centre": hetero_centre,
    "hetero_centre_triplet": hetero_centre_triplet,
}
METRIC_LOSSES: Mapping[str, MetricLoss] = {**_ANY_BATCH, **_BOTH_MODALITIES}
NEED_BOTH_MODALITIES = frozenset(_BOTH_MODALITIES)
