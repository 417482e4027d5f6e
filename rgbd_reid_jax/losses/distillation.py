"""Losses between a student's embedding and its teacher's for the same instant.

The paper's (arXiv:1810.11641, step II) is the squared error summed over batch and dimensions. The others are options:

- the mean makes the learning rate independent of batch and dimension; normalised forms and the cosine compare
  directions, as cosine retrieval does;
- relational distances and angles (RKD, Park et al., arXiv:1904.05068) compare the shape of the batch. They leave open
  where it lies and how it is turned, so a loss on single rows has to stand beside them for retrieval across the two;
- contrastive (InfoNCE, arXiv:1807.03748; CRD, arXiv:1910.10699): of all targets, a student's own has to be the nearest
  in direction, so what all embeddings have in common no longer counts as agreement.

- hints (`map_error`, FitNets, Romero et al., arXiv:1412.6550) compare maps inside the networks, place by place, where
  the others compare one embedding of the whole image: many more numbers to learn from per image.

Those of embeddings have one signature, `DISTILLATION_LOSSES[name](student, target, identity)`: float [B, D] twice,
int32 [B] or None, and a float32 scalar; only `contrastive` looks at identities. Batches are global, as `pairs` says.
`logits_divergence` and `map_error` are apart: they compare classifiers and maps.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from rgbd_reid_jax.losses.pairs import EXACT, LARGEST, distances, l2_normalise, same

DistillationLoss = Callable[..., jax.Array]

_COLLAPSED = 1e-6  # mean distance below which a batch has no shape to compare; bounds the gradient


def sum_squared(student: jax.Array, target: jax.Array, identity: jax.Array | None = None) -> jax.Array:
    """Sum over batch and dimensions of (student - target)^2, the paper's loss."""
    return jnp.sum(_difference(student, target) ** 2)


def mean_squared(student: jax.Array, target: jax.Array, identity: jax.Array | None = None) -> jax.Array:
    """Mean over batch and dimensions of (student - target)^2."""
    return jnp.mean(_difference(student, target) ** 2)


def normalised_squared(student: jax.Array, target: jax.Array, identity: jax.Array | None = None) -> jax.Array:
    """Mean over the batch of |s/|s| - t/|t||^2 = 2 - 2 cos(s, t), in [0, 4]."""
    return jnp.mean(jnp.sum((_unit(student) - _unit(target)) ** 2, axis=1))


def cosine(student: jax.Array, target: jax.Array, identity: jax.Array | None = None) -> jax.Array:
    """Mean over the batch of 1 - cos(s, t), in [0, 2]; a zero row has cosine 0 with all."""
    return 1.0 - mean_cosine(student, target)


def relational_distance(student: jax.Array, target: jax.Array, identity: jax.Array | None = None) -> jax.Array:
    """Huber loss (delta 1) between the distances of all pairs, each side's divided by its mean distance.

    Mean over the pairs of different rows; 0 for a single row, which has none.
    """
    pairs = _distinct(len(student))
    return _mean_huber(_relative_distances(student, pairs), _relative_distances(target, pairs), pairs)


def relational_angle(student: jax.Array, target: jax.Array, identity: jax.Array | None = None) -> jax.Array:
    """Huber loss (delta 1) between the cosines of the angles at row j between rows i and k.

    Mean over the triples of different rows; 0 if there are fewer than three. Takes B^2 D memory and B^3 D operations.
    """
    pairs = _distinct(len(student))
    triples = pairs[:, :, None] & pairs[:, None, :] & pairs[None]
    return _mean_huber(_angles(student), _angles(target), triples)


def contrastive(
    student: jax.Array, target: jax.Array, identity: jax.Array | None = None, *, temperature: float = 0.1
) -> jax.Array:
    """InfoNCE between students and targets, in both directions.

        mean over i of -log(exp(s_ii) / (exp(s_ii) + sum over j of exp(s_ij))),  s_ij = cos(student_i, target_j) / T

    and the same with i and j exchanged, averaged. j runs over the rows of other people: another frame of one's own
    person is no negative.

    Args:
        student: float [B, D].
        target: float [B, D].
        identity: int32 [B]; None counts all other rows as negatives.
        temperature: T > 0.

    Returns:
        float32 scalar, nats; 0 in a batch of one person.
    """
    similarity = jnp.matmul(_unit(student), _unit(target).T, precision=EXACT) / temperature
    others = _distinct(len(student)) if identity is None else ~same(identity)
    logits = jnp.where(others | jnp.eye(len(student), dtype=bool), similarity, -LARGEST)
    forward, backward = (-jnp.diagonal(jax.nn.log_softmax(logits, axis=axis)).mean() for axis in (1, 0))
    return 0.5 * (forward + backward)


def bank_similarity(student: jax.Array, target: jax.Array, bank: jax.Array, *, temperature: float = 0.1) -> jax.Array:
    """The student ranks a bank of teacher's embeddings as the teacher does.

        mean over i of KL(softmax over j of cos(target_i, bank_j) / T | softmax over j of cos(student_i, bank_j) / T)

    As SEED (Fang et al., arXiv:2101.04731) with a queue: what retrieval needs is not where an embedding lies, but which
    gallery items lie near it.
    Deviation: the bank holds all training targets, not a queue of recent ones, and both sides have one temperature.

    Args:
        student: float [B, D].
        target: float [B, D].
        bank: float [N, D].
        temperature: T > 0.

    Returns:
        float32 scalar, nats.
    """
    known = _unit(bank).T
    log_student, log_target = (
        jax.nn.log_softmax(jnp.matmul(_unit(one), known, precision=EXACT) / temperature, axis=1)
        for one in (student, target)
    )
    return jnp.mean(jnp.sum(jnp.exp(log_target) * (log_target - log_student), axis=1))


DISTILLATION_LOSSES: Mapping[str, DistillationLoss] = {
    "sum_squared": sum_squared,
    "mean_squared": mean_squared,
    "normalised_squared": normalised_squared,
    "cosine": cosine,
    "relational_distance": relational_distance,
    "relational_angle": relational_angle,
    "contrastive": contrastive,
}


def map_error(student: Sequence[jax.Array], target: Sequence[jax.Array]) -> jax.Array:
    """Squared error between the directions of two maps' channels: |s/|s| - t/|t||^2 = 2 - 2 cos(s, t), in [0, 4].

    Mean over maps, images and places. FitNets' hints (Romero et al., arXiv:1412.6550); no regressor stands between, as
    the student has the teacher's layers.
    Deviation: of directions, so that each place counts alike, and maps of any stage and network do.

    Args:
        student: float [B, h, w, C] each, of one view of the scene.
        target: the teacher's, of the same view in its own modality.

    Returns:
        float32 scalar; a place without any activity counts 1 where that is so in one map, 0 where in both.
    """
    errors = [
        jnp.mean(jnp.sum((_unit(one) - _unit(two)) ** 2, axis=-1)) for one, two in zip(student, target, strict=True)
    ]
    return sum(errors, jnp.zeros(())) / len(errors)


def logits_divergence(student: jax.Array, target: jax.Array, temperature: float = 4.0) -> jax.Array:
    """T^2 KL(softmax(target / T) | softmax(student / T)), mean over the batch (Hinton et al., arXiv:1503.02531).

    T^2 keeps the size of the gradient about the same for all temperatures.

    Args:
        student: float [B, C], the student's logits.
        target: float [B, C], the teacher's, over the same identities.
        temperature: T > 0.

    Returns:
        float32 scalar, nats.
    """
    log_student, log_target = (
        jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=1) for logits in (student, target)
    )
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_target) * (log_target - log_student), axis=1))


def mean_cosine(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean cosine between the two embeddings of each row, a scale-free figure to watch."""
    return jnp.mean(jnp.sum(_unit(student) * _unit(teacher), axis=1))


def _difference(one: jax.Array, other: jax.Array) -> jax.Array:
    return one.astype(jnp.float32) - other.astype(jnp.float32)


def _unit(embedding: jax.Array) -> jax.Array:
    return l2_normalise(embedding.astype(jnp.float32))


def _distinct(count: int) -> jax.Array:
    """bool [B, B]: pairs of different rows."""
    return ~jnp.eye(count, dtype=bool)


def _relative_distances(embedding: jax.Array, pairs: jax.Array) -> jax.Array:
    """float32 [B, B]: distances divided by their mean over `pairs`."""
    found = distances(embedding)
    return found / jnp.maximum(found.sum() / jnp.maximum(pairs.sum(), 1), _COLLAPSED)


def _angles(embedding: jax.Array) -> jax.Array:
    """float32 [B, B, B]: at [j, i, k] the cosine of the angle at row j between rows i and k."""
    embedding = embedding.astype(jnp.float32)
    direction = l2_normalise(embedding[None] - embedding[:, None])  # from j to i
    return jnp.einsum("jid,jkd->jik", direction, direction, precision=EXACT)


def _mean_huber(student: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Huber loss with delta 1, mean over the mask."""
    return jnp.sum(jnp.where(mask, optax.huber_loss(student, target), 0.0)) / jnp.maximum(mask.sum(), 1)
