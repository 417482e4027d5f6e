"""What a benchmark reads from a profile is what a step did."""

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
    assert any(one["operation"].startswith("sort") for one in found)
    assert all(one["seconds_per_step"] > 0 for one in found)
    assert sum(one["share"] for one in found) == pytest.approx(1.0)
    shares = [one["share"] for one in found]
    assert shares == sorted(shares, reverse=True)
