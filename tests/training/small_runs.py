"""Runs of small problems through the loop, and what they leave in their folders."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.data.frames import NOWHERE
from rgbd_reid_jax.training import loop
from rgbd_reid_jax.training.optimizer import OptimizerSpec, make_optimizer, make_schedule
from rgbd_reid_jax.training.record import Record
from rgbd_reid_jax.training.state import create_state

PLAN = loop.Plan("teacher", steps=6, images=8, log_every=2, evaluate_every=3, score="eval/score")
SPEC = OptimizerSpec("adamw", learning_rate=0.01, schedule="one_cycle")


class Runner:
    """Runs of one small problem, each in a folder."""

    def __init__(self, objective, params, batch_stats, batches, mesh, placed=NOWHERE):
        self.objective, self.params, self.batch_stats, self.batches = objective, params, batch_stats, batches
        self.mesh, self.placed = mesh, placed

    def __call__(
        self,
        folder,
        plan=PLAN,
        evaluate=lambda *_: {"eval/score": 0.5},
        optimizer=None,
        schedule=None,
        given=None,
    ):
        optimizer = optimizer or make_optimizer(SPEC, plan.steps)
        state = create_state(jax.random.key(1), self.params, {}, self.batch_stats, optimizer)
        schedule = schedule or make_schedule(SPEC, plan.steps)
        arguments = (plan, state, self.objective, optimizer, schedule, self.batches, evaluate)
        with Checkpoints(folder / "checkpoints") as checkpoints:
            tools = (checkpoints, Record(folder), self.mesh, self.placed, given)
            return jax.device_get(loop.train(*arguments, *tools))


def counting(params, batch_stats, batch, key, given=None):
    """A problem whose weight `w` is the number of steps done (with SGD of rate 1): its loss is `-w`."""
    return -params["w"], (batch_stats, {"rows": jnp.sum(batch["index"] >= 0)})


def broken_from(step, broken):
    def objective(params, batch_stats, batch, key, given=None):
        _, rest = counting(params, batch_stats, batch, key)
        return jax.lax.cond(params["w"] > step - 1.5, broken, lambda w: -w, params["w"]), rest

    return objective


def scored(scores, seen):
    """A validation that gives the score of each step, and notes which steps it saw."""

    def evaluate(params, _):
        seen.append(int(params["w"]))
        return {"eval/score": scores[seen[-1]]}

    return evaluate


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
