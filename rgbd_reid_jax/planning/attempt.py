"""A compilation that is given up after a while: XLA cannot be interrupted, a process of its own can.

Near the limit of a chip's memory the compiler of TPUs looks for what to recompute, and takes many times as long.
"""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.planning.program import Data, Program, TooLarge, compile_step
from rgbd_reid_jax.planning.topology import find_slice
from rgbd_reid_jax.stages.settings import Settings


class GivenUp(Exception):
    """A program had not compiled when the time was over."""


def compile_within(minutes: float, settings: Settings, stage: str, topology: str, batch: int, data: Data) -> Program:
    """`compile_step` for a described slice, by its name, in a process of its own.

    Raises:
        GivenUp: it took longer.
        TooLarge: as `compile_step`.
        InputError: the process ended by itself, for want of this machine's memory for example.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_compile, args=(sender, settings, stage, topology, batch, data), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(60 * minutes):
            raise GivenUp
        found = receiver.recv()
    except EOFError as error:
        process.join()
        raise InputError(
            f"the process that compiles {batch:,} rows for {topology} ended with status {process.exitcode}; what it "
            f"wrote is above; -9 means that this machine's memory is too small: --largest_batch=false does without"
        ) from error
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(found, Program):
        return found
    raise TooLarge(found)


def _compile(sender: Connection, settings: Settings, stage: str, topology: str, batch: int, data: Data) -> None:
    """Sends the program, or why it is too large."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    os.dup2(2, 1)  # the parent's standard output is for the plan
    try:
        sender.send(compile_step(settings, stage, find_slice(topology), batch, data)[0])
    except TooLarge as error:
        sender.send(str(error))
