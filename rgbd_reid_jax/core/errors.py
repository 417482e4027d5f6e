"""Errors that a user can mend: one line that names the value or file and the mend."""

import contextlib
import errno
import os
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LIMIT = ", or files may not be as large (ulimit -f)"


class InputError(ValueError):
    """The user's input cannot be used as it is.

    The message is one line: what is wrong, with the value or the file, and how to mend it.
    The command line prints it without a traceback and exits with status 2.
    """


class OutOfMemory(InputError):
    """A training stage, its state or its step, needs more memory than its devices have.

    Args:
        stage: the training stage.
        batch_size: rows of its global batch.
    """

    def __init__(self, stage: str, batch_size: int):
        self.stage, self.batch_size = stage, batch_size
        super().__init__(
            f"stage {stage} with training.{stage}.batch_size={batch_size} needs more memory than its devices have; "
            f"choose a smaller batch, or --config.training.{stage}.micro_batches=2 (docs/scaling.md)"
        )


_FREE = "end other programs that use them, or take devices with more (docs/scaling.md)"


@contextlib.contextmanager
def memory_for(what: str, mend: str = _FREE) -> Iterator[None]:
    """Makes an `InputError` of a device's lack of memory in its body.

    Args:
        what: what needs the memory, for the message.
        mend: what the user can do.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"{what} needs more memory than its devices have; {mend}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether a device lacked memory, of this process or of the one whose error was handed on as a `RuntimeError`."""
    return isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error) and disk_full(error) is None


class Interrupted(Exception):
    """The user or the cluster asked the job to stop; what was done is saved.

    The command line prints the message and exits with status 130.
    """


def disk_full(error: BaseException) -> str | None:
    """Whether a full disk caused `error`: " at PATH" ("" where the path is not known) if so, else None.

    A quota that is used up counts as well, and a limit on the size of files, which is then named. Libraries written
    in C++ put the system's message into errors of other kinds, so it is looked for too.
    """
    cause: BaseException | None = error
    while cause is not None:
        for number in _FULL:
            if (isinstance(cause, OSError) and cause.errno == number) or os.strerror(number) in str(cause):
                path = cause.filename if isinstance(cause, OSError) else None
                return (f" at {path}" if path else "") + (_LIMIT if number == errno.EFBIG else "")
        cause = cause.__cause__ or cause.__context__
    return None
