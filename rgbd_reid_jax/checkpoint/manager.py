"""Orbax checkpoints of one training stage: state, data position and scores, whole or absent.

A checkpoint holds the training state (parameters, statistics, optimizer slots, step, RNG key), the data
iterator's position and the validation score, if one was measured. Two are kept: the latest, to go on
from, and the one with the best score, which later stages use. Orbax writes into a temporary folder and
renames it, so a run killed in the middle of a write leaves no checkpoint that could be trusted.
"""

import logging
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rgbd_reid_jax.core.errors import InputError

_STATE, _POSITION = "state", "position"
_SCORE, _STEP = "score", "step"
_ORBAX = str(pathlib.Path(ocp.__file__).parent)


def _rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Larger is better; of equal scores the first."""
    return metrics[_SCORE], -metrics[_STEP]


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Orbax tells of its threads, and of errors that it raises too; the raised ones suffice."""
    return not record.pathname.startswith(_ORBAX)


logging.getLogger("absl").addFilter(_not_of_orbax)
# By default each of the devices that hold the same array writes a part of it, and a program is compiled for each part.
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False), override=True
)


def _check_shapes(saved: Any, wanted: Any) -> None:
    """Raises a ValueError that names the first array of another shape, or that only one of both has."""
    there, here = (
        {path: leaf.shape for path, leaf in ocp.tree.to_flat_dict(one, "/").items()} for one in (saved, wanted)
    )
    differing = sorted(path for path in {*there, *here} if there.get(path) != here.get(path))
    if differing:
        path = differing[0]
        raise ValueError(
            f"it is of another network: {path} has shape {there.get(path, 'none')} there and {here.get(path, 'none')} "
            f"here, one of {len(differing)} that differ"
        )


class Checkpoints:
    """The checkpoints of one stage under `folder`.

    Args:
        folder: absolute or relative path; made if missing.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder.absolute()
        policies = ocp.checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(n=1),
                policies.BestN(n=1, get_metric_fn=_rank, keep_checkpoints_without_metrics=False),  # pyright: ignore[reportArgumentType] (it only sorts)
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=lambda metrics: metrics[_SCORE],  # without it Orbax writes no scores
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        handlers = {_STATE: ocp.StandardCheckpointHandler(), _POSITION: ocp.JsonCheckpointHandler()}
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
        except ValueError as error:  # it reads the scores of all steps
            reason = " ".join(str(error).split())[:160]
            raise InputError(
                f"checkpoints {self._folder} cannot be read ({reason}); "
                "delete that folder and run the same command again"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for writes under way and ends Orbax's threads."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Waits for writes under way."""
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the best score (the first of equals), the latest where none has a score."""
        scores = self.scores()
        if not scores:
            return self.latest_step()
        return max(scores, key=lambda step: (scores[step], -step))

    def scores(self) -> dict[int, float]:
        """Score of each kept step that has one."""
        found = {}
        for step in self._manager.all_steps():
            metrics = self._manager.metrics(step)
            if metrics and _SCORE in metrics:
                found[step] = float(metrics[_SCORE])
        return found

    def save(self, step: int, state: Any, position: dict[str, Any], score: float | None = None) -> None:
        """Starts writing a checkpoint; a step that is there already stays as it is.

        Args:
            step: updates done.
            state: pytree of arrays.
            position: the data iterator's state, JSON-like.
            score: validation score, larger is better; NaN counts as none.
        """
        if step == self.latest_step():
            return
        items = ocp.args.Composite(**{_STATE: ocp.args.StandardSave(state), _POSITION: ocp.args.JsonSave(position)})
        metrics = None if score is None or math.isnan(score) else {_SCORE: float(score), _STEP: step}
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state and the data position at `step`.

        Args:
            step: one of the kept steps.
            like: pytree of arrays with the shapes, dtypes and shardings to restore.

        Raises:
            InputError: the checkpoint is damaged or of another model; the message names its folder.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract), _POSITION: ocp.args.JsonRestore()})

        def read() -> Any:
            # First: a read that fails leaves others behind, whose ends TensorStore tells to an event loop that is gone.
            saved = self._manager.item_metadata(step)[_STATE]
            if saved is not None:
                _check_shapes(saved.tree, abstract)
            return self._manager.restore(step, args=items)

        self.wait()  # for the step may be under way
        restored = self._named(step, read)
        return restored[_STATE], restored[_POSITION]

    def restore_parts(self, step: int) -> dict[str, Any]:
        """The state at `step` as a nested dict of numpy arrays, whatever its shape and the devices it was saved from.

        Raises:
            InputError: the checkpoint is damaged; the message names its folder.
        """

        def read() -> Any:
            saved = self._manager.item_metadata(step)[_STATE]
            like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved.tree)
            return self._manager.restore(step, args=ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(like)}))

        return self._named(step, read)[_STATE]

    def _named(self, step: int, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"checkpoint {self._folder / str(step)} cannot be read ({reason[:160]}); "
                f"delete that folder and run the same command again"
            ) from error
