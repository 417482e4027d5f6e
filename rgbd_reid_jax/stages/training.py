"""The training stages: teacher (step I), student (step II), and the one-stream baseline."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.distributed import on_first
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import check_batch
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.data.frames import IMAGES, Frames, identities
from rgbd_reid_jax.data.pipeline import training_batches
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES, labelled
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.ranking import as_results, rank
from rgbd_reid_jax.stages.galleries import check_validation
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.settings import TrainingSettings
from rgbd_reid_jax.training import objectives
from rgbd_reid_jax.training.freeze import frozen_norms, partition
from rgbd_reid_jax.training.loop import Plan, train
from rgbd_reid_jax.training.optimizer import make_optimizer, make_schedule
from rgbd_reid_jax.training.state import create_state

_ALL_TRAIN = ((".*", "train"),)


def run_teacher(job: Job) -> int | None:
    """Trains a network of one modality on identities.

    Returns:
        As of the other training stages, the step of the checkpoint that later stages use.

    Raises:
        InputError: it would be trained anew beside a student of the teacher before it, or the training frames
            cannot serve it or the student.
    """
    stage = job.settings.training["teacher"]
    student = job.workdir.checkpoints("student")
    if student.exists() and not (job.workdir.checkpoints("teacher") / str(stage.steps)).exists():
        raise InputError(
            f"{student} was distilled from another teacher than the one to be trained now; "
            "delete that folder too and run the same command again"
        )
    if "student" in job.settings.stages:
        job.training_frames("student")  # refused before the teacher's work rather than after it
    frames = job.training_frames("teacher")
    labels, count = identities(frames.labels["person_id"])
    model = job.settings.network(count)
    objective = objectives.identity_objective(
        model, job.settings.input, stage.modality, stage.augmentation, smoothing=stage.smoothing
    )
    validate = _Validation(job, "teacher", {stage.modality: None})
    images = RAW_IMAGES[stage.modality]
    return _run(job, "teacher", job.initial(model), frames, images, {"identity": labels}, objective, validate)


def run_one_stream(job: Job) -> int | None:
    """Trains one network on batches that mix both modalities."""
    stage = job.settings.training["one_stream"]
    frames = job.training_frames("one_stream")
    labels, count = identities(frames.labels["person_id"])
    model = job.settings.network(count)
    objective = objectives.one_stream_objective(
        model, job.settings.input, stage.augmentation, smoothing=stage.smoothing
    )
    validate = _Validation(job, "one_stream", {"rgb": None, "depth": None})
    return _run(job, "one_stream", job.initial(model), frames, IMAGES, {"identity": labels}, objective, validate)


def run_student(job: Job) -> int | None:
    """Distils the teacher into a network that sees the other modality."""
    stage = job.settings.training["student"]
    taught = job.settings.training["teacher"].modality
    params, batch_stats = job.trained("teacher")
    frames = job.training_frames("student")
    model = job.settings.network(None)
    target = job.embedder(taught, raw=True)(params, batch_stats, frames, "student targets")
    _, frozen = partition(params, stage.freeze or _ALL_TRAIN)
    running = frozen_norms(frozen) if stage.frozen_norm == "running" else frozenset()
    objective = objectives.distillation_objective(
        model, job.settings.input, stage.modality, stage.augmentation, loss=stage.loss, running=running
    )
    validate = _Validation(job, "student", {stage.modality: None, taught: (params, batch_stats)})

    def from_teacher(*_: Any) -> tuple[Any, Any]:
        return params, batch_stats

    images = RAW_IMAGES[stage.modality]
    columns = {"target": target, "identity": identities(frames.labels["person_id"])[0]}
    return _run(job, "student", from_teacher, frames, images, columns, objective, validate)


def _run(
    job: Job,
    name: str,
    init: Any,
    frames: Frames,
    images: tuple[str, ...],
    columns: Mapping[str, np.ndarray],
    objective: objectives.Objective,
    validate: "_Validation",
) -> int | None:
    """Trains one stage from `init(key, height, width)` or its latest checkpoint; the step that was best."""
    stage: TrainingSettings = job.settings.training[name]
    placed = frames.placed(images, job.mesh)
    batches = iter(
        training_batches(
            frames,
            images=images,
            columns=columns,
            batch_size=stage.batch_size,
            seed=job.settings.seed,
            sampling=stage.sampling,
            placed=placed,
            process=(jax.process_index(), jax.process_count()),
        )
    )
    batches.start_prefetch()  # the first ones are decoded while the network is made
    size = job.settings.input
    key = job.key(name)
    params, batch_stats = init(jax.random.fold_in(key, 0), size.height, size.width)
    trainable, frozen = partition(params, stage.freeze or _ALL_TRAIN)
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    state = create_state(jax.random.fold_in(key, 1), trainable, frozen, batch_stats, optimizer)
    weights = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    say(name, f"{weights:,} weights train, {sum(leaf.size for leaf in jax.tree.leaves(frozen)):,} are frozen")
    plan = Plan(name, stage.steps, stage.batch_size, stage.log_every, stage.evaluate_every, stage.score)
    schedule = make_schedule(stage.optimizer, stage.steps)
    with Checkpoints(job.workdir.checkpoints(name)) as checkpoints:
        tools = (validate, checkpoints, job.record, job.mesh)
        train(plan, state, objective, optimizer, schedule, batches, *tools, placed)
        best = checkpoints.best_step()
    say(name, f"done; the checkpoint of step {best} is used")
    return best


def check_batch_size(job: Job, name: str) -> None:
    """Raises InputError unless a training stage's batch divides among the devices of this process."""
    batch_size = job.settings.training[name].batch_size
    check_batch(batch_size, job.mesh, f"training.{name}.batch_size")
    if name == "one_stream" and batch_size % (2 * job.mesh.size):
        raise InputError(
            f"training.one_stream.batch_size={batch_size} must be a multiple of {2 * job.mesh.size}: "
            "half of each device's rows are RGB, half depth"
        )


class _Validation:
    """Ranks validation people with the network as it stands.

    Args:
        job: the run.
        stage: the training stage, whose directions are ranked.
        networks: per modality None for the network in training, or the finished (params, batch_stats) of
            another, which is embedded once.
    """

    def __init__(self, job: Job, stage: str, networks: Mapping[str, tuple[Any, Any] | None]):
        check_validation(job, stage)
        self._frames = {modality: job.frames_of("validation", modality) for modality in networks}
        self._protocol = job.settings.evaluation.protocol
        self._directions = job.settings.directions(stage)
        self._embedders = {modality: job.embedder(modality) for modality in networks}
        self._fixed = {
            modality: self._embed(modality, *network) for modality, network in networks.items() if network is not None
        }

    def _embed(self, modality: str, params: Any, batch_stats: Any) -> Embeddings:
        frames = self._frames[modality]
        return labelled(self._embedders[modality](params, batch_stats, frames), frames, modality)

    def __call__(self, params: Any, batch_stats: Any) -> dict[str, float]:
        """{"eval/rgb_to_depth/mAP": ..., ...} of the directions, fractions of 1."""
        sets = {
            modality: self._fixed.get(modality) or self._embed(modality, params, batch_stats)
            for modality in self._embedders
        }
        return on_first(lambda: self._rank(sets))

    def _rank(self, sets: Mapping[str, Embeddings]) -> dict[str, float]:
        figures = {}
        for query, gallery in self._directions:
            scores = as_results(rank(sets[query], sets[gallery], self._protocol))
            figures |= {f"eval/{query}_to_{gallery}/{name}": value for name, value in scores.items()}
        return figures
