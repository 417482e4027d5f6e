"""How long a step takes at least, by the roofline: each of compute, memory and interconnect at its published peak.

Within a chip, arithmetic and memory traffic overlap: compute = FLOPs / peak, memory = bytes / bandwidth, and the longer
one is the time on the chip. Collectives may or may not overlap with that, so a step has two times:

    hidden  = max(on the chip, interconnect)      every collective runs beside other work
    exposed = on the chip + interconnect          no collective does: the pessimistic one

A collective over a group of chips that spans axes of n_1, n_2, ... chips of a torus takes (Austin et al. 2025, "How to
Scale Your Model", chapter Sharding)

    phases x (size (N - 1) / N / W  +  hops x hop time),      W = the sum over the axes of their bandwidth

with N chips in a group; 2 phases for an all-reduce (reduce-scatter, then all-gather), 1 otherwise. An axis that closes
to a ring has twice the bandwidth of one link, and n / 2 hops; one that does not has one link's, and n - 1 hops. Where
links are no torus (NVLink, a CPU), W is the bandwidth of a device and a phase has one hop.

These are bounds, not measurements: no kernel reaches all peaks at once, and hosts and input cost nothing here.
"""

import dataclasses
import math
from collections.abc import Sequence

from rgbd_reid_jax.planning.hlo import Collective
from rgbd_reid_jax.planning.topology import Chip, Slice, ring

_PHASES = {"all-reduce": 2}
_SHARES = {"all-to-all": 0.25, "ragged-all-to-all": 0.25}  # of an all-gather's bytes cross the busiest link of a ring


@dataclasses.dataclass(frozen=True)
class Wires:
    """What a group of chips exchanges through.

    Attributes:
        bandwidth: bytes per second out of and into each chip, all axes together.
        hops: links that a message of one phase passes, one after the other.
    """

    bandwidth: float
    hops: int


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step on one chip.

    Attributes:
        compute: arithmetic at the chip's peak.
        memory: bytes at its memory's bandwidth.
        transfer: collectives' bytes at the links' bandwidth.
        latency: collectives' hops.
    """

    compute: float
    memory: float
    transfer: float = 0.0
    latency: float = 0.0

    @property
    def interconnect(self) -> float:
        """All of the collectives."""
        return self.transfer + self.latency

    @property
    def on_chip(self) -> float:
        """Compute and memory, which overlap."""
        return max(self.compute, self.memory)

    @property
    def hidden(self) -> float:
        """The step, if every collective runs beside other work."""
        return max(self.on_chip, self.interconnect)

    @property
    def exposed(self) -> float:
        """The step, if no collective does."""
        return self.on_chip + self.interconnect

    @property
    def binds(self) -> str:
        """Which of the three takes longest: "compute", "memory" or "interconnect"."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


def wires(group: Sequence[int], where: Slice, chip: Chip) -> Wires:
    """What the devices `group` (positions in `where.devices`) exchange through.

    Devices that are not neighbours on an axis share its links with those between them.
    """
    places = where.places()
    if len(where.shape) == 1 or not chip.ring:
        return Wires(chip.link_bandwidth, 1)
    bandwidth, hops = 0.0, 0
    for axis, length in enumerate(where.shape):
        used = sorted({places[device][axis] for device in group})
        if len(used) < 2:
            continue
        apart = (used[-1] - used[0]) / (len(used) - 1)
        closed = len(used) * apart == length and ring(length, chip)
        bandwidth += (2 if closed else 1) * chip.link_bandwidth / apart
        hops += length // 2 if closed else used[-1] - used[0]
    return Wires(bandwidth, hops) if hops else Wires(math.inf, 0)


def collective_times(one: Collective, where: Slice, chip: Chip) -> tuple[float, float]:
    """(seconds of its bytes, seconds of its hops) of one execution of a collective.

    Its groups hold positions in `where.devices`.
    """
    group = max(one.groups, key=len)
    if len(group) < 2:
        return 0.0, 0.0
    links = wires(group, where, chip)
    phases = _PHASES.get(one.op, 1)
    if one.op in ("collective-permute", "collective-broadcast"):
        share = 1.0
    else:
        share = _SHARES.get(one.op, 1.0) * (len(group) - 1) / len(group)
    return phases * share * one.size / links.bandwidth, phases * links.hops * chip.hop_seconds


def step_times(
    flops: float, accessed: float, found: Sequence[Collective], where: Slice, chip: Chip, dtype: str
) -> Times:
    """The times of a step.

    Args:
        flops: floating-point operations of one chip.
        accessed: bytes that one chip reads and writes.
        found: the program's collectives; their groups hold positions in `where.devices`.
        where: the devices.
        chip: what each can do.
        dtype: the network's `compute_dtype`, by which the peak is chosen.
    """
    parts = [(one, *collective_times(one, where, chip)) for one in found]
    transfer = sum(one.turns * seconds for one, seconds, _ in parts)
    latency = sum(one.turns * seconds for one, _, seconds in parts)
    return Times(flops / chip.flops[dtype], accessed / chip.memory_bandwidth, transfer, latency)
