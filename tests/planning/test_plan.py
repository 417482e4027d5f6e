"""What one chip of a slice does by itself, and what is compiled only once."""

import dataclasses

import jax
import numpy as np
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.data.sampling import Sampling, batch_rows
from rgbd_reid_jax.planning import plan as planning
from rgbd_reid_jax.planning.program import Data, Program, lacking
from rgbd_reid_jax.planning.topology import Chip, Slice
from rgbd_reid_jax.stages.settings import parse_settings

CHIP = Chip("test", None, {"bfloat16": 1e12, "float32": 1e12}, 1e11, 1e10, 1e-6, 0, "by hand")


def settings_of(**changes):
    content = cli._load("configs/distill.py:biwi").to_dict()
    content["training"]["teacher"] |= changes
    content["mesh"]["fsdp"] = 4
    return parse_settings(content)


@pytest.fixture
def compiled(monkeypatch):
    """Settings and slices that were compiled for."""
    calls = []

    def compile_step(settings, stage, where, batch, data):
        stage_settings = settings.training[stage]
        calls.append((len(where.devices), batch, stage_settings.norm_groups, settings.mesh.fsdp))
        mesh = {"data": len(where.devices), "fsdp": 1}
        return Program(batch, batch, len(where.devices), mesh, 1, 1, 1, 3, 1, 1, 1e9, 1e9, [], 1.0), where

    monkeypatch.setattr(planning, "compile_step", compile_step)
    return calls


def where(count: int) -> Slice:
    return Slice("attached", jax.devices()[:count], CHIP, (count,))


def test_one_chip_has_its_share_of_the_work(compiled):
    planner = planning.Planner(settings_of(batch_size=512, norm_groups=16))
    made = planner.plan("teacher", where(8))
    assert compiled == [(8, 512, 16, 4), (1, 64, 2, 1)]
    assert made.efficiency == (1.0, 1.0)
    assert made.bounds is None  # the memory is not known
    planner.plan("teacher", where(4))
    assert compiled[2:] == [(4, 512, 16, 4), (1, 128, 4, 1)]


def test_every_try_for_the_largest_batch_divides_among_chips_and_groups(compiled):
    chip = Chip("test", 2.0, {"bfloat16": 1e12}, 1e11, 1e10, 1e-6, 0, "by hand")  # less than the program's 3 bytes
    planner = planning.Planner(settings_of(batch_size=480, norm_groups=12))
    made = planner.plan("teacher", Slice("attached", jax.devices(), chip, (8,)))
    assert made.bounds == (0, 24)
    assert all(batch % 24 == 0 for count, batch, *_ in compiled if count == 8)


def test_the_least_batch_is_one_that_a_run_takes(compiled):
    """Of parts that are normalised by themselves each has two rows."""
    chip = Chip("test", 2.0, {"bfloat16": 1e12}, 1e11, 1e10, 1e-6, 0, "by hand")
    planner = planning.Planner(settings_of(batch_size=64, micro_batches=8))
    made = planner.plan("teacher", Slice("attached", jax.devices()[:4], chip, (4,)))
    assert made.bounds == (0, 32)
    planner = planning.Planner(settings_of(batch_size=96, norm_groups=12))
    assert planner.plan("teacher", Slice("attached", jax.devices()[:4], chip, (4,))).bounds == (0, 24)


def test_what_was_compiled_is_not_compiled_again(compiled):
    planner = planning.Planner(settings_of(), batch_per_chip=16)
    for count in (8, 4, 8):
        planner.plan("teacher", where(count))
    assert compiled == [(8, 128, 1, 4), (1, 16, 1, 1), (4, 64, 1, 4)]


@pytest.mark.parametrize(
    ("sampling", "batch", "text"),
    [
        (Sampling(), 120, ""),
        (Sampling(), 121, "a run refuses 121 rows of 120 frames"),
        (Sampling("pk", 10, 12), 120, ""),
        (Sampling("pk", 11, 4), 44, "a run refuses 11 people times 4 frames of 10 people"),
        (Sampling("pk", 5, 13), 65, "a run repeats frames: it draws 5 people times 13 frames, and a person has 12 on"),
    ],
)
def test_a_batch_beyond_the_data_is_told_as_a_run_has_it(sampling, batch, text):
    settings, data = settings_of(batch_size=batch), Data(10, 120, 8, 8, "")
    stage = dataclasses.replace(settings.training["teacher"], sampling=sampling)
    settings = dataclasses.replace(settings, training={"teacher": stage})
    found = lacking(settings, "teacher", batch, data)
    assert found.startswith(text)
    assert bool(found) == bool(text)
    labels = {"person_id": np.arange(120) % 10, "camera_id": np.zeros(120, int)}
    if "refuses" in text:
        with pytest.raises(InputError, match="exceeds the"):
            batch_rows(sampling, labels, batch, 0)
    else:
        rows = np.asarray(batch_rows(sampling, labels, batch, 0)[0])
        assert (len(np.unique(rows)) < batch) == ("repeats" in text)


def test_parts_of_a_batch_have_to_be_equal():
    planner = planning.Planner(settings_of(norm_groups=3), batch_per_chip=64)
    with pytest.raises(InputError, match="512 rows do not divide into micro_batches x norm_groups = 3 parts"):
        planner.check(["teacher"], [where(8)])
    with pytest.raises(InputError, match="no positive multiple of 2 micro-batches"):
        planning.Planner(settings_of(micro_batches=2), batch_per_chip=5).check(["teacher"], [where(8)])
