"""Figures of a run: `metrics.jsonl`, one JSON object per line, and TensorBoard events beside it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tensorboardX import SummaryWriter

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.distributed import only_first

_FLUSH_S = 10  # a run can be watched


class Record:
    """Appends figures; lines are `{"stage": ..., "step": ..., name: value, ...}`.

    A line is on disk when `write` returns. TensorBoard events pass through a queue of tensorboardX: all of
    them are on disk only after `close`, which leaving the context does. Of several processes the first one writes.

    Args:
        folder: the workdir; holds `metrics.jsonl` and `tensorboard/<stage>/`.
    """

    def __init__(self, folder: pathlib.Path):
        self._path = folder / "metrics.jsonl"
        self._events_folder = folder / "tensorboard"
        self._events: dict[str, SummaryWriter] = {}
        self._file = None

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @only_first
    def rewind(self, stage: str, step: int) -> None:
        """Drops a stage's lines past `step`, which a killed run wrote after its last checkpoint."""
        self.close()
        kept = [line for line in self._lines() if line["stage"] != stage or line["step"] <= step]
        files.write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._open_events(stage, purge_step=step + 1)

    @only_first
    def write(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Appends one line of scalars."""
        if self._file is None:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        self._file.write(json.dumps({"stage": stage, "step": step, **figures}) + "\n")
        self._file.flush()
        if stage not in self._events:
            self._open_events(stage)
        for name, value in figures.items():
            self._events[stage].add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files; a later `write` opens them again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for writer in self._events.values():
            writer.close()
        self._events.clear()

    def _open_events(self, stage: str, **options: Any) -> None:
        self._events[stage] = SummaryWriter(str(self._events_folder / stage), flush_secs=_FLUSH_S, **options)

    def _lines(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        found = []
        for text in self._path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except json.JSONDecodeError:
                continue  # the line that a killed run was writing
        return found

    def read(self) -> list[dict[str, Any]]:
        """All lines in order."""
        return self._lines()
