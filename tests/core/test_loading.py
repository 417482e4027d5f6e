"""Garbage collection while modules are loaded."""

import contextlib
import gc

import pytest

from rgbd_reid_jax.core.loading import without_collection


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_as_it_was_afterwards(enabled):
    (gc.enable if enabled else gc.disable)()
    inside = []
    with contextlib.suppress(ImportError), without_collection():
        inside.append(gc.isenabled())
        raise ImportError
    assert (inside, gc.isenabled()) == ([False], enabled)


def test_what_was_loaded_is_not_looked_through_again():
    before = gc.get_freeze_count()
    with without_collection():
        kept = [[] for _ in range(1000)]
    assert gc.get_freeze_count() >= before + len(kept)
