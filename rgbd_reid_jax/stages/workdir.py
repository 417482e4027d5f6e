"""The folder of a run: who owns it, what is done, what lies where (docs/workdir.md).

A workdir belongs to one configuration: its first run writes `config.json`, and later runs must match it.
`stages/<stage>.json` says that a stage is finished; it is written last, so a stage that was cut off is
done again from its own checkpoint.
"""

import fcntl
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError

_PLACES = ("data_dir", "cache")  # where and how data are kept does not change what a run computes


class Workdir:
    """A run's folder, locked for this process.

    Args:
        path: the folder; made if missing.

    Raises:
        InputError: it cannot be written, or another process uses it.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "w")  # noqa: SIM115 (held until the process ends)
        except OSError as error:
            raise InputError(
                f"workdir {path} cannot be written ({error.strerror}); choose another --workdir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise InputError(
                f"workdir {path} is in use by another run; wait for it or choose another --workdir"
            ) from error

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def claim(self, config: Mapping[str, Any]) -> None:
        """Takes the folder for `config`, or checks that it is this configuration's.

        Raises:
            InputError: the folder holds another configuration's run, or files of something else.
        """
        path = self.path / "config.json"
        if path.exists():
            differences = _differences(files.read_json(path), _plain(config))
            if differences:
                raise InputError(
                    f"workdir {self.path} holds another configuration's run ({'; '.join(differences[:3])}"
                    f"{'; ...' if len(differences) > 3 else ''}); choose another --workdir"
                )
            return
        others = sorted(entry.name for entry in self.path.iterdir() if entry.name != ".lock")
        others = [name for name in others if not (name.startswith(".config.json.") and name.endswith(".tmp"))]
        if others:
            raise InputError(f"workdir {self.path} holds other files ({others[0]}, ...); choose an empty --workdir")
        files.write_json(path, _plain(config))

    def finished(self, stage: str) -> bool:
        """Whether the stage is done."""
        return self._mark(stage).exists()

    def finish(self, stage: str, seconds: float) -> None:
        """Marks the stage as done; `seconds` is what this process spent on it."""
        done = {"stage": stage, "seconds": round(seconds, 1), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        files.write_json(self._mark(stage), done)

    def seconds(self) -> dict[str, float]:
        """Seconds of each finished stage."""
        marks = sorted((self.path / "stages").glob("*.json"), key=os.path.getmtime)
        return {mark.stem: files.read_json(mark)["seconds"] for mark in marks}

    def _mark(self, stage: str) -> pathlib.Path:
        return self.path / "stages" / f"{stage}.json"

    def checkpoints(self, stage: str) -> pathlib.Path:
        """Folder of a training stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def embeddings(self, split: str, modality: str) -> pathlib.Path:
        """The embeddings of one split and modality."""
        return self.path / "embeddings" / f"{split}_{modality}.npz"

    @property
    def results(self) -> pathlib.Path:
        """The results of the run."""
        return self.path / "results.json"

    @property
    def export(self) -> pathlib.Path:
        """Folder of exported encoders."""
        return self.path / "export"

    @property
    def report(self) -> pathlib.Path:
        """The HTML report."""
        return self.path / "report" / "index.html"


def _plain(value: Any) -> Any:
    """JSON's view of a configuration: tuples as lists, keys as text, places left out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key not in _PLACES}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [f"{path} is {old!r} there, {new!r} here"]
