"""What the commands share: one-line mistakes, and a result alone on standard output."""

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.signals import interrupts_kept


class Parser(argparse.ArgumentParser):
    """Flags are spelt out, and mistakes on the command line are an `InputError`.

    Args:
        command: as it is typed, "python -m ...".
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, **options: Any):
        super().__init__(command, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists the flags")


def print_result(command: Callable[[], str], when_interrupted: str) -> int:
    """Prints the text that a command gives; what it prints meanwhile goes to standard error.

    Args:
        command: gives the text.
        when_interrupted: what to tell the user then.

    Returns:
        The exit status: 0, 2 for input that cannot be used, 130 when interrupted, 141 when the reader has left.
    """
    try:
        with interrupts_kept(), contextlib.redirect_stdout(sys.stderr):  # progress is no result
            text = command()
        print(text, flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {when_interrupted}", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:
        return nobody_reads()
    return 0


def writable(flag: str, path: str) -> pathlib.Path:
    """The file that a flag names; InputError, before any work, where no file can be written."""
    file = pathlib.Path(os.path.expanduser(path))
    try:
        folder = next((one for one in file.absolute().parents if one.exists()), file)
        refused = file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK)
    except OSError:  # a folder on the way cannot be entered, or a name is too long
        refused = True
    if refused:
        raise InputError(f"{flag}={path} cannot be written; give a file in a folder of yours")
    return file


def nobody_reads() -> int:
    """The exit status where `| head` has seen enough; what is still buffered goes nowhere when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
