"""How glibc keeps memory: a process that trains takes and frees gigabytes of activations at every step.

By default glibc gives large blocks back to the system at once, and the next step waits for the kernel to zero the same
pages again.
"""

import os
import sys

VARIABLE = "GLIBC_TUNABLES"
_NEVER = 1 << 40  # bytes
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,  # pages of 2 MiB for large blocks
        "mmap_threshold": _NEVER,  # large blocks come from the heap
        "trim_threshold": _NEVER,  # whose end is not given back
        "arena_max": 1,  # of which there is one: those of threads are too small for large blocks
    }.items()
)


def keep_memory() -> None:
    """Starts this command anew with `TUNABLES`, which glibc reads when a process starts and never later.

    A `GLIBC_TUNABLES` that is set stays as it is, the empty text too. Elsewhere than on glibc it means nothing.
    """
    if sys.platform == "linux" and VARIABLE not in os.environ:
        os.environ[VARIABLE] = TUNABLES
        os.execv(sys.executable, sys.orig_argv)
