"""The command line: `python -m rgbd_reid_jax.main --config=configs/distill.py --workdir=runs/distill`.

Exit status: 0 when all stages are done, 2 for input that cannot be used (one line says what and how to
mend it), 130 when interrupted (run the same command to go on).
"""

import os
import sys
import traceback

from rgbd_reid_jax.core import allocator, compile_cache
from rgbd_reid_jax.core.errors import disk_full
from rgbd_reid_jax.core.loading import without_collection
from rgbd_reid_jax.core.signals import StopRequest, interrupts_kept


def main(arguments: list[str] | None = None) -> int:
    """Runs a configuration's stages; returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's and ArrayRecord's C++ logs
    lacking = compile_cache.use(os.environ)
    if lacking:
        print(f"note: compiled programs are not kept, as {lacking}", file=sys.stderr, flush=True)
    try:
        with interrupts_kept():
            # An exception in the middle of loading a C++ extension would abort the process.
            with StopRequest() as stop, without_collection():
                from rgbd_reid_jax import cli
            if stop.requested:
                raise KeyboardInterrupt
            return cli.run(sys.argv if arguments is None else arguments)
    except KeyboardInterrupt:
        return _complain("interrupted; what was finished is kept, run the same command to go on", 130)
    except Exception as error:
        where = disk_full(error)
        if where is None:
            raise
        return _complain(f"the disk is full{where}; free space and run the same command again", 2)


def _complain(text: str, status: int) -> int:
    print(f"error: {text}" if status == 2 else text, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    allocator.keep_memory()
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = 1
    if status:
        sys.stdout.flush()
        # Threads of a run that was cut off would print tracebacks on the way out, and one of several processes would
        # wait for the others to end as well.
        os._exit(status)
