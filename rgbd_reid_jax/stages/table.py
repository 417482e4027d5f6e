"""All stages by name, and the run that goes through some of them in order."""

import time
from collections.abc import Callable, Mapping

from rgbd_reid_jax.core.progress import format_seconds, say
from rgbd_reid_jax.stages.evaluation import run_evaluation
from rgbd_reid_jax.stages.export import run_export
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.report import run_report
from rgbd_reid_jax.stages.training import run_one_stream, run_student, run_teacher

STAGES: Mapping[str, Callable[[Job], None]] = {
    "teacher": run_teacher,
    "student": run_student,
    "one_stream": run_one_stream,
    "evaluation": run_evaluation,
    "export": run_export,
    "report": run_report,
}


def run_stages(job: Job, stages: tuple[str, ...]) -> None:
    """Runs stages in order; those that are done are passed over."""
    for stage in stages:
        if job.workdir.finished(stage):
            say(stage, "already done")
            continue
        began = time.perf_counter()
        STAGES[stage](job)
        seconds = time.perf_counter() - began
        job.workdir.finish(stage, seconds)
        say(stage, f"took {format_seconds(seconds)}")
