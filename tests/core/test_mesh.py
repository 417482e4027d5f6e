"""The mesh over eight fake devices."""

import jax
import numpy as np
import pytest

from rgbd_reid_jax.core import mesh
from rgbd_reid_jax.core.errors import InputError


def test_all_devices_are_in_the_mesh():
    assert jax.device_count() == 8
    assert dict(mesh.make_mesh().shape) == {"data": 8}


@pytest.mark.parametrize("size", [0, -8, 4, 12])
def test_a_batch_that_does_not_divide_is_named(size):
    with pytest.raises(InputError, match=rf"training\.teacher\.batch_size={size} is no positive multiple of the 8"):
        mesh.check_batch(size, mesh.make_mesh(), "training.teacher.batch_size")


@pytest.mark.parametrize("size", [8, 64])
def test_batches_that_divide_pass(size):
    mesh.check_batch(size, mesh.make_mesh(), "name")


def test_each_device_gets_its_rows():
    rows = np.arange(32, dtype=np.uint16).reshape(16, 2)
    found = mesh.shard_batch({"depth": rows}, mesh.make_mesh())["depth"]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, rows)
    assert sorted(shard.index[0].start or 0 for shard in found.addressable_shards) == list(range(0, 16, 2))


def test_replicated_arrays_are_whole_on_each_device():
    found = jax.device_put(np.arange(3), mesh.replicated(mesh.make_mesh()))
    assert [shard.data.shape for shard in found.addressable_shards] == [(3,)] * 8
