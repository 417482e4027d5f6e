"""Errors that a user can mend: one line that names the value or file and the mend."""


class InputError(ValueError):
    """The user's input cannot be used as it is.

    The message is one line: what is wrong, with the value or the file, and how to mend it.
    The command line prints it without a traceback and exits with status 2.
    """


class Interrupted(Exception):
    """The user or the cluster asked the job to stop; what was done is saved.

    The command line prints the message and exits with status 130.
    """
