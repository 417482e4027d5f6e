"""Optimizers and learning-rate schedules by name."""

import dataclasses

import optax

from rgbd_reid_jax.core.errors import InputError

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "late_decay", "one_cycle")


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer.

    Attributes:
        name: "sgd" (Nesterov momentum 0.9, weight decay added to the gradient as PyTorch does: the
            paper's), "adam" (likewise with weight decay in the gradient; of the paper's triplet teacher) or "adamw"
            (weight decay apart).
        learning_rate: the peak.
        weight_decay: coefficient.
        schedule: "constant"; "step" (times 0.1 every `decay_steps`, the paper's); "late_decay" (constant up to
            `decay_steps`, then exponentially down to a thousandth at the end; of the paper's triplet teacher);
            "one_cycle" (linear warm-up over 15 % of the steps, then cosine to zero).
        decay_steps: period of "step", start of "late_decay".
        clip_norm: largest global norm of the gradient; 0 turns clipping off.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "constant"
    decay_steps: int = 0
    clip_norm: float = 0.0


def make_schedule(spec: OptimizerSpec, steps: int) -> optax.Schedule:
    """Step to learning rate.

    Raises:
        InputError: unknown schedule, "step" without a period, or "late_decay" that starts outside the run.
    """
    if spec.schedule == "constant":
        return optax.constant_schedule(spec.learning_rate)
    if spec.schedule == "step":
        if spec.decay_steps < 1:
            raise InputError(f"optimizer.decay_steps={spec.decay_steps} must be positive for schedule 'step'")
        return optax.exponential_decay(spec.learning_rate, spec.decay_steps, 0.1, staircase=True)
    if spec.schedule == "late_decay":
        if not 1 <= spec.decay_steps < steps:
            raise InputError(
                f"optimizer.decay_steps={spec.decay_steps} must be from 1 to {steps - 1} for schedule 'late_decay', "
                f"which has {steps} steps"
            )
        return optax.exponential_decay(
            spec.learning_rate, steps - spec.decay_steps, 1e-3, transition_begin=spec.decay_steps
        )
    if spec.schedule == "one_cycle":
        warm_up = max(1, round(0.15 * steps))
        return optax.warmup_cosine_decay_schedule(
            spec.learning_rate / 25, spec.learning_rate, warm_up, max(steps, warm_up + 1)
        )
    raise InputError(f"optimizer.schedule={spec.schedule!r} is unknown; choose one of: {', '.join(SCHEDULES)}")


def make_optimizer(spec: OptimizerSpec, steps: int) -> optax.GradientTransformation:
    """The optimizer for a run of `steps` updates.

    Raises:
        InputError: unknown name or schedule.
    """
    schedule = make_schedule(spec, steps)
    clip = [optax.clip_by_global_norm(spec.clip_norm)] if spec.clip_norm > 0 else []
    if spec.name == "sgd":
        decay = optax.add_decayed_weights(spec.weight_decay)
        return optax.chain(*clip, decay, optax.sgd(schedule, momentum=0.9, nesterov=True))
    if spec.name == "adam":
        return optax.chain(*clip, optax.add_decayed_weights(spec.weight_decay), optax.adam(schedule))
    if spec.name == "adamw":
        return optax.chain(*clip, optax.adamw(schedule, weight_decay=spec.weight_decay))
    raise InputError(f"optimizer.name={spec.name!r} is unknown; choose one of: {', '.join(OPTIMIZERS)}")
