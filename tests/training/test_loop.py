"""The loop: stopping, killing and resuming change nothing; what is not finite is never saved."""

import contextlib
import dataclasses
import functools
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
from rgbd_reid_jax.core.errors import InputError, Interrupted
from rgbd_reid_jax.data.augment import Augmentation
from rgbd_reid_jax.data.frames import NOWHERE, CachedFrames, DeviceFrames, identities
from rgbd_reid_jax.data.inputs import InputSpec
from rgbd_reid_jax.data.pipeline import training_batches
from rgbd_reid_jax.losses.weighted import LossOptions
from rgbd_reid_jax.training import loop
from rgbd_reid_jax.training.objectives import identity_objective
from rgbd_reid_jax.training.optimizer import OptimizerSpec, make_optimizer, make_schedule
from rgbd_reid_jax.training.record import Record
from rgbd_reid_jax.training.state import create_state

_PLAN = loop.Plan("teacher", steps=6, images=8, log_every=2, evaluate_every=3, score="eval/score")
_SPEC = OptimizerSpec("adamw", learning_rate=0.01, schedule="one_cycle")


class Runner:
    """Runs of one small problem, each in a folder."""

    def __init__(self, objective, params, batch_stats, batches, mesh, placed=NOWHERE):
        self.objective, self.params, self.batch_stats, self.batches = objective, params, batch_stats, batches
        self.mesh, self.placed = mesh, placed

    def __call__(
        self,
        folder,
        plan=_PLAN,
        evaluate=lambda *_: {"eval/score": 0.5},
        optimizer=None,
        schedule=None,
        given=None,
    ):
        optimizer = optimizer or make_optimizer(_SPEC, plan.steps)
        state = create_state(jax.random.key(1), self.params, {}, self.batch_stats, optimizer)
        schedule = schedule or make_schedule(_SPEC, plan.steps)
        arguments = (plan, state, self.objective, optimizer, schedule, self.batches, evaluate)
        with Checkpoints(folder / "checkpoints") as checkpoints:
            tools = (checkpoints, Record(folder), self.mesh, self.placed, given)
            return jax.device_get(loop.train(*arguments, *tools))


@pytest.fixture(scope="module")
def network(tiny_model, tiny_frames, mesh_of):
    """A small network with dropout and augmentation, so that a wrong key or batch shows."""
    model = dataclasses.replace(tiny_model, dropout=0.3)
    losses = {"identity": 1.0}
    objective = identity_objective(model, InputSpec(16, 8, "relative"), "rgb", Augmentation(), losses, LossOptions())
    params, batch_stats = jax.jit(model.init, static_argnums=(1, 2))(jax.random.key(0), 16, 8)
    labels, _ = identities(tiny_frames.labels["person_id"])
    options = {"images": ("rgb",), "columns": {"identity": labels}, "batch_size": 8, "seed": 0}
    return Runner(objective, params, batch_stats, training_batches(tiny_frames, **options), mesh_of(1))


def counting(params, batch_stats, batch, key, given=None):
    """A problem whose weight `w` is the number of steps done (with SGD of rate 1): its loss is `-w`."""
    return -params["w"], (batch_stats, {"rows": jnp.sum(batch["index"] >= 0)})


@pytest.fixture(scope="module")
def counter(tiny_frames, mesh_of):
    options = {"images": (), "columns": {"index": np.arange(24)}, "batch_size": 8, "seed": 0}
    return Runner(counting, {"w": jnp.zeros(())}, {}, training_batches(tiny_frames, **options), mesh_of(2))


@pytest.fixture(scope="module")
def uninterrupted(network, tmp_path_factory):
    """(the last state, the recorded lines) of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return network(folder), lines(folder)


def lines(folder):
    found = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("images_per_s", "data_wait")} for line in found
    ]


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def assert_bit_for_bit(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for (path, one), two in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two, err_msg=jax.tree_util.keystr(path))


def test_an_undisturbed_run(uninterrupted, network):
    state, found = uninterrupted
    assert int(state.step) == 6
    assert [line["step"] for line in found] == [2, 3, 3, 4, 6, 6]
    assert set(found[0]) == {"stage", "step", "loss", "accuracy", "gradient_norm", "learning_rate"}
    assert found[2] == {"stage": "teacher", "step": 3, "eval/score": 0.5}
    rates = [line["learning_rate"] for line in found if "loss" in line]
    assert rates == pytest.approx([float(np.asarray(make_schedule(_SPEC, 6)(step - 1))) for step in (2, 3, 4, 6)])
    moved = jax.tree.map(lambda one, two: (np.asarray(one) != two).any(), network.params, state.trainable)
    assert all(jax.tree.leaves(moved))


def test_the_callers_state_stays_usable(network, uninterrupted):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((network.params, network.batch_stats)))


@pytest.mark.parametrize("devices", [1, 8])
def test_where_images_are_kept_changes_no_bit(network, make_frames, mesh_of, tmp_path, devices, monkeypatch):
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
        # As a run compiles it: what compiles more quickly rounds otherwise where the images are gathered before.
        usual = {"xla_cpu_use_fusion_emitters": True}
        monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=usual))
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


class Watched:
    """Batches that call `seen` when one is asked for."""

    def __init__(self, batches, seen):
        self.iterator, self.seen = iter(batches), seen
        self.get_state, self.set_state = self.iterator.get_state, self.iterator.set_state

    def __iter__(self):
        return self

    def __next__(self):
        self.seen()
        return next(self.iterator)


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
    plan = dataclasses.replace(_PLAN, steps=9, log_every=1, evaluate_every=4, score="")
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
    runner(tmp_path, dataclasses.replace(_PLAN, score="", evaluate_every=6), lambda *_: {}, optax.sgd(1.0))
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
        counter(tmp_path, _PLAN, lambda *_: events.append(("validated",)) or {"eval/score": 0.5}, optax.sgd(1.0))

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
    plan = dataclasses.replace(_PLAN, steps=600, log_every=1, evaluate_every=600, score="")
    runner(tmp_path, plan, lambda *_: {}, optax.sgd(1.0))
    _, (arrays, blocks), (later_arrays, later_blocks) = found
    assert later_arrays == arrays
    assert later_blocks - blocks < 200, "an object of each step is kept"  # caches of JAX still take half of that


def test_stopped_by_a_signal_in_a_validation_and_resumed(network, uninterrupted, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    calls = []

    def evaluate(*_):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"eval/score": 0.5}

    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3/6 of stage teacher, which is saved"):
        network(tmp_path, evaluate=evaluate)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert steps(tmp_path) == [3]
    state = network(tmp_path, evaluate=evaluate)
    assert len(calls) == 2
    assert_bit_for_bit(state, uninterrupted[0])
    assert lines(tmp_path) == uninterrupted[1]


def test_stopped_between_validations_and_resumed(network, uninterrupted, tmp_path):
    schedule = make_schedule(_SPEC, 6)

    def stop_at_step_4(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return schedule(step)

    with pytest.raises(Interrupted, match="after step 4/6"):
        network(tmp_path, schedule=stop_at_step_4)
    assert steps(tmp_path) == [3, 4]  # the best and the latest
    assert_bit_for_bit(network(tmp_path), uninterrupted[0])
    assert lines(tmp_path) == uninterrupted[1]


def test_killed_after_a_checkpoint_and_resumed(network, uninterrupted, tmp_path):
    calls = []

    def evaluate(*_):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("killed at step 6")
        return {"eval/score": 0.5}

    with pytest.raises(MemoryError, match="killed"):
        network(tmp_path, evaluate=evaluate)
    assert steps(tmp_path) == [3]
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 3, 4, 6]  # two lines past the checkpoint
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "teacher", "st')
    assert_bit_for_bit(network(tmp_path), uninterrupted[0])
    assert lines(tmp_path) == uninterrupted[1]


def test_a_finished_run_does_nothing(network, uninterrupted, tmp_path):
    first = network(tmp_path)
    before = lines(tmp_path)

    def evaluate(*_):
        raise AssertionError("no validation is due")

    assert_bit_for_bit(network(tmp_path, evaluate=evaluate), first)
    assert lines(tmp_path) == before


def test_a_signal_at_the_last_step_stops_the_run_after_its_checkpoint(counter, tmp_path):
    plan, calls = dataclasses.replace(_PLAN, score=""), []

    def evaluate(params, _):
        calls.append(float(params["w"]))
        if params["w"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 6/6 of stage teacher, which is saved"):
        counter(tmp_path, plan, evaluate, optax.sgd(1.0))
    assert steps(tmp_path) == [6]
    assert float(counter(tmp_path, plan, evaluate, optax.sgd(1.0)).trainable["w"]) == 6
    assert calls == [3, 6]  # the second run had nothing to do


def test_a_signal_while_the_last_checkpoint_is_written_stops_the_run(counter, tmp_path, monkeypatch):
    wait = Checkpoints.wait

    def signalled(checkpoints):
        if signal.getsignal(signal.SIGINT) is not before:  # within the loop's guard
            os.kill(os.getpid(), signal.SIGINT)
        wait(checkpoints)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Checkpoints, "wait", signalled)
    with pytest.raises(Interrupted, match="stopped by SIGINT after step 6/6"):
        counter(tmp_path, dataclasses.replace(_PLAN, score=""), lambda *_: {}, optax.sgd(1.0))
    assert steps(tmp_path) == [6]


def test_a_stopped_run_has_its_events_on_disk(counter, tmp_path):
    def evaluate(params, _):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"eval/score": 0.5}

    with pytest.raises(Interrupted):
        counter(tmp_path, evaluate=evaluate, optimizer=optax.sgd(1.0))
    (events,) = (tmp_path / "tensorboard" / "teacher").iterdir()
    content = events.read_bytes()
    assert content.count(b"loss") == 2  # steps 2 and 3
    assert content.count(b"eval/score") == 1


def test_the_rate_is_that_of_steps_and_is_left_out_where_none_was_timed(counter, tmp_path):
    def evaluate(*_):
        time.sleep(1.0)
        return {"eval/score": 0.5}

    plan = dataclasses.replace(_PLAN, log_every=1, evaluate_every=2)
    counter(tmp_path, plan, evaluate, optax.sgd(1.0))
    text = (tmp_path / "metrics.jsonl").read_text()
    rates = {line["step"]: line.get("images_per_s") for line in map(json.loads, text.splitlines()) if "loss" in line}
    assert rates[1] is None  # it compiles
    assert rates[2] > 0
    assert rates[6] > 8 * 5 / 2.0  # with the two validations before it, it would be below


def test_the_score_selects_the_checkpoint(counter, tmp_path):
    scores = {2.0: 0.7, 4.0: 0.9, 6.0: 0.9, 8.0: 0.1}
    plan = dataclasses.replace(_PLAN, steps=8, evaluate_every=2)

    def evaluate(params, _):
        return {"eval/score": scores[float(params["w"])], "eval/other": float(params["w"])}

    counter(tmp_path, plan, evaluate, optax.sgd(1.0))
    assert steps(tmp_path) == [4, 8]
    counter(tmp_path / "last", dataclasses.replace(plan, score=""), evaluate, optax.sgd(1.0))
    assert steps(tmp_path / "last") == [8]


def scored(scores, seen):
    """A validation that gives the score of each step, and notes which steps it saw."""

    def evaluate(params, _):
        seen.append(int(params["w"]))
        return {"eval/score": scores[seen[-1]]}

    return evaluate


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
    plan = dataclasses.replace(_PLAN, steps=12, evaluate_every=2, log_every=1, patience=patience)
    scores = dict(zip(range(2, 14, 2), scores, strict=True))
    seen = []
    state = counter(tmp_path, plan, scored(scores, seen), optax.sgd(1.0))
    assert float(state.trainable["w"]) == int(state.step) == last
    assert seen == list(range(2, last + 1, 2))
    best = max(seen, key=lambda step: (scores[step], -step))
    assert steps(tmp_path) == sorted({best, last})
    said = f"[teacher] ends early at step {last}: no better eval/score since step {best}"
    assert (said in capsys.readouterr().out) == (last < 12)


@pytest.mark.parametrize("stop", [3, 4, 5, 8])
def test_a_resumed_run_has_the_patience_that_was_left(counter, tmp_path, stop):
    """Stopped between validations, in the best one, and after the last one."""
    plan = dataclasses.replace(_PLAN, steps=20, evaluate_every=2, log_every=1, patience=2)
    scores = {2: 0.1, 4: 0.5, 6: 0.4, 8: 0.3, **dict.fromkeys(range(10, 22, 2), 1.0)}
    seen = []

    def stop_at(step):
        if step == stop - 1 and not stopped:
            stopped.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    stopped = []
    with pytest.raises(Interrupted, match=f"after step {stop}/20"):
        counter(tmp_path, plan, scored(scores, seen), optax.sgd(1.0), stop_at)
    for _ in range(2):  # a run that is over stays over
        state = counter(tmp_path, plan, scored(scores, seen), optax.sgd(1.0), stop_at)
        assert int(state.step) == 8
    assert seen == [2, 4, 6, 8]
    assert steps(tmp_path) == [4, 8]
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == list(range(1, 9))


def test_what_is_given_reaches_the_objective_and_stays(counter, tmp_path):
    def towards(params, batch_stats, batch, key, given):
        return -params["w"] * given["slope"][0], (batch_stats, {"slope": given["slope"][0]})

    runner = Runner(towards, counter.params, {}, counter.batches, counter.mesh)
    given = {"slope": jnp.asarray([0.25, 7.0])}
    plan = dataclasses.replace(_PLAN, score="", log_every=3)
    state = runner(tmp_path, plan, lambda *_: {}, optax.sgd(1.0), optax.constant_schedule(1.0), given)
    assert float(state.trainable["w"]) == 6 * 0.25
    assert {line["slope"] for line in lines(tmp_path) if "loss" in line} == {0.25}
    np.testing.assert_array_equal(given["slope"], [0.25, 7.0])  # not donated


def broken_from(step, broken):
    def objective(params, batch_stats, batch, key, given=None):
        _, rest = counting(params, batch_stats, batch, key)
        return jax.lax.cond(params["w"] > step - 1.5, broken, lambda w: -w, params["w"]), rest

    return objective


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
    plan = dataclasses.replace(_PLAN, steps=20, log_every=10, evaluate_every=2, score="")
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

    plan = dataclasses.replace(_PLAN, evaluate_every=2, score="")
    with pytest.raises(InputError, match=r"^validation at step 4 of stage teacher: embedding row 0 holds nan"):
        counter(tmp_path, plan, evaluate, optax.sgd(1.0))
    assert steps(tmp_path) == [2]


def test_a_stop_does_not_save_what_is_not_finite(counter, tmp_path):
    runner = Runner(broken_from(5, lambda w: w * jnp.nan), counter.params, {}, counter.batches, counter.mesh)
    seen = []

    def stop_at_the_sixth():
        seen.append(1)
        if len(seen) == 6:
            os.kill(os.getpid(), signal.SIGINT)

    runner.batches = Watched(counter.batches, stop_at_the_sixth)
    plan = dataclasses.replace(_PLAN, steps=20, log_every=10, evaluate_every=4, score="")
    with pytest.raises(InputError, match="the loss is nan at step 5"):
        runner(tmp_path, plan, lambda *_: {}, optax.sgd(1.0))
    assert steps(tmp_path) == [4]
