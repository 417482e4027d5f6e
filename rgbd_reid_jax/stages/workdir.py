"""The folder of a run: who owns it, what is done, what lies where (docs/workdir.md).

A workdir belongs to one configuration and one dataset: its first run writes `config.json` and
`dataset.json`, and later runs must match them. `stages/<stage>.json` says that a stage is finished; it is
written last, so a stage that was cut off is done again from its own checkpoint.
"""

import fcntl
import os
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import IO, Any

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.distributed import by_first, check_same, count, on_first
from rgbd_reid_jax.core.errors import InputError

# Where data are kept and how devices are shared out does not change what a run computes.
_PLACES = ("data_dir", "manual_dir", "cache", "workers", "mesh")
_NEW_FOLDER = "choose another --workdir"


class Workdir:
    """A run's folder, locked for this run: process 0 alone reads and writes what the methods read and write.

    Args:
        path: the folder; made if missing.

    Raises:
        InputError: it cannot be written, another run uses it, it holds files of something else, which are left as
            they are, or not all processes of this run see it.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock: IO[str] | None = None
        self._take()
        self._check_shared()

    @by_first
    def _take(self) -> None:
        path = self.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._refuse_others()
            self._lock = open(path / ".lock", "a")  # noqa: SIM115 (held until the process ends)
        except OSError as error:
            raise InputError(
                f"workdir {path} cannot be written ({error.strerror}); choose another --workdir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise InputError(
                f"workdir {path} is in use by another run; wait for it or choose another --workdir"
            ) from error
        except OSError:
            pass  # a file system without locks

    def _check_shared(self) -> None:
        """A file that process 0 makes must be seen by all others."""
        if count() == 1:
            return
        token = self.path / on_first(lambda: f".config.json.{secrets.token_hex(8)}.tmp")
        on_first(lambda: token.touch())
        try:
            seen = "shared" if token.exists() else f"{self.path}, not shared"
            check_same({"workdir": seen}, "choose a --workdir on a file system that all processes share")
        finally:
            on_first(lambda: token.unlink())

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _refuse_others(self) -> None:
        names = sorted(entry.name for entry in self.path.iterdir() if entry.name != ".lock")
        others = [name for name in names if not (name.startswith(".config.json.") and name.endswith(".tmp"))]
        if others and "config.json" not in names:
            raise InputError(f"workdir {self.path} holds other files ({others[0]}, ...); choose an empty --workdir")

    def _begun(self) -> bool:
        """Whether anything was computed here; a stage that never came to a checkpoint leaves an empty folder."""
        return (self.path / "stages").exists() or any(self.path.glob("checkpoints/*/*"))

    @by_first
    def claim(self, config: Mapping[str, Any]) -> None:
        """Takes the folder for `config`, or checks that it is this configuration's.

        Raises:
            InputError: something was computed here with another configuration.
        """
        path = self.path / "config.json"
        there = path.exists()
        old = files.read_json(path, _NEW_FOLDER) if there else {}
        refused = differences(computed(old), computed(config)) if there else []
        if refused and self._begun():
            raise InputError(
                f"workdir {self.path} holds another configuration's run ({'; '.join(refused[:3])}"
                f"{'; ...' if len(refused) > 3 else ''}); choose another --workdir, where --reuse={self.path} takes "
                "the finished training stages that fit"
            )
        if not there or differences(old, plain(config)):
            files.write_json(path, plain(config))

    @by_first
    def claim_dataset(self, name: str, fingerprint: str | None) -> None:
        """Takes the folder for a dataset, or checks that its run uses this one.

        Args:
            name: full name of the dataset.
            fingerprint: what tells its data apart, None where it has none.

        Raises:
            InputError: something was computed here with other data.
        """
        path, wanted = self.path / "dataset.json", {"name": name, "fingerprint": fingerprint}
        found = differences(files.read_json(path), wanted) if path.exists() else []
        if found and self._begun():
            raise InputError(
                f"workdir {self.path} holds a run on other data ({'; '.join(found)}); choose another --workdir"
            )
        if found or not path.exists():
            files.write_json(path, wanted)

    @by_first
    def finished(self, stage: str) -> bool:
        """Whether the stage is done."""
        return self.mark(stage).exists()

    @by_first
    def require(self, stage: str) -> dict[str, Any]:
        """The mark of a stage that must be done.

        Raises:
            InputError: it is not.
        """
        if not self.finished(stage):
            raise InputError(f"stage {stage} is not done in {self.path}; run it first (--stages={stage})")
        return files.read_json(self.mark(stage))

    @by_first
    def finish(self, stage: str, seconds: float, step: int | None = None) -> None:
        """Marks the stage as done.

        Args:
            stage: its name.
            seconds: what this process spent on it.
            step: of a training stage, the step of the checkpoint that later stages use.
        """
        done = {"stage": stage, "seconds": round(seconds, 1), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        files.write_json(self.mark(stage), done | ({} if step is None else {"step": step}))

    @by_first
    def reopen(self, stage: str) -> None:
        """Takes the mark of a stage away, so that it is done again."""
        self.mark(stage).unlink(missing_ok=True)

    def read_results(self) -> dict[str, Any]:
        """What the evaluation wrote.

        Raises:
            InputError: its file is gone or damaged.
        """
        mend = f"delete {self.mark('evaluation')} and run the same command again"
        try:
            return files.read_json(self.results, mend)
        except FileNotFoundError as error:
            raise InputError(f"{self.results} is missing, though the evaluation is done; {mend}") from error

    def seconds(self) -> dict[str, float]:
        """Seconds of each finished stage."""
        marks = sorted((self.path / "stages").glob("*.json"), key=os.path.getmtime)
        return {mark.stem: files.read_json(mark)["seconds"] for mark in marks}

    def mark(self, stage: str) -> pathlib.Path:
        """The file whose presence says that the stage is done."""
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
    def scratch(self) -> pathlib.Path:
        """A folder for what is not checked yet; whoever uses it empties it first."""
        return self.path / ".scratch"

    @property
    def report(self) -> pathlib.Path:
        """The HTML report."""
        return self.path / "report" / "index.html"


def plain(value: Any) -> Any:
    """JSON's view of a configuration: tuples as lists, keys as text, places left out."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if key not in _PLACES}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def computed(config: Any) -> Any:
    """What a configuration says of what is computed: `plain` without what changes rounding alone.

    That is `evaluation.batch_size`, a mend where memory is short.
    """
    found = plain(config)
    if isinstance(found, Mapping) and isinstance(found.get("evaluation"), Mapping):
        kept = {name: value for name, value in found["evaluation"].items() if name != "batch_size"}
        return {**found, "evaluation": kept}
    return found


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two plain configurations differ, a line for each value: "training.teacher.steps is 800 there, 400 here"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [f"{path} is {old!r} there, {new!r} here"]
