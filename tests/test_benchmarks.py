"""What a benchmark reads from a profile is what took the time."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

TRAIN_STEP = pathlib.Path(__file__).parents[1] / "benchmarks" / "train_step"


def test_the_largest_operations_of_a_step(monkeypatch):
    monkeypatch.syspath_prepend(TRAIN_STEP)
    costs = importlib.import_module("costs")
    values = jnp.ones((200, 2000))
    step = jax.jit(lambda x: (jnp.sort(x, axis=1), x + 1.0))
    found = costs.largest(lambda: step(values))
    assert found[0]["operation"].startswith("sort")
    assert found[0]["share"] > 0.5
    assert found[0]["seconds_per_step"] > 0
    assert sum(one["share"] for one in found) == pytest.approx(1.0)
    shares = [one["share"] for one in found]
    assert shares == sorted(shares, reverse=True)
