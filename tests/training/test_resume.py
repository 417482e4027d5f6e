"""Stopping, killing and resuming change nothing."""

import dataclasses
import os
import signal

import jax.numpy as jnp
import optax
import pytest

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.errors import InputError, Interrupted
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
    schedule = make_schedule(SPEC, 6)

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
    plan, calls = dataclasses.replace(PLAN, score=""), []

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
        counter(tmp_path, dataclasses.replace(PLAN, score=""), lambda *_: {}, optax.sgd(1.0))
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


@pytest.mark.parametrize("stop", [3, 4, 5, 8])
def test_a_resumed_run_has_the_patience_that_was_left(counter, tmp_path, stop):
    """Stopped between validations, in the best one, and after the last one."""
    plan = dataclasses.replace(PLAN, steps=20, evaluate_every=2, log_every=1, patience=2)
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


def test_a_stop_does_not_save_what_is_not_finite(counter, tmp_path):
    runner = Runner(broken_from(5, lambda w: w * jnp.nan), counter.params, {}, counter.batches, counter.mesh)
    seen = []

    def stop_at_the_sixth():
        seen.append(1)
        if len(seen) == 6:
            os.kill(os.getpid(), signal.SIGINT)

    runner.batches = Watched(counter.batches, stop_at_the_sixth)
    plan = dataclasses.replace(PLAN, steps=20, log_every=10, evaluate_every=4, score="")
    with pytest.raises(InputError, match="the loss is nan at step 5"):
        runner(tmp_path, plan, lambda *_: {}, optax.sgd(1.0))
    assert steps(tmp_path) == [4]
