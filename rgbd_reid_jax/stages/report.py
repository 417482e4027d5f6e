"""The report stage: `report/index.html` from what the other stages left."""

import numpy as np

from rgbd_reid_jax.core.distributed import on_first
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.stages.job import Job


def run_report(job: Job) -> None:
    """Writes the HTML report.

    Raises:
        InputError: the evaluation stage has not been run.
    """
    job.workdir.require("evaluation")
    _ = job.dataset  # all processes open it together
    on_first(lambda: _write(job))


def _write(job: Job) -> None:
    # Here, so that training need not wait for matplotlib.
    from rgbd_reid_jax.reporting.report import Frames, write_report

    split = job.settings.evaluation.splits[-1]
    sets = {modality: Embeddings.load(job.workdir.embeddings(split, modality)) for modality in job.settings.encoders}
    images: dict[str, np.ndarray] = {}
    for modality, names in RAW_IMAGES.items():
        frames = job.frames_of(split, modality)
        images |= frames.gather(np.arange(len(frames)), names)
    write_report(
        job.workdir.report.parent,
        title=f"{job.settings.method} on {job.dataset.info.full_name}",
        results=job.workdir.read_results(),
        config=job.config,
        metrics=job.record.read(),
        query_sets=sets,
        frames=Frames(images["rgb"], images["depth"], images["mask"]),
        protocol=job.settings.evaluation.protocol,
    )
    say("report", f"wrote {job.workdir.report}")
