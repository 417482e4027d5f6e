"""The devices a plan is made for: those of this machine, or a TPU slice that need not be there; and what they can do.

A slice is described by libtpu (extra `tpu`), which compiles for it without one. Its published peaks are here, each with
its source; what has no published peak (a CPU, a GPU that is not listed) is measured (`planning.measure`).
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rgbd_reid_jax.core.errors import InputError

ATTACHED = "attached"
_FORM = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device can do at best.

    Attributes:
        name: for a reader.
        memory: bytes of its memory that a program can have; None where unknown.
        flops: floating-point operations per second by the network's `compute_dtype`.
        memory_bandwidth: bytes per second between the device and its memory.
        link_bandwidth: bytes per second through one of its links, in one direction; 0 where there is no link.
        hop_seconds: how long a message of no size takes through one link.
        ring: an axis of a slice closes to a ring where its length is a multiple of this; 0 where links are no torus.
        source: where the numbers are from.
    """

    name: str
    memory: float | None
    flops: Mapping[str, float]
    memory_bandwidth: float
    link_bandwidth: float
    hop_seconds: float
    ring: int
    source: str


def _matrix(peak: float) -> dict[str, float]:
    """Peaks of a chip whose float32 products go through its bfloat16 units, as XLA does by default on a TPU."""
    return {"bfloat16": peak, "float32": peak}


_GIB = 2**30
_TORUS_HOP = 1e-6
_TORUS = "Google Cloud's TPU pages; links, rings and 1 us a hop of 'How to Scale Your Model' (Austin et al. 2025)"
TPUS: Mapping[str, Chip] = {
    # Cloud TPU documentation, page v4: 275 TFLOP/s, 32 GiB, 1,200 GB/s a chip. Links: 4.5e10 bytes/s one way, 3 axes.
    "v4": Chip("TPU v4", 32 * _GIB, _matrix(275e12), 1200e9, 4.5e10, _TORUS_HOP, 4, _TORUS),
    # Page v5e: 197 TFLOP/s, 16 GB, 819 GB/s, ICI 400 GB/s (4 ports, both directions). Links: 4.5e10, 2 axes. The
    # compiler of libtpu 0.0.42 gives a program 15.75 GiB of it.
    "v5e": Chip("TPU v5e", 15.75 * _GIB, _matrix(197e12), 819e9, 4.5e10, _TORUS_HOP, 16, _TORUS),
    # Page v5p: 459 TFLOP/s, 95 GB, 2,765 GB/s. Links: 9e10, 3 axes.
    "v5p": Chip("TPU v5p", 95e9, _matrix(459e12), 2765e9, 9e10, _TORUS_HOP, 4, _TORUS),
    # Page v6e: 918 TFLOP/s, 32 GB, 1,638 GB/s, ICI 800 GB/s. Links: 9e10, 2 axes.
    "v6e": Chip("TPU v6e", 32e9, _matrix(918e12), 1638e9, 9e10, _TORUS_HOP, 16, _TORUS),
}
_AXES = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
_PODS = {"v4": 4096, "v5p": 8960, "v5e": 256, "v6e": 256}
"""Chips of a pod, the largest slice (same pages)."""

_AMPERE = {"bfloat16": 312e12, "float32": 156e12}
_HOPPER = {"bfloat16": 989e12, "float32": 494e12}
_NVIDIA = "NVIDIA's data sheets, without sparsity; float32 as TF32; one direction of NVLink, 1 us a message assumed"
GPUS: Mapping[str, Chip] = {
    # Data sheets of A100 80GB SXM, H100 SXM and H200 SXM; NVLink 600, 900 and 900 GB/s in both directions together.
    "A100-SXM4-80GB": Chip("NVIDIA A100", None, _AMPERE, 2039e9, 300e9, 1e-6, 0, _NVIDIA),
    "H100 80GB HBM3": Chip("NVIDIA H100", None, _HOPPER, 3350e9, 450e9, 1e-6, 0, _NVIDIA),
    "H200": Chip("NVIDIA H200", None, _HOPPER, 4800e9, 450e9, 1e-6, 0, _NVIDIA),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """The devices of a plan.

    Attributes:
        name: as the user gave it.
        devices: of JAX; those of a TPU slice can be compiled for, and run nothing.
        chip: what each of them can do; None where it has to be measured.
        shape: chips along each axis of the torus; (n,) where there is none.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    shape: tuple[int, ...]

    @property
    def attached(self) -> bool:
        """Whether the devices are there."""
        return self.name == ATTACHED

    def places(self) -> list[tuple[int, ...]]:
        """Each device's coordinates on the axes of `shape`, in the order of `devices`."""
        if len(self.shape) == 1:
            return [(index,) for index in range(len(self.devices))]
        return [tuple(device.coords[: len(self.shape)]) for device in self.devices]

    def single(self) -> "Slice":
        """One chip of the same kind, with which a slice's speed is compared."""
        if self.attached:
            return dataclasses.replace(self, devices=self.devices[:1], shape=(1,))
        kind = self.name.partition(":")[0]
        return tpu_slice(f"{kind}:{'x'.join(['1'] * len(self.shape))}")


def find_slice(name: str) -> Slice:
    """The devices of `name`: "attached", or a TPU slice such as "v5e:16x16" or "v4:4x4x4".

    Raises:
        InputError: an unknown topology, or libtpu is not installed.
    """
    return attached() if name == ATTACHED else tpu_slice(name)


def attached() -> Slice:
    """The devices of this machine."""
    devices = jax.devices()
    kind = devices[0].device_kind
    chip = next((one for name, one in GPUS.items() if name in kind), None)
    if devices[0].platform == "tpu":
        names = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
        chip = TPUS.get(names.get(kind, ""))
    shape: tuple[int, ...] = (len(devices),)
    if chip is not None and chip.ring:
        coordinates = [tuple(device.coords) for device in devices]
        shape = tuple(max(axis) + 1 for axis in zip(*coordinates, strict=True))
        shape = shape if math.prod(shape) == len(devices) else (len(devices),)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if chip is not None and limit:
        chip = dataclasses.replace(chip, memory=float(limit))
    return Slice(ATTACHED, devices, chip, shape)


def tpu_slice(name: str) -> Slice:
    """A TPU slice as libtpu describes it; no TPU is needed.

    Raises:
        InputError: not of the form v5e:2x4, an unknown generation, a shape that it does not have, or no libtpu.
    """
    form = _FORM.fullmatch(name)
    kinds = ", ".join(TPUS)
    if not form or form[1] not in TPUS:
        raise InputError(
            f"--topology={name} is unknown; say {ATTACHED}, or KIND:AxB, such as v5e:16x16; kinds: {kinds}"
        )
    kind, shape = form[1], tuple(int(size) for size in form[2].split("x"))
    if len(shape) != _AXES[kind] or min(shape) < 1:
        example = "4x4x4" if _AXES[kind] == 3 else "4x4"
        raise InputError(f"--topology={name}: {kind} has {_AXES[kind]} axes; say, for example, {kind}:{example}")
    chips = math.prod(shape)
    if chips > _PODS[kind]:
        raise InputError(f"--topology={name} has {chips} chips, and a pod of {kind} {_PODS[kind]}; take fewer")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--topology={name} needs libtpu (no TPU is needed): pip install -e '.[tpu]'")
    return Slice(name, _described(name, kind, shape), TPUS[kind], shape)


def _described(name: str, kind: str, shape: tuple[int, ...]) -> Sequence[Any]:
    """JAX's devices of a slice, one for each chip.

    Raises:
        InputError: libtpu refuses the shape.
    """
    from jax.experimental import topologies

    quiet_libtpu()
    padded = (*shape, 1)[:3]
    options: dict[str, Any] = {
        # Chips of one host, along each axis; libtpu takes 2x2x1, which must divide the slice.
        "chips_per_host_bounds": tuple(min(size, most) for size, most in zip(padded, (2, 2, 1), strict=True)),
        "wrap": tuple(ring(size, TPUS[kind]) for size in padded),
    }
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # both of a chip's cores as one device, as JAX has it on a v4
    try:
        return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        why = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
        raise InputError(f"--topology={name}: libtpu refuses it ({why}); give another shape") from error


def ring(size: int, chip: Chip) -> bool:
    """Whether an axis of `size` chips closes to a ring."""
    return bool(chip.ring) and size > 1 and size % chip.ring == 0


def quiet_libtpu() -> None:
    """Keeps libtpu from looking for a TPU, complaining that there is none, and claiming it for this process."""
    for variable, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_SKIP_MDS_QUERY", "1"),  # the metadata server of a TPU machine
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(variable, value)
