"""The training stages: teacher (step I), student (step II), baselines, and pairs of encoders."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.distributed import on_first, replicate
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import check_batch, replicated
from rgbd_reid_jax.core.modalities import BOTH, MODALITIES
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.data.frames import Frames, identities
from rgbd_reid_jax.data.pipeline import training_batches
from rgbd_reid_jax.data.sampling import batch_rows
from rgbd_reid_jax.metrics.ranking import as_results
from rgbd_reid_jax.stages.galleries import check_validation
from rgbd_reid_jax.stages.job import Job, encoder_weights
from rgbd_reid_jax.stages.order import stands_on, training_order
from rgbd_reid_jax.stages.settings import TrainingSettings, sees
from rgbd_reid_jax.stages.step import StageStep, parted, preparation, stage_step
from rgbd_reid_jax.training.loop import Plan, train
from rgbd_reid_jax.training.optimizer import make_schedule
from rgbd_reid_jax.training.state import create_state

Init = Callable[[jax.Array, int, int], tuple[Any, Any]]


def run_teacher(job: Job) -> int | None:
    """Trains a network of one modality on identities.

    Returns:
        As of the other training stages, the step of the checkpoint that later stages use.

    Raises:
        InputError: as of the others, it would be trained anew beside networks that stand on the one before it; the
            training frames cannot serve it or the student.
    """
    _check_above(job, "teacher")  # before what takes long
    if "student" in job.settings.stages:
        job.training_frames("student")  # refused before the teacher's work rather than after it
    return _run_on_identities(job, "teacher")


def run_baseline(job: Job) -> int | None:
    """Trains one network that sees both modalities on identities."""
    return _run_on_identities(job, "baseline")


def _run_on_identities(job: Job, name: str) -> int | None:
    frames = job.training_frames(name)
    labels, count = identities(frames.labels["person_id"])
    step = stage_step(job.settings, name, count)
    return _run(job, name, step, job.initial(step.network), frames, {"identity": labels})


def run_student(job: Job) -> int | None:
    """Distils the teacher into a network that sees the other modality."""
    _check_above(job, "student")
    taught = job.settings.training["teacher"].modality
    teacher = job.trained("teacher")
    frames = job.training_frames("student")
    labels, count = identities(frames.labels["person_id"])
    step = stage_step(job.settings, "student", count)
    classified = step.network.num_identities is not None
    columns = {"identity": labels}
    if "target" in step.columns:
        embedder = job.embedder(taught, "teacher", raw=True)
        weights = job.trained_encoder(taught, "teacher")
        target = embedder(*weights, frames, "student targets")["embedding"]
        columns["target"] = towards_mean(target, labels, job.settings.training["student"].target_mean)
    known = {"teacher": teacher, "bank": columns.get("target")}
    given = replicate({name: known[name] for name in step.given}, job.mesh, "what the teacher knows")
    if "teacher" in given:
        params, batch_stats = given["teacher"]
        prepare = preparation(job.settings, step, taught, params, job.mesh)
        if prepare:
            prepared = jax.jit(prepare, out_shardings=replicated(job.mesh))(params, batch_stats)
            given["teacher"] = {**params, **prepared}, batch_stats

    def from_teacher(*_: Any) -> tuple[Any, Any]:
        params, batch_stats = teacher
        return (params if classified else encoder_weights("teacher", taught, params, batch_stats)[0]), batch_stats

    return _run(job, "student", step, from_teacher, frames, columns, given)


def towards_mean(target: np.ndarray, identity: np.ndarray, share: float) -> np.ndarray:
    """Targets moved to the mean of their person's: (1 - share) * target + share * mean.

    What a teacher's embedding tells of one instant (pose, noise) and not of the person is hard to see in the other
    modality and of no use to retrieval. At a share of 1 all frames of a person have one target.

    Args:
        target: float32 [N, D].
        identity: int32 [N], 0 .. people - 1.
        share: from 0 to 1.

    Returns:
        float32 [N, D].
    """
    if not share:
        return target
    sums = np.zeros((identity.max() + 1, target.shape[1]))
    np.add.at(sums, identity, target)
    means = sums / np.bincount(identity)[:, None]
    return ((1 - share) * target + share * means[identity]).astype(np.float32)


def run_pair(job: Job) -> int | None:
    """Trains an encoder of each modality together, from finished stages or afresh, with a gate between them or without.

    Raises:
        InputError: the networks that it starts from have other shapes.
    """
    stage = job.settings.training["pair"]
    frames = job.training_frames("pair")
    labels, count = identities(frames.labels["person_id"])
    step = stage_step(job.settings, "pair", count)
    pair, fresh = step.pair, job.initial(step.network)
    assert pair is not None, "stage pair has one"

    def init(key: jax.Array, height: int, width: int) -> tuple[Any, Any]:
        encoders = {}
        for index, name in enumerate(MODALITIES):
            if stage.start:
                params, batch_stats = job.trained(stage.start[name])
                if not _same_people(frames, job.training_frames(stage.start[name])):
                    params = {path: leaf for path, leaf in params.items() if path != "classifier"}  # numbers others
                encoders[name] = params, batch_stats
            else:
                encoders[name] = fresh(jax.random.fold_in(key, index), height, width)
        return pair.init(encoders, jax.random.fold_in(key, len(MODALITIES)))

    return _run(job, "pair", step, init, frames, {"identity": labels})


def _same_people(one: Frames, other: Frames) -> bool:
    """Whether two stages give their people the same identities."""
    return np.array_equal(np.unique(one.labels["person_id"]), np.unique(other.labels["person_id"]))


def _run(
    job: Job,
    name: str,
    step: StageStep,
    init: Init,
    frames: Frames,
    columns: Mapping[str, np.ndarray],
    given: Any = None,
) -> int | None:
    """Trains one stage from `init(key, height, width)` or its latest checkpoint; the step that was best.

    `columns` and `given` are what `step` names of them: of each frame, and beside each batch.
    """
    stage: TrainingSettings = job.settings.training[name]
    validate = _Validation(job, name)  # first, as it refuses protocols that suit none of the data
    placed = frames.placed(step.images, job.mesh)
    batches = iter(
        training_batches(
            frames,
            images=step.images,
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
    # To the host, so that no device keeps the whole of what it then holds its share of.
    params, batch_stats = jax.device_get(init(jax.random.fold_in(key, 0), size.height, size.width))
    trainable, frozen, running = parted(stage, params)
    state = jax.device_get(create_state(jax.random.fold_in(key, 1), trainable, frozen, batch_stats, step.optimizer))
    weights = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    say(name, f"{weights:,} weights train, {sum(leaf.size for leaf in jax.tree.leaves(frozen)):,} are frozen")
    count = stage.batch_size * (len(MODALITIES) if stage.modality == BOTH else 1)
    plan = Plan(name, stage.steps, count, stage.log_every, stage.evaluate_every, stage.score, stage.patience)
    schedule = make_schedule(stage.optimizer, stage.steps)
    with Checkpoints(job.workdir.checkpoints(name)) as checkpoints:
        tools = (validate, checkpoints, job.record, job.mesh)
        fixed = placed, given, preparation(job.settings, step, stage.modality, frozen, job.mesh)
        train(plan, state, step.objective(running), step.optimizer, schedule, batches, *tools, *fixed)
        best = checkpoints.best_step()
    say(name, f"done; the checkpoint of step {best} is used")
    return best


def _check_above(job: Job, name: str) -> None:
    """Raises InputError if a stage would be trained beside networks that started from another training of it."""
    stage = job.settings.training[name]
    own = job.workdir.checkpoints(name)
    order = training_order(job.settings.stages, job.settings.training)
    for later in order:
        above = job.workdir.checkpoints(later)
        trained = (own / str(stage.steps)).exists() or (stage.patience and own.exists())  # patience ends earlier
        if name in stands_on(later, order) and above.exists() and not trained:
            raise InputError(
                f"{above} stands on another {name} than the one to be trained now; "
                "delete that folder too and run the same command again"
            )


def check_batch_size(job: Job, name: str) -> None:
    """Raises InputError unless a training stage's batch divides among the devices of this process."""
    stage = job.settings.training[name]
    check_batch(stage.batch_size, job.mesh, f"training.{name}.batch_size", stage.micro_batches)


def check_data(job: Job, name: str) -> None:
    """Raises InputError where the data cannot fill a training stage's batches, or suit no ranking of its people."""
    check_validation(job, name)
    stage, frames = job.settings.training[name], job.training_frames(name)
    try:
        batch_rows(stage.sampling, frames.labels, stage.batch_size, job.settings.seed)
    except InputError as error:
        raise InputError(f"config.training.{name}.{error}") from error


class _Validation:
    """Ranks validation people with the network as it stands.

    Args:
        job: the run.
        stage: the training stage, whose directions are ranked. What its own network does not see is embedded by the
            teacher, once.
    """

    def __init__(self, job: Job, stage: str):
        check_validation(job, stage)
        self._job, self._stage = job, stage
        self._directions = job.settings.directions(stage)
        self._learning = [name for name in MODALITIES if sees(job.settings.training[stage], name)]
        self._fixed = {}
        for name in {name for pair in self._directions for name in pair} - set(self._learning):
            weights = job.trained_encoder(name, "teacher")
            self._fixed[name] = job.compared("validation", name, "teacher", weights)
        self._comparison = job.comparison((stage, stage))

    def __call__(self, params: Any, batch_stats: Any) -> dict[str, float]:
        """{"eval/rgb_to_depth/mAP": ..., ...} of the directions and their mean "cross_modal", fractions of 1."""
        sets = dict(self._fixed)
        for name in self._learning:
            weights = encoder_weights(self._stage, name, params, batch_stats)
            sets[name] = self._job.compared("validation", name, self._stage, weights)
        return on_first(lambda: self._rank(sets))

    def _rank(self, sets: Mapping[str, Any]) -> dict[str, float]:
        scores = {
            f"{query}_to_{gallery}": as_results(self._comparison(sets, query, gallery))
            for query, gallery in self._directions
        }
        if len(scores) > 1:
            names = next(iter(scores.values()))
            scores["cross_modal"] = {name: float(np.mean([one[name] for one in scores.values()])) for name in names}
        return {f"eval/{key}/{name}": value for key, one in scores.items() for name, value in one.items()}
