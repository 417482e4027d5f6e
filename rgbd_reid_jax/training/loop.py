"""The training loop of every stage.

Two invariants. The state after step n depends on the configuration, the data and n alone: batches are a
function of the position, random numbers of (key, step). On a CPU with the same number of cores and devices
that holds bit for bit; another number sums in another order, so it changes the rounding, and an
accelerator repeats itself as far as its own operations do. And no step waits for the host: the host hands out each
step while the one before is under way, and reads that one's figures only then. A step that is validated or saved is
waited for first, so nothing that is not finite is kept.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np
import optax

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.core.compiler import compiler_options
from rgbd_reid_jax.core.distributed import StopVote, place
from rgbd_reid_jax.core.errors import InputError, Interrupted
from rgbd_reid_jax.core.mesh import FSDP, replicated, shard_batch, shardings
from rgbd_reid_jax.core.progress import Progress, say
from rgbd_reid_jax.core.signals import StopRequest
from rgbd_reid_jax.data.frames import NOWHERE, Placed
from rgbd_reid_jax.data.pipeline import with_images
from rgbd_reid_jax.training.freeze import merge
from rgbd_reid_jax.training.objectives import Objective
from rgbd_reid_jax.training.record import Record
from rgbd_reid_jax.training.state import TrainState

Evaluate = Callable[[Any, Any], Mapping[str, float]]
Prepare = Callable[[Any, Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a stage trains and how often it looks up.

    Attributes:
        stage: name of the stage.
        steps: updates.
        images: in the global batch of a step.
        log_every: steps between two logged lines; a validation has one too.
        evaluate_every: steps between two validations, each with a checkpoint; the last step has one too.
        score: the validation figure that selects a checkpoint; "" takes the last one.
        patience: validations without a better score after which training ends early; 0 never does.
    """

    stage: str
    steps: int
    images: int
    log_every: int
    evaluate_every: int
    score: str
    patience: int = 0


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh | None = None
) -> Callable[..., Any]:
    """One update as a pure function: (state, batch, images on the devices, what is given, what is prepared) to (state,
    figures).

    On a mesh whose `fsdp` is above 1 it gathers the parameters of a state that lies as `core.mesh.shardings` says,
    and updates each part where it is.
    """

    def whole(tree: Any) -> Any:
        if mesh is None or mesh.shape[FSDP] == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, replicated(mesh))

    def parts(tree: Any) -> Any:
        if mesh is None or mesh.shape[FSDP] == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))

    def step(
        state: TrainState,
        batch: dict[str, jax.Array],
        placed: Placed = NOWHERE,
        given: Any = None,
        prepared: Any = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = with_images(batch, placed)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        frozen = merge(whole(state.frozen), prepared or {})

        def loss_fn(trainable: Any):
            return objective(merge(trainable, frozen), state.batch_stats, batch, key, given)

        (loss, (batch_stats, figures)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(whole(state.trainable))
        gradients = parts(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, {"loss": loss, "gradient_norm": optax.tree.norm(gradients), **figures}

    return step


def compiled_step(
    objective: Objective, optimizer: optax.GradientTransformation, state: TrainState, mesh: jax.sharding.Mesh
) -> Any:
    """`make_step` under jit: the state is donated, and the new one lies where it lay.

    Args:
        objective: what to minimise.
        optimizer: how.
        state: arrays or their shapes.
        mesh: all devices.
    """
    placed = shardings(state, mesh), replicated(mesh)
    step = make_step(objective, optimizer, mesh)
    return jax.jit(
        step, donate_argnums=0, out_shardings=placed, compiler_options=compiler_options(mesh.devices.flat[0])
    )


def train(
    plan: Plan,
    state: TrainState,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    batches: grain.IterDataset | grain.DatasetIterator,
    evaluate: Evaluate,
    checkpoints: Checkpoints,
    record: Record,
    mesh: jax.sharding.Mesh,
    placed: Placed = NOWHERE,
    given: Any = None,
    prepare: Prepare | None = None,
) -> TrainState:
    """Trains from the latest checkpoint, or from `state`, to the last step.

    Args:
        plan: length and cadence.
        state: the state before the first step.
        objective: what to minimise.
        optimizer: how.
        schedule: step to learning rate, for the log.
        batches: endless Grain dataset of this process's rows, or its iterator.
        evaluate: (params, batch_stats) to figures on validation people.
        checkpoints: where to go on from and where to save.
        record: where figures go; closed at the end.
        mesh: all devices.
        placed: images on the devices, where batches hold only their rows.
        given: what the objective gets beside each batch (a teacher's weights), a pytree on the devices.
        prepare: (params, batch_stats) to what the network computes from frozen parameters alone
            (`stages.step.preparation`); it is computed before the first step, and not saved.

    Returns:
        The state after the last step; checkpoints hold it and, if another, the best one.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint of the last finished step is saved.
        InputError: the loss or its gradient is not finite, or a validation fails; the last good checkpoint stays.
    """
    iterator = iter(batches)
    state, start = _latest(checkpoints, state, iterator, mesh)
    record.rewind(plan.stage, start)
    step_fn = compiled_step(objective, optimizer, state, mesh)
    prepared = {}
    if prepare:
        weights = merge(state.trainable, state.frozen), state.batch_stats
        prepared = jax.jit(prepare, out_shardings=replicated(mesh))(*weights)
    log = _Log(plan, start, record)
    vote, stopping = StopVote(mesh), False
    with StopRequest() as stop, record:
        for done in range(start + 1, plan.steps + 1):
            if _out_of_patience(plan, done - 1, checkpoints):
                break
            state, figures = step_fn(state, shard_batch(log.waiting.next(iterator), mesh), placed, given, prepared)
            log.settle()  # one step ahead of the devices, no more: batches would pile up on them
            evaluating = done % plan.evaluate_every == 0 or done == plan.steps
            due = evaluating or done % plan.log_every == 0
            log.add(done, figures, schedule(done - 1) if due else None)
            if done == start + 1:
                jax.block_until_ready(state.step)
                log.progress.restart(done)  # the rate is that of training steps, without compilation
                log.waiting.restart()
            if evaluating:
                log.settle()
                with log.progress.paused():
                    _validate(plan, done, state, evaluate, checkpoints, record, iterator)
                log.waiting.restart()
            stopping = vote(stop.requested)
            if stopping:
                log.settle()
                checkpoints.save(done, state, iterator.get_state())
                break
        checkpoints.wait()
        stopping = stopping or vote.last(stop.requested)
    if stopping:
        what = f"step {int(state.step)}/{plan.steps} of stage {plan.stage}, which is saved"
        raise Interrupted(f"stopped by {stop.name or 'another process'} after {what}; run the same command to go on")
    return state


def _out_of_patience(plan: Plan, done: int, checkpoints: Checkpoints) -> bool:
    """Whether the last `patience` validations, all that there were since the best one, had no better score.

    It follows from the checkpoints alone, so a run that goes on ends at the same step.
    """
    if not plan.patience or done % plan.evaluate_every:
        return False
    checkpoints.wait()
    best = checkpoints.best_step()
    if best is None or done - best < plan.patience * plan.evaluate_every:
        return False
    say(plan.stage, f"ends early at step {done}: no better {plan.score} since step {best}")
    return True


class DataWait:
    """The share of its time that the loop waits for the next batch, since the last line."""

    def __init__(self):
        self.restart()

    def next(self, iterator: Iterator[Any]) -> Any:
        """The iterator's next batch; the time until it is there counts as waiting."""
        began = time.perf_counter()
        batch = next(iterator)
        self._waited += time.perf_counter() - began
        return batch

    def share(self) -> float:
        """From 0 to 1, since the start."""
        return self._waited / max(time.perf_counter() - self._began, 1e-9)

    def restart(self) -> None:
        """Measures from now on."""
        self._began, self._waited = time.perf_counter(), 0.0


def _latest(
    checkpoints: Checkpoints, state: TrainState, iterator: grain.DatasetIterator, mesh: jax.sharding.Mesh
) -> tuple[TrainState, int]:
    """The latest checkpoint's state and step, the iterator set to its position; else a copy of `state`, and 0."""
    copy = jax.tree.map(np.array, state)  # to be donated; the caller's stays. On the host: it may fill a device
    state = place(copy, shardings(copy, mesh), "initial state")
    step = checkpoints.latest_step() or 0
    if step:
        state, position = checkpoints.restore(step, state)
        iterator.set_state(position)
    return state, step


class _Log:
    """Figures of the steps, read late: the devices then have the next step to do.

    Attributes:
        progress: prints lines.
        waiting: measures the wait for batches.
    """

    def __init__(self, plan: Plan, start: int, record: Record):
        self.progress = Progress(plan.stage, plan.steps, start=start, items_per_unit=plan.images)
        self.waiting = DataWait()
        self._plan, self._record = plan, record
        self._pending: tuple[int, Mapping[str, Any], Any] | None = None

    def add(self, done: int, figures: Mapping[str, Any], rate: Any) -> None:
        """A step that was handed to the devices; its learning rate where its line is due, else None.

        A device may have the rate to compute as well: it is handed over before the next step, so it waits for none.
        """
        self._pending = done, figures, rate

    def settle(self) -> None:
        """Waits for the step that was added last, unless it is settled, and writes its line if that is due.

        Raises:
            InputError: the step went wrong; none is saved before it passes here.
        """
        if self._pending is None:
            return
        (done, figures, rate), self._pending = self._pending, None
        jax.block_until_ready(figures)
        for name in ("loss", "gradient_norm"):
            value = float(np.asarray(figures[name]))
            if not math.isfinite(value):
                raise InputError(
                    f"the {name.replace('_', ' ')} is {value} at step {done} of stage {self._plan.stage}; "
                    "lower its learning rate and start again in another workdir"
                )
        if rate is not None:
            self._write(done, {**figures, "learning_rate": rate})

    def _write(self, done: int, figures: Mapping[str, Any]) -> None:
        values: dict[str, float] = {name: float(np.asarray(value)) for name, value in figures.items()}
        shown: dict[str, Any] = {
            name: value
            for name, value in values.items()
            if name not in ("gradient_norm", "learning_rate") and "/" not in name
        }
        speed = self.progress.rate(done)
        if speed is not None:
            share = self.waiting.share()
            values |= {"images_per_s": speed, "data_wait": share}
            shown["data_wait"] = f"{100 * share:.1f} %"
        self.waiting.restart()
        self.progress.update(done, **shown)
        self._record.write(self._plan.stage, done, values)


def _validate(
    plan: Plan,
    done: int,
    state: TrainState,
    evaluate: Evaluate,
    checkpoints: Checkpoints,
    record: Record,
    iterator: grain.DatasetIterator,
) -> None:
    try:
        figures = evaluate(merge(state.trainable, state.frozen), state.batch_stats)
    except InputError as error:  # an update can spoil weights whose loss was finite
        error.args = (f"validation at step {done} of stage {plan.stage}: {error}",)
        raise
    record.write(plan.stage, done, figures)
    if plan.score and plan.score not in figures:
        raise InputError(f"training.{plan.stage}.score={plan.score!r} is unknown; choose one of: {', '.join(figures)}")
    score = figures[plan.score] if plan.score else None
    checkpoints.save(done, state, iterator.get_state(), score)
