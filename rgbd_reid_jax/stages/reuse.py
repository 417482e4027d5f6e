"""Finished training stages of other runs, taken instead of trained again (`--reuse`, docs/workdir.md).

A stage is taken where all that determines its network is the same there: seed, data, input, network, how validation
people are ranked (that chooses the checkpoint), the stage's own part of the configuration, and those of the stages that
it stands on. The stages that it stands on must be here already, and be the very ones of that run: taken from the same
training, not only trained alike, as another number of cores rounds differently and a student fits one teacher alone.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.distributed import on_first
from rgbd_reid_jax.core.errors import InputError, disk_full
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.order import outdated_by, stands_on, training_order
from rgbd_reid_jax.stages.workdir import Workdir, differences
from rgbd_reid_jax.training.record import Record

# What a trained network does not depend on: what is done with it later, and the names of things.
_LATER = ("method", "stages", "encoders", "export", "training", "evaluation")
_EMBEDDING = ("batch_size", "splits")  # of the evaluation; its other fields choose a stage's checkpoint


def reuse_stages(job: Job, folders: Sequence[pathlib.Path]) -> None:
    """Takes what fits from the workdirs of other runs; of several that fit, the first one's.

    Args:
        job: this run, whose workdir is claimed.
        folders: workdirs of other runs.

    Raises:
        InputError: one of the folders is no workdir, or cannot be read. A run that lacks nothing does not look.
    """
    order = training_order(job.settings.stages, job.settings.training)

    def look() -> bool:
        lacking = any(_lacks(job.workdir, stage, order) for stage in order)
        if lacking:
            _check(job.workdir, folders)
        return lacking

    if not on_first(look):
        return
    _ = job.dataset  # writes dataset.json, in all processes together
    on_first(lambda: take_stages(job.workdir, order, folders))


def take_stages(workdir: Workdir, order: Sequence[str], folders: Sequence[pathlib.Path]) -> None:
    """`reuse_stages` on the files alone.

    Args:
        workdir: of this run, with its config.json and dataset.json.
        order: this run's training stages in order.
        folders: workdirs of other runs.

    Raises:
        InputError: a file of theirs cannot be read.
    """
    used, reasons = set(), {}
    for stage in order:
        if not _lacks(workdir, stage, order):
            continue
        for folder in folders:
            try:
                reason = _obstacle(workdir, folder, stage, order)
                if reason is None:
                    _take(workdir, folder, stage)
            except OSError as error:
                if disk_full(error) is not None:
                    raise
                raise InputError(f"--reuse: {folder} cannot be read ({error}); leave it out or mend it") from error
            if reason is None:
                used.add(folder)
                break
            reasons.setdefault(folder, f"{stage}: {reason}")
    for folder, reason in reasons.items():
        if folder not in used:
            say("reuse", f"nothing in {folder} fits ({reason})")


def _check(workdir: Workdir, folders: Sequence[pathlib.Path]) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--reuse={folder} is no folder; give workdirs of other runs")
        if not (folder / "config.json").is_file():
            raise InputError(f"--reuse={folder} holds no config.json, so it is no workdir; give workdirs of other runs")
        if folder.resolve() == workdir.path.resolve():
            raise InputError(f"--reuse={folder} is this run's own workdir; give workdirs of other runs")


def _lacks(workdir: Workdir, stage: str, order: Sequence[str]) -> bool:
    """Whether a stage is neither finished nor begun here, and nothing here stands on one that is gone."""
    above = [later for later in order if stage in stands_on(later, order)]
    begun = any(workdir.checkpoints(one).exists() for one in (stage, *above))
    return not begun and not workdir.finished(stage)


def _obstacle(workdir: Workdir, folder: pathlib.Path, stage: str, order: Sequence[str]) -> str | None:
    """Why a stage of the run in `folder` cannot be taken: the first difference; None where it can."""
    mark = _read(folder / "stages" / f"{stage}.json")
    if mark is None:
        return "not finished there"
    mine, theirs = _read(workdir.path / "config.json") or {}, _read(folder / "config.json") or {}
    their_order = training_order(theirs.get("stages", []), theirs.get("training", {}))
    below = stands_on(stage, order)
    if stage not in their_order or stands_on(stage, their_order) != below:
        return f"it stands on other stages there than here ({', '.join(below) or 'none'})"
    their_data, my_data = (_read(path / "dataset.json") or {} for path in (folder, workdir.path))
    determining = (*below, stage)
    found = differences(their_data, my_data, "dataset")
    found += differences(_determining(theirs, determining), _determining(mine, determining))
    if found:
        return found[0]
    for name in below:
        here = _training_of(_read(workdir.mark(name)))
        if here is None or here != _training_of(_read(folder / "stages" / f"{name}.json")):
            return f"the {name} that it stands on is not here"
    if not (folder / "checkpoints" / stage / str(mark.get("step"))).is_dir():
        return f"its checkpoint of step {mark.get('step')} is gone"
    return None


def _determining(config: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Any]:
    """The parts of a plain configuration that determine the networks of these training stages."""
    found = {name: value for name, value in config.items() if name not in _LATER}
    found["evaluation"] = {name: value for name, value in config["evaluation"].items() if name not in _EMBEDDING}
    found["training"] = {name: config["training"].get(name) for name in stages}
    seen = {one.get("modality") for one in found["training"].values() if one}
    if len(seen) == 1:  # how the other modality would enter is no matter
        unseen = {"depth": "colour", "rgb": "depth_representation"}.get(seen.pop())
        found["input"] = {name: value for name, value in config["input"].items() if name != unseen}
    return found


def _training_of(mark: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What tells one training from another in a stage's mark, wherever it was taken to; None where there is none."""
    return None if mark is None else {name: value for name, value in mark.items() if name != "reused_from"}


def _read(path: pathlib.Path) -> Any:
    return files.read_json(path) if path.exists() else None


def _take(workdir: Workdir, folder: pathlib.Path, stage: str) -> None:
    """Copies a stage; a run that is killed meanwhile finds it missing, or whole but for its mark, and goes on."""
    config = files.read_json(workdir.path / "config.json")
    for later in outdated_by(stage, config["stages"], config["training"]):
        if workdir.finished(later):
            say(later, f"out of date, as stage {stage} is taken from another run")
            workdir.reopen(later)
    shutil.rmtree(workdir.scratch, ignore_errors=True)
    shutil.copytree(folder / "checkpoints" / stage, workdir.scratch)
    own = [line for line in Record(workdir.path).read() if line["stage"] != stage]
    taken = [line for line in Record(folder).read() if line["stage"] == stage]
    files.write_text(workdir.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in own + taken))
    target = workdir.checkpoints(stage)
    target.parent.mkdir(exist_ok=True)
    workdir.scratch.rename(target)
    mark = files.read_json(folder / "stages" / f"{stage}.json")
    files.write_json(workdir.mark(stage), mark | {"reused_from": str(folder)})
    say(stage, f"reused from {folder}, step {mark['step']}")
