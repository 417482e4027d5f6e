"""Losses and their gradients against PyTorch's own operations and its automatic differentiation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.losses.distillation import DISTILLATION_LOSSES, logits_divergence
from rgbd_reid_jax.losses.identity import identity_loss
from rgbd_reid_jax.losses.metric import METRIC_LOSSES

torch = pytest.importorskip("torch")
functional = torch.nn.functional

_FRAMES = 4
_IDENTITY = np.repeat(np.array([6, 1, 9, 4], np.int32), _FRAMES)  # 4 people x 4 frames, RGB and depth in turn
_MODALITY = np.tile(np.array([0, 1], np.int32), 8)
_LABELS = torch.from_numpy(_IDENTITY).long()
_SIDES = torch.from_numpy(_MODALITY)


@pytest.fixture(scope="module")
def pair():
    return np.random.default_rng(8).normal(0, 1, (2, 16, 6)).astype(np.float32)


def check(ours, theirs, rows):
    """Value and gradient of two functions of float32 [B, D]; PyTorch works in float64."""
    value, gradient = jax.jit(jax.value_and_grad(ours))(jnp.asarray(rows))
    leaf = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    expected = theirs(leaf)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-4)
    slopes = leaf.grad.numpy()
    np.testing.assert_allclose(np.asarray(gradient), slopes, rtol=1e-3, atol=1e-4 * np.abs(slopes).max())


def masks(cross_modal):
    person, alike = _LABELS[:, None] == _LABELS, _SIDES[:, None] == _SIDES
    if cross_modal:
        return person & ~alike, ~person & ~alike
    return person & ~torch.eye(16, dtype=torch.bool), ~person


def of_each(matrix, mask):
    return matrix[mask].reshape(16, -1)  # in these batches all anchors have equally many


def spread(feature):
    return (feature[:, None] - feature[None] + 1e-12).norm(dim=2)


def torch_triplet(feature, cross_modal, margin):
    positive, negative = masks(cross_modal)
    far = of_each(spread(feature), positive).amax(dim=1)
    near = of_each(spread(feature), negative).amin(dim=1)
    if margin is None:
        return functional.soft_margin_loss(near - far, torch.ones(16))
    return functional.margin_ranking_loss(near, far, torch.ones(16), margin=margin)


def torch_weighted(feature, cross_modal):
    positive, negative = (of_each(spread(feature), mask) for mask in masks(cross_modal))
    far = (positive.softmax(dim=1) * positive).sum(dim=1)
    near = ((-negative).softmax(dim=1) * negative).sum(dim=1)
    return functional.soft_margin_loss(near - far, torch.ones(16))


def torch_circle(feature, cross_modal, margin=0.25, scale=128.0):
    unit = functional.normalize(feature)
    positive, negative = (of_each(unit @ unit.T, mask) for mask in masks(cross_modal))
    pull = -scale * (1 + margin - positive).clamp(min=0).detach() * (positive - 1 + margin)
    push = scale * (negative + margin).clamp(min=0).detach() * (negative - margin)
    return functional.softplus(pull.logsumexp(dim=1) + push.logsumexp(dim=1)).mean()


def centres(feature):
    """[people, modalities, D]: frames alternate."""
    return feature.reshape(4, _FRAMES // 2, 2, -1).mean(dim=1)


def torch_centre_triplet(feature, margin=0.3):
    rows = centres(feature).reshape(8, -1)
    distance, person = spread(rows), torch.arange(8) // 2
    alike = person[:, None] == person
    far = torch.where(alike, distance, 0).amax(dim=1)
    near = torch.where(alike, torch.inf, distance).amin(dim=1)
    return functional.margin_ranking_loss(near, far, torch.ones(8), margin=margin)


def torch_hetero_centre(feature):
    rgb, depth = centres(feature).unbind(dim=1)
    return ((rgb - depth) ** 2).sum(dim=1).mean()


METRIC = {
    "triplet": functools.partial(torch_triplet, cross_modal=False, margin=0.5),
    "soft_triplet": functools.partial(torch_triplet, cross_modal=False, margin=None),
    "weighted_triplet": functools.partial(torch_weighted, cross_modal=False),
    "circle": functools.partial(torch_circle, cross_modal=False),
    "cross_modal_triplet": functools.partial(torch_triplet, cross_modal=True, margin=0.5),
    "cross_modal_soft_triplet": functools.partial(torch_triplet, cross_modal=True, margin=None),
    "cross_modal_weighted_triplet": functools.partial(torch_weighted, cross_modal=True),
    "cross_modal_circle": functools.partial(torch_circle, cross_modal=True),
    "hetero_centre": torch_hetero_centre,
    "hetero_centre_triplet": torch_centre_triplet,
}


@pytest.mark.parametrize("name", sorted(METRIC_LOSSES))
def test_metric_losses(name, pair):
    def ours(feature):
        return METRIC_LOSSES[name](feature, jnp.asarray(_IDENTITY), jnp.asarray(_MODALITY))[0]

    check(ours, METRIC[name], pair[0])


def torch_distances(student, target):
    off = ~torch.eye(16, dtype=torch.bool)
    student, target = (spread(one)[off] for one in (student, target))
    return functional.smooth_l1_loss(student / student.mean(), target / target.mean())


def torch_angles(student, target):
    def cosines(rows):
        edges = functional.normalize(rows[None] - rows[:, None], dim=2)
        return edges @ edges.transpose(1, 2)

    # All 16^3 triples, of which those with a repeated row differ by 0.
    return functional.smooth_l1_loss(cosines(student), cosines(target), reduction="sum") / (16 * 15 * 14)


def torch_contrastive(student, target):
    scores = functional.normalize(student) @ functional.normalize(target).T / 0.1
    hidden = (_LABELS[:, None] == _LABELS) & ~torch.eye(16, dtype=torch.bool)
    scores = scores.masked_fill(hidden, -torch.inf)
    own = torch.arange(16)
    return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2


DISTILLATION = {
    "sum_squared": functools.partial(functional.mse_loss, reduction="sum"),
    "mean_squared": functional.mse_loss,
    "normalised_squared": lambda s, t: 2 - 2 * functional.cosine_similarity(s, t).mean(),
    "cosine": lambda s, t: functional.cosine_embedding_loss(s, t, torch.ones(16)),
    "relational_distance": torch_distances,
    "relational_angle": torch_angles,
    "contrastive": torch_contrastive,
}


@pytest.mark.parametrize("name", sorted(DISTILLATION_LOSSES))
def test_distillation_losses(name, pair):
    target = torch.tensor(pair[1], dtype=torch.float64)

    def ours(student):
        return DISTILLATION_LOSSES[name](student, jnp.asarray(pair[1]), jnp.asarray(_IDENTITY))

    check(ours, lambda student: DISTILLATION[name](student, target), pair[0])


def test_logits_divergence(pair):
    target = torch.tensor(pair[1], dtype=torch.float64)

    def theirs(student):
        shares = [functional.log_softmax(one / 4, dim=1) for one in (student, target)]
        return 16 * functional.kl_div(*shares, log_target=True, reduction="batchmean")

    check(lambda student: logits_divergence(student, jnp.asarray(pair[1])), theirs, pair[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identity_loss(smoothing, pair):
    labels = np.arange(16) % 6
    check(
        lambda logits: identity_loss(logits, jnp.asarray(labels), smoothing),
        lambda logits: functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=smoothing),
        pair[0],
    )
