"""A polite stop: the first SIGINT or SIGTERM is noted, a second SIGINT interrupts at once; no interrupt gets lost."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_AGAIN_SECONDS = 0.01


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """While entered, a KeyboardInterrupt that Python drops is raised again a moment later.

    Python drops what is raised in callbacks from C, such as finalizers and jax's callback of the garbage collection:
    the command would go on as if nobody had pressed Ctrl-C.
    """
    before = sys.unraisablehook
    alarm = signal.getsignal(signal.SIGALRM)

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        if signal.getsignal(signal.SIGALRM) is signal.default_int_handler:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `requested`; the old handlers then take over.

    Outside the main thread Python allows no signal handlers; there it never sets `requested`.

    Attributes:
        requested: a signal came.
        name: its name, such as "SIGTERM".
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self.name = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self.name = signal.Signals(number).name
        for one, handler in self._before.items():
            signal.signal(one, handler)
