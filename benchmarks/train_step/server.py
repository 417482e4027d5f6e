"""What both sides do alike: read the case and how many steps to take, take them, print how long that took.

Needs the standard library alone.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def arguments(description: str, variants: Sequence[str] = ()) -> argparse.Namespace:
    """The command line: `case` (of `cases.py`, as JSON), `batch`, `people`, `dtype` and, of several, the `variant`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("case", type=json.loads)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--people", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    if variants:
        parser.add_argument("--variant", choices=variants, required=True)
    return parser.parse_args()


def resident_peak() -> int:
    """The most bytes that this process has had in the machine's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(
    step: Callable[[], Any], wait: Callable[[Any], None], peak: Callable[[], int] = resident_peak, **facts: Any
) -> None:
    """Answers each line of standard input, a number of steps, with {"seconds": ...} as one JSON line.

    Args:
        step: takes one step; what it returns is handed to `wait`.
        wait: returns once that is computed.
        peak: the most bytes that were in use until now, of the device's memory where it has its own.
        facts: printed first, with the seconds that the first step took.
    """
    began = time.perf_counter()
    wait(step())
    print(json.dumps({"first_step_s": time.perf_counter() - began, **facts}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            result = step()
        wait(result)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "peak_bytes": peak()}), flush=True)
