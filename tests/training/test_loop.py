"""The loop: what a step and a validation do and tell; what is not finite is never saved."""

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.compiler import compiler_options
from rgbd_reid_jax.core.errors import InputError, Interrupted
from rgbd_reid_jax.data.frames import CachedFrames, DeviceFrames, identities
from rgbd_reid_jax.data.pipeline import training_batches
from rgbd_reid_jax.training import loop
from rgbd_reid_jax.training.optimizer import make_schedule
from tests.training.small_runs import (
    PLAN,
    SPEC,
    Runner,
    Watched,
    assert_bit_for_bit,
    broken_from,
    lines,
    scored,
    steps,
)


def test_an_undisturbed_run(uninterrupted, network):
    state, found = uninterrupted
    assert int(state.step) == 6
    assert [line["step"] for line in found] == [2, 3, 3, 4, 6, 6]
    assert set(found[0]) == {"stage", "step", "loss", "accuracy", "gradient_norm", "learning_rate"}
    assert found[2] == {"stage": "teacher", "step": 3, "eval/score": 0.5}
    rates = [line["learning_rate"] for line in found if "loss" in line]
    assert rates == pytest.approx([float(np.asarray(make_schedule(SPEC, 6)(step - 1))) for step in (2, 3, 4, 6)])
    moved = jax.tree.map(lambda one, two: (np.asarray(one) != two).any(), network.params, state.trainable)
    assert all(jax.tree.leaves(moved))


def test_the_callers_state_stays_usable(network, uninterrupted):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((network.params, network.batch_stats)))


@pytest.mark.parametrize("devices", [1, 8])
def test_where_images_are_kept_changes_no_bit(network, make_frames, mesh_of, tmp_path, devices, monkeypatch):
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
        # As a run compiles it: what compiles more quickly rounds otherwise where the images are gathered before.
        usual = {"xla_cpu_use_fusion_emitters": True}
        monkeypatch.setattr(loop, "compiler_options", lambda device: {**compiler_options(device), **usual})
    found = []
    for name, kind in (("host", CachedFrames), ("device", DeviceFrames)):
        frames, mesh = make_frames(24, kind=kind), mesh_of(devices)
        placed = frames.placed(("rgb",), mesh)
        labels, _ = identities(frames.labels["person_id"])
        options = {"images": ("rgb",), "columns": {"identity": labels}, "batch_size": 8, "seed": 0}
        batches = training_batches(frames, **options, placed=placed)
        runner = Runner(network.objective, network.params, network.batch_stats, batches, mesh, placed)
        found.append((runner(tmp_path / name), lines(tmp_path / name)))
    assert_bit_for_bit(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_the_share_of_time_spent_waiting_for_data_is_told(counter, tmp_path, monkeypatch, capsys):
    """By a clock that goes on by 3 for a batch, by 1 for a step, and by 100 for compilation and validation."""
    clock, block = [0.0], jax.block_until_ready

    def passes(seconds):
        clock[0] += seconds

    def stepped(tree):
        passes(1 if isinstance(tree, dict) else 100)
        return block(tree)

    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(jax, "block_until_ready", stepped)
    batches = Watched(counter.batches, lambda: passes(3))
    runner = Runner(counter.objective, counter.params, {}, batches, counter.mesh)
    plan = dataclasses.replace(PLAN, steps=9, log_every=1, evaluate_every=4, score="")
    runner(tmp_path, plan, lambda *_: passes(100) or {}, optax.sgd(1.0), optax.constant_schedule(1.0))
    text = (tmp_path / "metrics.jsonl").read_text()
    shares = {line["step"]: line.get("data_wait") for line in map(json.loads, text.splitlines()) if "loss" in line}
    # The line of step 4, which is validated, does not wait for the batch of step 5, so that of step 5 has two.
    assert shares == dict.fromkeys((2, 3, 6, 7, 9), 0.75) | {1: None, 4: 0.0, 5: 6 / 7, 8: 0.0}
    assert "data_wait 75.0 %" in capsys.readouterr().out


def test_the_host_is_one_step_ahead_and_no_more(counter, tmp_path, monkeypatch):
    """When a batch is asked for, all steps but the last one are over."""
    events, block = [], jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: events.append(tree) or block(tree))

    batches = Watched(counter.batches, lambda: events.append("batch"))
    runner = Runner(counter.objective, counter.params, {}, batches, counter.mesh)
    runner(tmp_path, dataclasses.replace(PLAN, score="", evaluate_every=6), lambda *_: {}, optax.sgd(1.0))
    waits = [event if event == "batch" else "wait" for event in events if isinstance(event, (str, dict))]
    assert waits == ["batch", *["batch", "wait"] * 5, "wait"]


class Figure:
    """A step's figure that tells when the host reads it."""

    def __init__(self, value, read):
        self.value, self.read = value, read
        self.block_until_ready = value.block_until_ready

    def __array__(self, *_, **__):
        self.read()
        return np.asarray(self.value)


@pytest.mark.parametrize("stop", [None, 5])
def test_figures_are_read_when_the_next_step_is_under_way(counter, tmp_path, monkeypatch, stop):
    """But for a step that is validated or saved: it is read before that."""
    events, compiled = [], loop.compiled_step

    def observed(*arguments):
        step_fn = compiled(*arguments)

        def step(*given):
            done = 1 + sum(event[0] == "step" for event in events)
            events.append(("step", done))
            if done == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            state, figures = step_fn(*given)
            seen = {name: Figure(value, lambda n=name: events.append((n, done))) for name, value in figures.items()}
            return state, seen

        return step

    monkeypatch.setattr(loop, "compiled_step", observed)
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, done, *rest: events.append(("saved", done)) or save(self, done, *rest)
    )
    with pytest.raises(Interrupted) if stop else contextlib.nullcontext():
        counter(tmp_path, PLAN, lambda *_: events.append(("validated",)) or {"eval/score": 0.5}, optax.sgd(1.0))

    def checked(done):
        return [("loss", done), ("gradient_norm", done)]

    def line(done):
        return [*checked(done), *((name, done) for name in ("gradient_norm", "loss", "rows"))]

    def validated(done):
        return [("validated",), ("saved", done)]

    begun = [("step", 1), ("step", 2), *checked(1), ("step", 3), *line(2), *line(3), *validated(3), ("step", 4)]
    after_4 = [("step", 5), *line(4)]
    rest = [*checked(5), ("saved", 5)] if stop else [("step", 6), *checked(5), *line(6), *validated(6)]
    assert events == begun + after_4 + rest


def test_steps_leave_nothing_behind(counter, tmp_path):
    """Neither arrays nor other objects, though each has its line."""
    found, asked = [], itertools.count(1)

    def seen():
        if next(asked) % 200 == 0:
            gc.collect()
            found.append((len(jax.live_arrays()), sys.getallocatedblocks()))

    runner = Runner(counter.objective, counter.params, {}, Watched(counter.batches, seen), counter.mesh)
    plan = dataclasses.replace(PLAN, steps=600, log_every=1, evaluate_every=600, score="")
    runner(tmp_path, plan, lambda *_: {}, optax.sgd(1.0))
    _, (arrays, blocks), (later_arrays, later_blocks) = found
    assert later_arrays == arrays
    assert later_blocks - blocks < 200, "an object of each step is kept"  # caches of JAX still take half of that


def test_the_rate_is_that_of_steps_and_is_left_out_where_none_was_timed(counter, tmp_path):
    def evaluate(*_):
        time.sleep(1.0)
        return {"eval/score": 0.5}

    plan = dataclasses.replace(PLAN, log_every=1, evaluate_every=2)
    counter(tmp_path, plan, evaluate, optax.sgd(1.0))
    text = (tmp_path / "metrics.jsonl").read_text()
    rates = {line["step"]: line.get("images_per_s") for line in map(json.loads, text.splitlines()) if "loss" in line}
    assert rates[1] is None  # it compiles
    assert rates[2] > 0
    assert rates[6] > 8 * 5 / 2.0  # with the two validations before it, it would be below


def test_the_score_selects_the_checkpoint(counter, tmp_path):
    scores = {2.0: 0.7, 4.0: 0.9, 6.0: 0.9, 8.0: 0.1}
    plan = dataclasses.replace(PLAN, steps=8, evaluate_every=2)

    def evaluate(params, _):
        return {"eval/score": scores[float(params["w"])], "eval/other": float(params["w"])}

    counter(tmp_path, plan, evaluate, optax.sgd(1.0))
    assert steps(tmp_path) == [4, 8]
    counter(tmp_path / "last", dataclasses.replace(plan, score=""), evaluate, optax.sgd(1.0))
    assert steps(tmp_path / "last") == [8]


@pytest.mark.parametrize(
    ("scores", "patience", "last"),
    [
        ((0.1, 0.5, 0.4, 0.5, 0.3, 0.9), 0, 12),
        ((0.1, 0.5, 0.4, 0.5, 0.3, 0.9), 1, 6),
        ((0.1, 0.5, 0.4, 0.5, 0.3, 0.9), 3, 10),  # as good as the best one is no better
        ((0.1, 0.5, 0.4, 0.5, 0.3, 0.9), 4, 12),
        ((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 1, 12),
        ((0.5, 0.4, 0.3, 0.2, 0.1, 0.0), 2, 6),
    ],
)
def test_patience_ends_a_stage_after_validations_without_a_better_score(
    counter, tmp_path, capsys, scores, patience, last
):
    plan = dataclasses.replace(PLAN, steps=12, evaluate_every=2, log_every=1, patience=patience)
    scores = dict(zip(range(2, 14, 2), scores, strict=True))
    seen = []
    state = counter(tmp_path, plan, scored(scores, seen), optax.sgd(1.0))
    assert float(state.trainable["w"]) == int(state.step) == last
    assert seen == list(range(2, last + 1, 2))
    best = max(seen, key=lambda step: (scores[step], -step))
    assert steps(tmp_path) == sorted({best, last})
    said = f"[teacher] ends early at step {last}: no better eval/score since step {best}"
    assert (said in capsys.readouterr().out) == (last < 12)


def test_what_is_given_reaches_the_objective_and_stays(counter, tmp_path):
    def towards(params, batch_stats, batch, key, given):
        return -params["w"] * given["slope"][0], (batch_stats, {"slope": given["slope"][0]})

    runner = Runner(towards, counter.params, {}, counter.batches, counter.mesh)
    given = {"slope": jnp.asarray([0.25, 7.0])}
    plan = dataclasses.replace(PLAN, score="", log_every=3)
    state = runner(tmp_path, plan, lambda *_: {}, optax.sgd(1.0), optax.constant_schedule(1.0), given)
    assert float(state.trainable["w"]) == 6 * 0.25
    assert {line["slope"] for line in lines(tmp_path) if "loss" in line} == {0.25}
    np.testing.assert_array_equal(given["slope"], [0.25, 7.0])  # not donated


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda w: w * jnp.nan, "the loss is nan at step 5 of stage teacher"),
        (lambda w: w * jnp.inf, "the loss is inf at step 5 of stage teacher"),
        (lambda w: jnp.sqrt(0.0 * w), "the gradient norm is nan at step 6 of stage teacher"),
    ],
)
def test_what_is_not_finite_is_never_saved(counter, tmp_path, broken, message):
    # It breaks at step 5; a line is due at step 10, the next checkpoint at step 6.
    runner = Runner(
        broken_from(5 if "loss" in message else 6, broken), counter.params, {}, counter.batches, counter.mesh
    )
    plan = dataclasses.replace(PLAN, steps=20, log_every=10, evaluate_every=2, score="")
    with pytest.raises(InputError, match=message) as caught:
        runner(tmp_path, plan, lambda *_: {}, optax.sgd(1.0), optax.constant_schedule(1.0))
    assert "lower its learning rate" in str(caught.value)
    assert steps(tmp_path) == [4]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert float(checkpoints.restore_parts(4)["trainable"]["w"]) == 4.0


def test_a_validation_that_fails_names_its_step_and_saves_nothing(counter, tmp_path):
    def evaluate(params, _):
        if params["w"] == 4:
            raise InputError("embedding row 0 holds nan; the model has diverged")
        return {}

    plan = dataclasses.replace(PLAN, evaluate_every=2, score="")
    with pytest.raises(InputError, match=r"^validation at step 4 of stage teacher: embedding row 0 holds nan"):
        counter(tmp_path, plan, evaluate, optax.sgd(1.0))
    assert steps(tmp_path) == [2]
