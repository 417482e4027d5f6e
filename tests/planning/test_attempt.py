"""Compilations in a process of their own, which can be given up."""

import dataclasses
import multiprocessing

import jax
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.planning import plan as planning
from rgbd_reid_jax.planning.attempt import GivenUp, compile_within
from rgbd_reid_jax.planning.program import Data, Program, compile_step
from rgbd_reid_jax.planning.report import readable
from rgbd_reid_jax.planning.topology import ATTACHED, Chip, Slice, find_slice
from rgbd_reid_jax.stages.settings import parse_settings

DATA = Data(4, 20, 16, 16, "")


@pytest.fixture
def settings():
    tiny = ("input.height=16", "input.width=16", "model.backbone=tiny", "model.embedding_dim=8")
    overrides = [f"--config.{one}" for one in (*tiny, "training.student.hints=(1,2)", "dataset.config=tiny")]
    return parse_settings(cli.configuration(["--config=configs/distill.py", *overrides]))


def test_it_is_the_program_that_compiles_here(settings, tiny_model):
    found = compile_within(5, settings, "teacher", ATTACHED, 8, DATA)
    expected, _ = compile_step(settings, "teacher", find_slice(ATTACHED), 8, DATA)
    assert dataclasses.replace(found, seconds=0) == dataclasses.replace(expected, seconds=0)


def test_one_that_takes_too_long_leaves_no_process(settings):
    with pytest.raises(GivenUp):
        compile_within(0, settings, "teacher", ATTACHED, 8, DATA)
    assert not multiprocessing.active_children()


def test_a_process_that_ends_by_itself_is_told(settings):
    with pytest.raises(InputError, match="compiles 8 rows for attached ended with status 1"):
        compile_within(5, settings, "no stage", ATTACHED, 8, DATA)


def test_a_search_ends_where_tries_are_given_up(settings, monkeypatch):
    """A row a chip takes a byte of 100; from 60 rows a chip on the compiler is busy for too long."""

    def program(batch: int, count: int) -> Program:
        rows = batch // count
        return Program(batch, batch, count, {"data": count, "fsdp": 1}, 0, rows, 0, rows, 1, 1, 1.0, 1.0, [], 1.0)

    def within(minutes, settings, stage, name, batch, data):
        assert (minutes, name) == (3, "v5e:2x4")
        if batch >= 8 * 60:
            raise GivenUp
        return program(batch, 8)

    def here(settings, stage, where, batch, data):
        return program(batch, len(where.devices)), where

    monkeypatch.setattr(planning, "compile_within", within)
    monkeypatch.setattr(planning, "compile_step", here)
    monkeypatch.setattr(Slice, "single", lambda where: dataclasses.replace(where, devices=where.devices[:1]))
    chip = Chip("test", 100.0, {"float32": 1e12}, 1e11, 1e10, 1e-6, 0, "by hand")
    where = Slice("v5e:2x4", jax.devices(), chip, (8,))
    made = planning.Planner(settings, batch_per_chip=8, minutes=3).plan("teacher", where)
    assert made.bounds is not None
    fits, fails = made.bounds
    assert fits < 480 <= fails
    assert fails - fits <= max(8, fits // 16)
    assert made.given_up
    words = f"{fails:,} rows ({fails // 8} a chip) had not compiled when they were given up"
    assert f"{fits:,} rows ({fits // 8} a chip) fit; {words}" in readable([made])
