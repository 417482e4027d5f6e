"""Times by hand."""

import types

import pytest

from rgbd_reid_jax.planning.hlo import Collective
from rgbd_reid_jax.planning.roofline import Times, Wires, collective_times, step_times, wires
from rgbd_reid_jax.planning.topology import GPUS, TPUS, Chip, Slice

CHIP = Chip("test", 16e9, {"bfloat16": 100e12, "float32": 50e12}, 1e12, 10e9, 1e-6, 4, "by hand")


def torus(*shape: int) -> Slice:
    """A slice whose devices count its coordinates up, the last axis first."""
    devices = [types.SimpleNamespace(coords=(*divmod(index, shape[1]), 0)) for index in range(shape[0] * shape[1])]
    return Slice("test", devices, CHIP, shape)


@pytest.mark.parametrize(
    ("shape", "group", "bandwidth", "hops"),
    [
        ((4, 4), range(16), 40e9, 4),  # two rings of 4: 2 x 2 links, 2 + 2 hops
        ((2, 3), range(6), 20e9, 3),  # two lines: a link each, 1 + 2 hops
        ((4, 4), range(4), 20e9, 2),  # one ring
        ((4, 4), (0, 2), 10e9, 2),  # every second one of a ring: half of both directions, shared with the others
        ((4, 3), (0, 2), 5e9, 2),  # the ends of a line of 3
        ((4, 4), (0, 4, 8, 12), 20e9, 2),
    ],
)
def test_wires_of_a_torus(shape, group, bandwidth, hops):
    found = wires(group, torus(*shape), CHIP)
    assert (found.bandwidth, found.hops) == (pytest.approx(bandwidth), hops)


def test_wires_that_are_no_torus():
    chip = GPUS["H200"]
    assert wires(range(8), Slice("attached", [None] * 8, chip, (8,)), chip) == Wires(450e9, 1)


@pytest.mark.parametrize(
    ("op", "seconds", "hops"),
    [
        ("all-reduce", 2 * 15 / 16 * 32e6 / 40e9, 8e-6),
        ("all-gather", 15 / 16 * 32e6 / 40e9, 4e-6),
        ("reduce-scatter", 15 / 16 * 32e6 / 40e9, 4e-6),
        ("all-to-all", 15 / 64 * 32e6 / 40e9, 4e-6),
        ("collective-permute", 32e6 / 40e9, 4e-6),
    ],
)
def test_seconds_of_a_collective(op, seconds, hops):
    one = Collective(op, ("f32",), 1, 32_000_000, (tuple(range(16)),))
    assert collective_times(one, torus(4, 4), CHIP) == (pytest.approx(seconds), pytest.approx(hops))


def test_a_collective_of_one_device_takes_no_time():
    assert collective_times(Collective("all-reduce", ("f32",), 1, 8, ((0,), (1,))), torus(2, 2), CHIP) == (0.0, 0.0)


def test_times_of_a_step():
    group = (tuple(range(16)),)
    found = [Collective("all-gather", ("f32",), 1, 64_000_000, group, turns=3)]
    times = step_times(1e12, 5e9, found, torus(4, 4), CHIP, "bfloat16")
    assert (times.compute, times.memory) == (pytest.approx(10e-3), pytest.approx(5e-3))
    assert times.transfer == pytest.approx(3 * 15 / 16 * 64e6 / 40e9)  # 4.5 ms
    assert times.latency == pytest.approx(3 * 4e-6)
    assert times.hidden == pytest.approx(10e-3)
    assert times.exposed == pytest.approx(10e-3 + 4.5e-3 + 12e-6)
    assert times.binds == "compute"
    assert step_times(1e12, 5e9, [], torus(4, 4), CHIP, "float32").compute == pytest.approx(20e-3)


@pytest.mark.parametrize(
    ("times", "binds", "hidden"),
    [(Times(1, 2), "memory", 2), (Times(1, 2, 1.5, 1), "interconnect", 2.5), (Times(3, 2, 1), "compute", 3)],
)
def test_what_binds(times, binds, hidden):
    assert (times.binds, times.hidden) == (binds, hidden)


def test_published_peaks_have_a_source():
    for chip in (*TPUS.values(), *GPUS.values()):
        assert set(chip.flops) == {"bfloat16", "float32"}
        assert chip.source
