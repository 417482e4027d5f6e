"""The mesh over eight fake devices."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from rgbd_reid_jax.core import mesh
from rgbd_reid_jax.core.errors import InputError


def test_all_devices_are_in_the_mesh():
    assert jax.device_count() == 8
    assert dict(mesh.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(mesh.make_mesh(2).shape) == {"data": 4, "fsdp": 2}


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_an_axis_that_does_not_fit_the_devices_is_named(fsdp):
    with pytest.raises(InputError, match=rf"config.mesh.fsdp={fsdp} does not divide the 8 devices; .* 1, 2, 4, 8"):
        mesh.make_mesh(fsdp)


@pytest.mark.parametrize("size", [0, -8, 4, 12])
def test_a_batch_that_does_not_divide_is_named(size):
    with pytest.raises(InputError, match=rf"training\.teacher\.batch_size={size} is no positive multiple of the 8"):
        mesh.check_batch(size, mesh.make_mesh(), "training.teacher.batch_size")


def test_each_micro_batch_must_divide():
    mesh.check_batch(32, mesh.make_mesh(), "name", 4)
    with pytest.raises(InputError, match="name=24 is no positive multiple of the 8 devices x 2 micro-batches"):
        mesh.check_batch(24, mesh.make_mesh(), "name", 2)


@pytest.mark.parametrize("size", [8, 64])
def test_batches_that_divide_pass(size):
    mesh.check_batch(size, mesh.make_mesh(), "name")


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_each_device_gets_its_rows(fsdp):
    rows = np.arange(32, dtype=np.uint16).reshape(16, 2)
    found = mesh.shard_batch({"depth": rows}, mesh.make_mesh(fsdp))["depth"]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, rows)
    assert sorted(shard.index[0].start or 0 for shard in found.addressable_shards) == list(range(0, 16, 2))


def test_replicated_arrays_are_whole_on_each_device():
    found = jax.device_put(np.arange(3), mesh.replicated(mesh.make_mesh()))
    assert [shard.data.shape for shard in found.addressable_shards] == [(3,)] * 8


def test_kernels_and_their_slots_are_cut_and_the_rest_is_whole():
    params = {
        "conv": {"kernel": np.zeros((3, 3, 4, 16))},
        "classifier": {"kernel": np.zeros((16, 7)), "bias": np.zeros(16)},  # 7 identities: cut along the 16
        "odd": {"kernel": np.zeros((3, 5))},
        "gem_power": np.zeros(()),
    }
    state = {"step": np.zeros(()), "trainable": params, "opt_state": optax.adamw(1.0).init(params)}
    found = mesh.shardings(state, mesh.make_mesh(4))
    for tree in (found["trainable"], found["opt_state"][0].mu, found["opt_state"][0].nu):
        assert tree["conv"]["kernel"].spec == PartitionSpec(None, None, None, "fsdp")
        assert tree["classifier"]["kernel"].spec == PartitionSpec("fsdp", None)
        for whole in (tree["classifier"]["bias"], tree["odd"]["kernel"], tree["gem_power"]):
            assert whole.spec == PartitionSpec()
    assert found["step"].spec == PartitionSpec()
    alone = jax.tree.leaves(mesh.shardings(state, mesh.make_mesh()))
    assert all(sharding.spec == PartitionSpec() for sharding in alone)
