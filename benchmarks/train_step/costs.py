"""What this project's step costs on this machine's device: memory, the largest operations, and the device's own peaks.

    python benchmarks/train_step/costs.py --case teacher_resnet50 --batch 64 --dtype bfloat16

The machine must do nothing else. XLA counts the bytes of every operation's operands and results, those that stay in a
cache too, so `of_copy_peak` is an upper bound and may exceed 1; on a CPU it does not count what a library does, so
`of_product_peak` is too low there. One device.
"""

import argparse
import collections
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
from cases import CASES, PEOPLE
from own_step import make, peak_bytes

from rgbd_reid_jax.planning.measure import measured_chip

_STEPS = 3


def largest(step: Callable[[], Any], count: int = 3) -> list[dict[str, Any]]:
    """The operations of a compiled step that take most of the time that all take, with their share.

    XLA's names: a fusion is named for what it does last. What runs inside a loop counts in the loop as well.
    """
    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_STEPS):
                jax.block_until_ready(step())
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
        seconds: collections.Counter[str] = collections.Counter()
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op")
                    if name is not None:
                        seconds[str(name)] += event.duration_ns * 1e-9 / _STEPS
    everything = sum(seconds.values())
    return [
        {"operation": name, "seconds_per_step": one, "share": one / everything}
        for name, one in seconds.most_common(count)
    ]


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    options.case, options.people = CASES[options.case], PEOPLE
    step, facts = make(options)
    jax.block_until_ready(step())
    began = time.perf_counter()
    for _ in range(_STEPS):
        result = step()
    jax.block_until_ready(result)
    seconds = (time.perf_counter() - began) / _STEPS
    found = {**facts, "images_per_s": options.batch / seconds, "peak_bytes": peak_bytes()}
    chip = measured_chip(jax.devices(), options.dtype)
    found |= {
        "largest": largest(step),
        "of_product_peak": facts["flops"] / seconds / chip.flops[options.dtype],
        "of_copy_peak": facts["bytes"] / seconds / chip.memory_bandwidth,
        "product_flops": chip.flops[options.dtype],
        "copy_bytes_per_s": chip.memory_bandwidth,
        "peaks": chip.source,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
