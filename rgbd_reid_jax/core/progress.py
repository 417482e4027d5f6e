"""Progress of long work: one line with stage, position, rate, figures and time left."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO


def format_seconds(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from one hour on."""
    whole = round(max(seconds, 0.0))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """Prints `[stage] step 40/800  5 %  431 images/s  loss 2.31  ETA 1:40` at most every `every_s` seconds.

    The rate is that of this process alone: work that an earlier run finished (`start`) does not count, nor
    time that passes within `paused`. Until a first unit is timed, lines have no rate.

    Args:
        stage: name of the stage, in brackets at the head of each line.
        total: number of units in all.
        unit: what is counted, for example "step" or "frame".
        start: units that were finished before.
        items_per_unit: how many `items` one unit holds (images per step).
        items: the name of the rate's items.
        every_s: least number of seconds between two lines.
        stream: where lines go; standard output when None.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        unit: str = "step",
        start: int = 0,
        items_per_unit: float = 1.0,
        items: str = "images",
        every_s: float = 5.0,
        stream: TextIO | None = None,
    ):
        self._stage, self._total, self._unit, self._start = stage, total, unit, start
        self._items_per_unit, self._items, self._every_s = items_per_unit, items, every_s
        self._stream = stream
        self._began = self._printed = time.perf_counter()

    def restart(self, done: int) -> None:
        """Counts rate and time left from now on, after `done` units (once compilation is over, say)."""
        self._start = done
        self._began = self._printed = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within (a validation, say) counts neither in the rate nor in the time left."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def rate(self, done: int) -> float | None:
        """Items per second of this process after `done` units; None until one is timed."""
        if done <= self._start:
            return None
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        return (done - self._start) * self._items_per_unit / elapsed

    def update(self, done: int, *, force: bool = False, **figures: float | str) -> bool:
        """Prints a line if one is due, or the work is done, or `force`; tells whether it did."""
        now = time.perf_counter()
        if not (force or done >= self._total or now - self._printed >= self._every_s):
            return False
        self._printed = now
        rate = self.rate(done)
        words = [f"[{self._stage}] {self._unit} {done}/{self._total}", f"{100 * done / max(self._total, 1):.0f} %"]
        if rate is not None:
            words.append(f"{rate:.0f} {self._items}/s")
        for name, value in figures.items():
            words.append(f"{name} {value}" if isinstance(value, str) else f"{name} {value:.4g}")
        if rate is not None:
            words.append(f"ETA {format_seconds((self._total - done) * self._items_per_unit / rate)}")
        print("  ".join(words), file=self._stream or sys.stdout, flush=True)
        return True


def say(stage: str, text: str) -> None:
    """Prints one line of a stage's story."""
    print(f"[{stage}] {text}", flush=True)
