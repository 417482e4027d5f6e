"""All stages by name, and the run that goes through some of them in order."""

import time
from collections.abc import Callable, Collection, Mapping

from rgbd_reid_jax.core.errors import OutOfMemory, memory_for, out_of_memory
from rgbd_reid_jax.core.progress import format_seconds, say
from rgbd_reid_jax.stages.evaluation import run_evaluation
from rgbd_reid_jax.stages.export import cpu_device, run_export
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.order import outdated_by, stands_on, training_order
from rgbd_reid_jax.stages.report import run_report
from rgbd_reid_jax.stages.training import check_batch_size, check_data, run_baseline, run_pair, run_student, run_teacher

STAGES: Mapping[str, Callable[[Job], int | None]] = {
    "teacher": run_teacher,
    "student": run_student,
    "baseline": run_baseline,
    "pair": run_pair,
    "evaluation": run_evaluation,
    "export": run_export,
    "report": run_report,
}


def check_devices(job: Job, stages: Collection[str]) -> None:
    """Raises InputError if a stage that is still to be done cannot be done with this process's devices."""
    for stage in stages:
        if job.workdir.finished(stage):
            continue
        if stage in job.settings.training:
            check_batch_size(job, stage)
        if stage == "export":
            cpu_device()


def run_stages(job: Job, stages: Collection[str]) -> None:
    """Runs stages in the configuration's order; those that are done are passed over.

    A stage that has to be done leaves later ones out of date (`outdated_by`): they are done again, now or, where
    `stages` lacks them, in a later run.
    """
    order = job.settings.stages
    known = training_order(order, job.settings.training)
    pending = [stage for stage in known if stage in stages and not job.workdir.finished(stage)]
    if pending and all(job.workdir.finished(one) for one in stands_on(pending[0], known)):
        for stage in pending:  # before the first one trains; where that lacks another, it says so itself
            check_data(job, stage)
    for stage in order:
        if stage not in stages:
            continue
        if job.workdir.finished(stage):
            say(stage, "already done")
            continue
        for later in outdated_by(stage, order, job.settings.training):
            if job.workdir.finished(later):
                say(later, f"out of date, as stage {stage} has to be done")
                job.workdir.reopen(later)
        began = time.perf_counter()
        step = _run(job, stage)
        seconds = time.perf_counter() - began
        job.workdir.finish(stage, seconds, step)
        say(stage, f"took {format_seconds(seconds)}")


def _run(job: Job, stage: str) -> int | None:
    """One stage.

    Raises:
        InputError: its devices have too little memory; an `OutOfMemory` where that is for a smaller batch to mend.
    """
    if stage not in job.settings.training:
        with memory_for(f"stage {stage}"):
            return STAGES[stage](job)
    try:
        return STAGES[stage](job)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(stage, job.settings.training[stage].batch_size) from error
