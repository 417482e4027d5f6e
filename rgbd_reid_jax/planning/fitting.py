"""What to say where a training stage was too large for its devices: the batch that fits them."""

import math

import numpy as np

from rgbd_reid_jax.core import distributed
from rgbd_reid_jax.core.errors import OutOfMemory
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.planning.measure import memory_of
from rgbd_reid_jax.planning.program import TooLarge, assumed_data, batch_unit, compile_step, least_batch
from rgbd_reid_jax.planning.search import largest
from rgbd_reid_jax.planning.topology import attached
from rgbd_reid_jax.stages.job import Job


def message(job: Job, error: OutOfMemory) -> str:
    """The error's text, and the largest batch that fits as far as it was tried.

    Each try compiles the stage's step for the devices of this run. Several processes are told no number, since a
    compilation that one of them does alone may wait for the others for ever.
    """
    stage, settings = error.stage, job.settings
    limit = memory_of(job.mesh.local_devices)
    if distributed.count() > 1 or limit is None:
        return str(error)
    wanted, frames = settings.training[stage], job.training_frames(stage)
    data = assumed_data(settings, len(np.unique(frames.labels["person_id"])), len(frames))
    where = attached()
    unit = batch_unit(settings, stage, job.mesh.size)
    grouped = wanted.sampling.name != "shuffle"
    if grouped:
        unit = math.lcm(unit, wanted.sampling.frames)
    say(stage, "is too large for the devices; looking for a batch that fits")

    def fits(batch: int) -> bool:
        if batch >= error.batch_size:
            return False
        try:
            program, _ = compile_step(settings, stage, where, batch, data)
        except TooLarge:
            return False
        say(stage, f"a batch of {batch} takes {program.peak / 1e6:.1f} of {limit / 1e6:.1f} MB a device")
        return program.peak <= limit

    found, refused = largest(fits, unit, 0, error.batch_size // 2, least_batch(settings, stage))
    if not found:
        return f"{error}; not even a batch of {refused} fits, so try --config.model.remat=True or a larger mesh.fsdp"
    mend = f"--config.training.{stage}.batch_size={found}"
    if grouped:
        mend += f" --config.training.{stage}.sampling.people={found // wanted.sampling.frames}"
    return f"{error}; by the compiler's count a batch of {found} fits: {mend}"
