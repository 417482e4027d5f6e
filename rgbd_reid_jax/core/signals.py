"""A polite stop: the first SIGINT or SIGTERM is noted, a second SIGINT interrupts at once."""

import signal
import threading
from types import FrameType
from typing import Any


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
