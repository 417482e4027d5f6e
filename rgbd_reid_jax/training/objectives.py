"""What a stage minimises, as a function of the parameters and a batch.

An objective gets the state's parts and a batch and returns `(loss, (new batch statistics, figures))`;
`figures` are scalars to log. Objectives:

- identity: cross-entropy on one modality, the paper's softmax teacher (step I).
- distillation: distance to the teacher's embedding of the same instant (step II).
- one_stream: cross-entropy of one network on a batch that mixes both modalities, the paper's baseline.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.inputs import InputSpec, train_input
from rgbd_reid_jax.losses.distillation import DISTILLATION_LOSSES, mean_cosine
from rgbd_reid_jax.losses.identity import accuracy, identity_loss
from rgbd_reid_jax.models.network import Model

Batch = dict[str, jax.Array]
Figures = dict[str, jax.Array]
Objective = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[Any, Figures]]]


def identity_objective(
    model: Model, spec: InputSpec, modality: str, augmentation: Augmentation, *, smoothing: float = 0.0
) -> Objective:
    """Cross-entropy of the identity classifier on one modality; the batch holds its images and `identity`."""

    def objective(params: Any, batch_stats: Any, batch: Batch, key: jax.Array):
        augment_key, dropout_key = jax.random.split(key)
        images = train_input(spec, modality, batch, augment_key, augmentation)
        output, new_stats = model.train(params, batch_stats, images, dropout_key)
        loss = identity_loss(output.logits, batch["identity"], smoothing)
        return loss, (new_stats, {"accuracy": accuracy(output.logits, batch["identity"])})

    return objective


def one_stream_objective(
    model: Model, spec: InputSpec, augmentation: Augmentation, *, smoothing: float = 0.0
) -> Objective:
    """Cross-entropy of one network: the batch's even rows enter as RGB, its odd rows as depth."""

    def objective(params: Any, batch_stats: Any, batch: Batch, key: jax.Array):
        rgb_key, depth_key, dropout_key = jax.random.split(key, 3)
        even = {name: rows[0::2] for name, rows in batch.items()}
        odd = {name: rows[1::2] for name, rows in batch.items()}
        rgb = train_input(spec, "rgb", even, rgb_key, augmentation)
        depth = train_input(spec, "depth", odd, depth_key, augmentation)
        images = jnp.stack([rgb, depth], axis=1).reshape(-1, *rgb.shape[1:])  # rows in their old order
        output, new_stats = model.train(params, batch_stats, images, dropout_key)
        loss = identity_loss(output.logits, batch["identity"], smoothing)
        return loss, (new_stats, {"accuracy": accuracy(output.logits, batch["identity"])})

    return objective


def distillation_objective(
    model: Model,
    spec: InputSpec,
    modality: str,
    augmentation: Augmentation,
    *,
    loss: str,
    running: frozenset[str] = frozenset(),
) -> Objective:
    """Distance between the student's embedding, after dropout, and `target`.

    Args:
        model: the student, without classifier.
        spec: size and representation.
        modality: the student's.
        augmentation: of the student's image; the target saw the plain image.
        loss: a key of `DISTILLATION_LOSSES`.
        running: batch-norm layers that keep their running statistics.

    Returns:
        An objective whose batch holds the images, `target` float32 [B, D] and `identity` int32 [B].
    """
    distance = DISTILLATION_LOSSES[loss]

    def objective(params: Any, batch_stats: Any, batch: Batch, key: jax.Array):
        augment_key, dropout_key = jax.random.split(key)
        images = train_input(spec, modality, batch, augment_key, augmentation)
        output, new_stats = model.train(params, batch_stats, images, dropout_key, running)
        figures = {"cosine": mean_cosine(output.embedding, batch["target"])}
        return distance(output.dropped, batch["target"], batch["identity"]), (new_stats, figures)

    return objective
