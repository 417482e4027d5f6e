"""A plan compiles the step that a run takes: the same shapes on the same devices, the same program."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.sampling import SHUFFLE
from rgbd_reid_jax.models.convolution import PREPARED
from rgbd_reid_jax.planning import program, topology
from rgbd_reid_jax.stages import training
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.settings import parse_settings
from rgbd_reid_jax.stages.step import abstract_variables, stage_step
from rgbd_reid_jax.stages.workdir import Workdir
from rgbd_reid_jax.training.freeze import merge
from rgbd_reid_jax.training.loop import make_step

TINY = (
    "--config.dataset.config=tiny",
    "--config.input.height=16",
    "--config.input.width=16",
    "--config.model.backbone=tiny",
    "--config.model.embedding_dim=8",
)
HINTS = "--config.training.student.hints=(1,2)"  # the tiny network has two stages
UPPER = ((r"backbone/(conv1|bn1|layer[12]_0)/.*", "train"), (r"(backbone/layer[34]_0|gem_|embedding).*", "freeze"))
FROZEN = (  # wide enough for what is prepared from kernels, in the student and in its teacher
    "--config.model.backbone=small",
    "--config.training.student.losses.maps=0.0",
    "--config.training.student.target=online",
    "--config.training.student.target_mean=0.0",
    f"--config.training.student.freeze={UPPER!r}",
)


class _Stop(Exception):
    pass


@pytest.fixture
def job_of(tmp_path, tiny_model, tiny_data_dir, monkeypatch):
    """A job of a configuration whose training stages end where they would train; what they would train with is kept."""
    kept: list[Any] = []

    def train(*arguments: Any, **_: Any) -> None:
        kept.extend(arguments)
        raise _Stop

    def make(argument: str, *overrides: str) -> tuple[Job, list[Any]]:
        given = [f"--config=configs/{argument}", *TINY, f"--config.dataset.data_dir={tiny_data_dir}", *overrides]
        if "distill" in argument:
            given.append(HINTS)
        content = cli.configuration(given)
        settings = parse_settings(content)
        few = {
            name: dataclasses.replace(stage, batch_size=8, sampling=SHUFFLE, start={})
            for name, stage in settings.training.items()
        }
        return Job(dataclasses.replace(settings, training=few), workdir, content), kept

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "_Validation", lambda *_: None)
    monkeypatch.setattr(training, "say", lambda *_: None)
    with Workdir(tmp_path) as workdir:
        yield make


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype).name), tree)


@pytest.mark.parametrize(
    ("argument", "stage", "overrides"),
    [
        ("distill.py", "teacher", ()),
        ("distill.py", "teacher", ("--config.dataset.cache=device",)),
        (
            "distill.py",
            "student",
            ("--config.training.student.target=online", "--config.training.student.target_mean=0.0"),
        ),
        ("distill.py", "student", ("--config.training.student.losses.maps=0.0",)),
        ("distill.py", "student", ("--config.training.student.losses.bank_similarity=1.0",)),
        ("distill.py", "student", ("--config.training.student.freeze=()",)),
        ("distill.py", "student", FROZEN),
        ("one_stream.py", "baseline", ()),
        ("mutual.py", "pair", ()),
    ],
)
def test_shapes_are_those_of_a_run(job_of, monkeypatch, argument, stage, overrides):
    job, kept = job_of(argument, *overrides)
    people = len(np.unique(job.training_frames(stage).labels["person_id"]))
    if stage == "student":  # its teacher need not be trained for this
        weights = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(job.settings, "teacher", people)
        )
        monkeypatch.setattr(job, "trained", lambda _: weights)
        width = job.settings.model.embedding_dim
        targets = np.zeros((len(job.training_frames(stage)), width), np.float32)
        monkeypatch.setattr(job, "embedder", lambda *_, **__: lambda *_: {"embedding": targets})
    with pytest.raises(_Stop):
        getattr(training, f"run_{stage}")(job)
    state, batch, placed, given, prepare = kept[1], next(kept[5]), *kept[10:13]
    data = program.assumed_data(job.settings)
    assert (data.identities, data.frames) == (people, len(job.frames("train")))
    size = job.settings.training[stage].batch_size
    step = stage_step(job.settings, stage, people)
    planned = program.step_arguments(job.settings, stage, step, job.mesh, size, data)
    assert _shapes(planned[0]) == _shapes(state)
    assert _shapes(planned[1]) == _shapes(batch)
    assert _shapes(planned[2].arrays) == _shapes(placed.arrays)
    assert planned[2].shapes == placed.shapes
    assert _shapes(planned[3]) == _shapes(given or {})
    weights = merge(state.trainable, state.frozen), state.batch_stats
    assert _shapes(planned[4]) == (_shapes(jax.eval_shape(prepare, *weights)) if prepare else {})
    if overrides is FROZEN:
        assert jax.tree.leaves(planned[4])
        assert jax.tree.leaves(planned[3]["teacher"][0][PREPARED])


def test_parameters_sharded_over_fsdp_are_gathered(tiny_model, without_augmentation):
    content = cli.configuration(["--config=configs/distill.py", *TINY, HINTS, "--config.mesh.fsdp=4"])
    settings = parse_settings(content)
    made, where = program.compile_step(settings, "teacher", topology.attached(), 64, program.assumed_data(settings))
    axes = {(one.op, made.axis(one)) for one in made.collectives}
    assert ("all-gather", "fsdp") in axes
    assert any(op == "all-reduce" and "data" in axis for op, axis in axes)
    assert made.mesh == {"data": 2, "fsdp": 4}
    assert len(where.devices) == 8


def test_a_part_of_the_devices_takes_as_much_of_each_as_all():
    """So nothing of a step, augmentation included, is done or kept by each device for the rows of the others."""
    words = ["--config=configs/distill.py", *TINY, HINTS, "--config.training.teacher.norm_groups=4"]
    words.append("--config.training.teacher.losses.weighted_triplet=0.0")  # its pairs are those of all rows
    settings = parse_settings(cli.configuration(words))
    everywhere, data = topology.attached(), program.assumed_data(settings)
    here = dataclasses.replace(everywhere, devices=everywhere.devices[4:])
    whole, _ = program.compile_step(settings, "teacher", everywhere, 256, data)
    part, where = program.compile_step(program.share_of(settings, "teacher", 2), "teacher", here, 128, data)
    assert where.devices == everywhere.devices[4:]
    assert part.arguments == whole.arguments
    assert part.peak == pytest.approx(whole.peak, rel=0.02)
    half, _ = program.compile_step(program.share_of(settings, "teacher", 2), "teacher", here, 64, data)
    assert half.peak < 0.8 * whole.peak


@pytest.mark.parametrize(("groups", "share", "left"), [(1, 2, 1), (16, 8, 2), (9, 2, 1), (4, 8, 1)])
def test_a_part_has_its_share_of_the_norm_groups_or_one(groups, share, left):
    changes = {"batch_size": 144, "sampling.people": 36, "norm_groups": groups}
    words = [f"--config.training.teacher.{name}={value}" for name, value in changes.items()]
    settings = parse_settings(cli.configuration(["--config=configs/distill.py", *words]))
    assert program.share_of(settings, "teacher", share).training["teacher"].norm_groups == left


@pytest.mark.parametrize(
    ("argument", "stage", "option", "count"),
    [
        ("distill.py", "student", "model.remat=False", 0),
        ("distill.py", "student", "model.remat=True", 4),  # two blocks, and those of its teacher, whose maps it sees
        ("two_stream.py", "baseline", "model.remat=True", 2),
        ("mutual.py", "pair", "model.remat=True", 4),
        ("distill.py", "teacher", "training.teacher.micro_batches=2", 1),  # all of a part of the batch
    ],
)
def test_what_is_recomputed_is_marked_in_the_program(mesh_of, without_augmentation, argument, stage, option, count):
    """Results cannot tell: they are the same."""
    hints = [HINTS] if "distill" in argument else []
    settings = parse_settings(cli.configuration([f"--config=configs/{argument}", *TINY, *hints, f"--config.{option}"]))
    data = program.assumed_data(settings)
    step = stage_step(settings, stage, data.identities)
    *arguments, running = program.step_arguments(settings, stage, step, mesh_of(1), 8, data)
    jaxpr = jax.make_jaxpr(make_step(step.objective(running), step.optimizer))(*arguments)
    assert len(re.findall(r"\b(?:checkpoint|remat)\w*\[", str(jaxpr))) == count


def test_devices_have_to_divide_the_batch(tiny_model):
    settings = parse_settings(cli.configuration(["--config=configs/distill.py", *TINY, HINTS]))
    data = program.assumed_data(settings)
    with pytest.raises(InputError, match=r"training\.teacher\.batch_size=60 is no positive multiple of the 8 devices"):
        program.compile_step(settings, "teacher", topology.attached(), 60, data)


@pytest.mark.parametrize(
    ("argument", "identities", "frames", "size"),
    [
        ("distill.py:biwi", 32, 9298, (256, 128)),
        ("distill.py:biwi/people", 21, 9298, (256, 128)),
        ("distill.py:robotpku", 40, 10_000, (256, 128)),
        ("distill.py:tvrid", 50, 10_000, (128, 128)),
        ("distill.py:rgbd_folder", 100, 10_000, (256, 128)),
    ],
)
def test_what_the_data_are_taken_to_be(argument, identities, frames, size):
    settings = parse_settings(cli._load(f"configs/{argument}").to_dict())
    data = program.assumed_data(settings)
    assert (data.identities, data.frames, (data.height, data.width)) == (identities, frames, size)
    given = program.assumed_data(settings, identities=7, frames=9)
    assert (given.identities, given.frames) == (7, 9)
    assert given.words.startswith("as given")


def test_a_step_for_a_slice_that_is_not_there(tiny_model, without_augmentation):
    pytest.importorskip("libtpu")
    settings = parse_settings(cli.configuration(["--config=configs/distill.py", *TINY, HINTS]))
    where = topology.find_slice("v5e:2x2")
    made, where = program.compile_step(settings, "teacher", where, 8, program.assumed_data(settings))
    assert {made.axis(one) for one in made.collectives} == {"data"}
    assert made.flops > 0
    assert len(set(where.places())) == 4


def test_a_step_that_is_too_large_for_its_chip(tiny_model, without_augmentation):
    pytest.importorskip("libtpu")
    overrides = ("--config.training.teacher.losses.weighted_triplet=0.0",)
    settings = parse_settings(cli.configuration(["--config=configs/distill.py", *TINY, HINTS, *overrides]))
    with pytest.raises(program.TooLarge, match=r"Ran out of memory on HBM.*exceeds available HBM \(15\.75G\)"):
        program.compile_step(
            settings, "teacher", topology.find_slice("v5e:1x1"), 1_000_000, program.assumed_data(settings)
        )
