"""Slices as libtpu describes them; skipped where it is not installed."""

import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.planning import topology


def test_the_attached_devices_are_eight_fake_ones():
    where = topology.find_slice("attached")
    assert (where.attached, len(where.devices), where.chip, where.shape) == (True, 8, None, (8,))
    assert where.places()[:2] == [(0,), (1,)]
    assert len(where.single().devices) == 1


@pytest.mark.parametrize(("size", "closed"), [(1, False), (4, False), (8, False), (16, True)])
def test_v5e_closes_axes_of_sixteen(size, closed):
    assert topology.ring(size, topology.TPUS["v5e"]) is closed


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("v5e:1x1", 1, (1, 1)),
        ("v5e:2x4", 8, (2, 4)),
        ("v5e:16x16", 256, (16, 16)),
        ("v6e:4x4", 16, (4, 4)),
        ("v4:2x2x4", 16, (2, 2, 4)),
        ("v5p:2x2x2", 8, (2, 2, 2)),
    ],
)
def test_slices_have_one_device_for_each_chip(name, count, shape):
    pytest.importorskip("libtpu")
    where = topology.find_slice(name)
    assert (len(where.devices), where.shape) == (count, shape)
    assert len(set(where.places())) == count
    assert max(where.places()) == tuple(size - 1 for size in shape)
    assert len(where.single().devices) == 1


def test_shapes_that_libtpu_refuses():
    pytest.importorskip("libtpu")
    with pytest.raises(InputError, match=r"libtpu refuses it"):
        topology.find_slice("v5e:3x5")
