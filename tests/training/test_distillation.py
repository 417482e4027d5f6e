"""The student's objective: where its targets come from, and what its losses look at."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.inputs import InputSpec, plain_input
from rgbd_reid_jax.evaluation.embed import Encoder
from rgbd_reid_jax.losses.distillation import DISTILLATION_LOSSES, logits_divergence
from rgbd_reid_jax.losses.identity import identity_loss
from rgbd_reid_jax.losses.metric import METRIC_LOSSES
from rgbd_reid_jax.losses.pairs import l2_normalise
from rgbd_reid_jax.losses.weighted import LossOptions
from rgbd_reid_jax.models.network import Output
from rgbd_reid_jax.stages.training import towards_mean
from rgbd_reid_jax.training.objectives import distillation_objective

_KEY = jax.random.key(9)
_OPTIONS = LossOptions(smoothing=0.1, logits_temperature=2.0)


def bare(params):
    return {name: leaf for name, leaf in params.items() if name != "classifier"}


@pytest.mark.parametrize("student", ["rgb", "depth"])
def test_targets_computed_in_the_step_equal_cached_ones(tiny_model, networks, rows, tools, student):
    """Whatever happens to the student's image, they are the teacher's embeddings of the plain ones."""
    teacher = "depth" if student == "rgb" else "rgb"
    model = tiny_model.without_classifier()
    params, batch_stats = bare(networks[student][0]), networks[student][1]
    given = bare(networks[teacher][0]), networks[teacher][1]
    encoder = Encoder(model, tools.spec, teacher, normalise=False)
    target = np.asarray(encoder(*given, rows))
    found = []
    for name, batch in (("cached", rows | {"target": target}), ("online", rows)):
        objective = distillation_objective(
            model, tools.spec, student, Augmentation(), {"mean_squared": 1.0}, _OPTIONS, target=name
        )
        found.append(jax.value_and_grad(objective, has_aux=True)(params, batch_stats, batch, _KEY, {"teacher": given}))
    (cached, cached_slopes), (online, online_slopes) = found
    assert float(cached[0]) == pytest.approx(float(online[0]), rel=1e-5)
    assert float(cached[0]) > 0.01
    for path, leaf in tools.flat(cached_slopes).items():
        np.testing.assert_allclose(tools.flat(online_slopes)[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


def test_no_gradient_reaches_the_teacher(tiny_model, networks, rows, tools):
    model = tiny_model.without_classifier()
    params, batch_stats = bare(networks["rgb"][0]), networks["rgb"][1]
    objective = distillation_objective(
        model, tools.spec, "rgb", tools.still, {"mean_squared": 1.0, "triplet": 1.0}, _OPTIONS, target="online"
    )

    def loss(given):
        return objective(params, batch_stats, rows, _KEY, {"teacher": given})[0]

    for leaf in jax.tree.leaves(jax.grad(loss)(networks["depth"])):
        np.testing.assert_array_equal(leaf, 0.0)


class Spy:
    """A network that keeps the images that it was shown; its embedding is their mean colour."""

    def __init__(self):
        self.seen: dict[str, Any] = {}

    def _embedding(self, images, role):
        self.seen[role] = np.asarray(images)
        return images.mean(axis=(1, 2))

    def train(self, params, batch_stats, images, key, running, modality, parts):
        self.seen["student's modality"] = modality
        found = self._embedding(images, "student")
        return Output(found, found, found, found[:, :0]), batch_stats

    def embed(self, params, batch_stats, images, modality):
        self.seen["teacher's modality"] = modality
        return self._embedding(images, "teacher")


def places():
    """Images that hold the place of each pixel in both modalities, 1 .. 144: in RGB as level, in depth as 50 mm."""
    grid = np.broadcast_to(np.arange(1, 145).reshape(1, 18, 8, 1), (6, 18, 8, 1))
    return {
        "rgb": np.repeat(grid, 3, 3).astype(np.uint8),
        "depth": (50 * grid).astype(np.uint16),
        "mask": np.ones(grid.shape, np.uint8),
        "identity": np.arange(6, dtype=np.int32),
    }


def decoded(images, modality):
    """The places that an input shows, of the representation `metric`."""
    if modality == "depth":
        return (images[..., 0] + 1) / 2 * 8000 / 50
    return (images[..., 0] * 0.229 + 0.485) * 255


@pytest.mark.parametrize(("student", "teacher"), [("rgb", "depth"), ("depth", "rgb")])
def test_the_teacher_sees_the_student_s_crop_and_mirroring_or_the_plain_image(student, teacher):
    spec, augmentation = InputSpec(16, 8, "metric"), Augmentation(crop_area=(0.3, 0.6), crop_ratio=(1.0, 3.0))
    shown = {}
    for target in ("same_view", "online", "cached"):
        spy: Any = Spy()
        objective = distillation_objective(
            spy, spec, student, augmentation, {"mean_squared": 1.0}, _OPTIONS, target=target
        )
        batch = places() | ({"target": jnp.ones((6, 3))} if target == "cached" else {})
        objective({}, {}, batch, _KEY, {"teacher": ({}, {})})
        assert spy.seen["student's modality"] == student
        assert spy.seen.get("teacher's modality", teacher) == teacher
        shown[target] = spy.seen
    own = decoded(shown["same_view"]["student"], student)
    np.testing.assert_allclose(decoded(shown["same_view"]["teacher"], teacher), own, atol=0.02)
    mirrored = np.sign(own[:, 8, -1] - own[:, 8, 0])
    assert set(mirrored) == {-1, 1}
    assert np.ptp(own[:, 0, 0]) > 10, "crops differ"
    np.testing.assert_allclose(shown["online"]["teacher"], plain_input(spec, teacher, places()), atol=1e-6)
    assert "teacher" not in shown["cached"]
    for target in ("online", "cached"):
        np.testing.assert_array_equal(shown[target]["student"], shown["same_view"]["student"])


@pytest.mark.parametrize("student", ["rgb", "depth"])
def test_each_loss_sees_what_it_is_about(tiny_model, networks, rows, tools, student):
    """Identity: the student's logits; logits: the teacher's classifier; metric losses: the teacher's rows beside."""
    teacher = "depth" if student == "rgb" else "rgb"
    given = networks[teacher]
    names = ("identity", "logits", "triplet", "hetero_centre", "cross_modal_triplet", "cosine", "contrastive")
    objective = distillation_objective(
        tiny_model, tools.spec, student, tools.still, dict.fromkeys(names, 1.0), _OPTIONS, target="online"
    )
    total, (_, figures) = objective(*networks[student], rows, _KEY, {"teacher": given})

    images = plain_input(tools.spec, student, rows)
    output, _ = tiny_model.train(*networks[student], images, _KEY, modality=student)
    taught = tiny_model.embed(*given, plain_input(tools.spec, teacher, rows), teacher)
    sides = {student: output.embedding, teacher: taught}
    mixed = jnp.stack([sides["rgb"], sides["depth"]], axis=1).reshape(16, 8)
    identity = jnp.asarray(rows["identity"])
    logits = np.asarray(taught) @ given[0]["classifier"]["kernel"] + given[0]["classifier"]["bias"]
    expected = {
        "identity": identity_loss(output.logits, identity, 0.1),
        "logits": logits_divergence(output.logits, logits, 2.0),
        "contrastive": DISTILLATION_LOSSES["contrastive"](output.embedding, taught, identity),
        **{
            name: METRIC_LOSSES[name](mixed, jnp.repeat(identity, 2), jnp.tile(jnp.arange(2), 8))[0]
            for name in ("triplet", "hetero_centre", "cross_modal_triplet")
        },
    }
    for name, value in expected.items():
        assert float(figures[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
    assert float(expected["triplet"]) != pytest.approx(float(expected["cross_modal_triplet"]), rel=1e-3)
    summed = sum(float(value) for value in expected.values()) + float(figures["cosine"])
    assert float(total) == pytest.approx(summed, rel=1e-4)


@pytest.mark.parametrize("student", ["rgb", "depth"])
@pytest.mark.parametrize("hints", [(1,), (1, 2)])
def test_hints_compare_the_maps_of_both_networks(tiny_model, networks, rows, tools, student, hints):
    """The student's in training mode and the teacher's in evaluation; all else is as in a step without them."""
    teacher = "depth" if student == "rgb" else "rgb"
    target = np.random.default_rng(1).normal(0, 1, (8, 8)).astype(np.float32)
    batch, given = rows | {"target": target}, {"teacher": networks[teacher]}

    def run(losses):
        objective = distillation_objective(tiny_model, tools.spec, student, tools.still, losses, _OPTIONS, hints=hints)
        return jax.value_and_grad(objective, has_aux=True)(*networks[student], batch, _KEY, given)

    (loss, (stats, figures)), slopes = run({"maps": 3.0, "cosine": 1.0})
    own, taught = (plain_input(tools.spec, name, rows) for name in (student, teacher))
    errors = []
    for stage in hints:
        found, _ = tiny_model.train(*networks[student], own, _KEY, modality=student, parts=(0, stage + 1))
        wanted = tiny_model.lower(*networks[teacher], taught, teacher, stage + 1)
        errors.append(float(jnp.mean((l2_normalise(found) - l2_normalise(wanted)) ** 2) * found.shape[-1]))
    assert float(figures["maps"]) == pytest.approx(np.mean(errors), rel=1e-4)
    (plain, (plain_stats, _)), plain_slopes = run({"cosine": 1.0})
    assert float(loss) == pytest.approx(float(plain) + 3.0 * np.mean(errors), rel=1e-4)
    for path, leaf in tools.flat(plain_stats).items():
        np.testing.assert_allclose(tools.flat(stats)[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
    alone = tools.flat(run({"maps": 3.0})[1])
    for path, leaf in tools.flat(plain_slopes).items():
        np.testing.assert_allclose(tools.flat(slopes)[path], leaf + alone[path], rtol=1e-3, atol=1e-4, err_msg=path)
        layer = path.removeprefix("backbone/")
        reached = layer.startswith(("conv1", "bn1", *(f"layer{stage}" for stage in range(1, hints[-1] + 1))))
        assert bool(np.abs(alone[path]).max() > 0) == reached, path  # nothing above the last hint


def test_the_teacher_s_maps_are_of_the_student_s_view(tools):
    """Also where the target is of the plain image; erasing and noise are the student's alone."""
    spec = InputSpec(16, 8, "metric")
    augmentation = Augmentation(crop_area=(0.3, 0.6), crop_ratio=(1.0, 3.0), erase=1.0, depth_noise=3.0)

    class Mapped(Spy):
        def train(self, params, batch_stats, images, key, running, modality, parts):
            if parts == (0, 2):
                self.seen["student's map"] = np.asarray(images)
                return images, batch_stats
            assert parts == (2, None)
            return super().train(params, batch_stats, images, key, running, modality, parts)

        def lower(self, params, batch_stats, images, modality, end, begin):
            assert (modality, begin, end) == ("depth", 0, 2)
            self.seen["teacher's map"] = np.asarray(images)
            return images

    spy: Any = Mapped()
    losses = {"maps": 1.0, "mean_squared": 1.0}
    objective = distillation_objective(spy, spec, "rgb", augmentation, losses, _OPTIONS, target="online", hints=(1,))
    objective({}, {}, places(), _KEY, {"teacher": ({}, {})})
    own, taught = decoded(spy.seen["student's map"], "rgb"), decoded(spy.seen["teacher's map"], "depth")
    erased = ~np.isclose(own, taught, atol=0.02)
    assert 0.01 < erased.mean() < 0.5
    blank = spy.seen["student's map"][erased]
    np.testing.assert_array_equal(blank, np.broadcast_to(blank[0], blank.shape))
    np.testing.assert_allclose(spy.seen["teacher"], plain_input(spec, "depth", places()), atol=1e-6)


def test_targets_move_to_the_mean_of_their_person_s():
    identity = np.array([1, 0, 1, 2, 1])
    target = np.array([[0.0, 3.0], [4.0, 4.0], [6.0, 0.0], [7.0, 1.0], [0.0, 6.0]], np.float32)
    np.testing.assert_array_equal(towards_mean(target, identity, 0.0), target)
    half = towards_mean(target, identity, 0.5)
    np.testing.assert_allclose(half, [[1.0, 3.0], [4.0, 4.0], [4.0, 1.5], [7.0, 1.0], [1.0, 4.5]])
    assert half.dtype == np.float32
    np.testing.assert_allclose(towards_mean(target, identity, 1.0)[[0, 2, 4]], [[2.0, 3.0]] * 3)


def test_a_bank_is_ranked_as_the_target_ranks_it(tiny_model, networks, rows, tools):
    """The student and its target need not lie in one place for that."""
    random = np.random.default_rng(3)
    bank, target = random.normal(0, 1, (30, 8)), random.normal(0, 1, (8, 8))
    objective = distillation_objective(
        tiny_model, tools.spec, "rgb", tools.still, {"bank_similarity": 2.0}, LossOptions(temperature=0.4)
    )
    batch = rows | {"target": target.astype(np.float32)}
    loss, _ = objective(*networks["rgb"], batch, _KEY, {"bank": bank.astype(np.float32)})
    output, _ = tiny_model.train(*networks["rgb"], plain_input(tools.spec, "rgb", rows), _KEY, modality="rgb")

    def shares(x):
        cosine = (x / np.linalg.norm(x, axis=1)[:, None]) @ (bank / np.linalg.norm(bank, axis=1)[:, None]).T
        weights = np.exp(cosine / 0.4)
        return weights / weights.sum(axis=1)[:, None]

    student, taught = shares(np.asarray(output.embedding, np.float64)), shares(target)
    divergence = [
        sum(t * np.log(t / s) for t, s in zip(*pair, strict=True)) for pair in zip(taught, student, strict=True)
    ]
    assert float(loss) == pytest.approx(2.0 * np.mean(divergence), rel=1e-3)
