"""What to say where a training stage was too large for its devices: the batch that fits them."""

import dataclasses
import math

import numpy as np

from rgbd_reid_jax.core import distributed
from rgbd_reid_jax.core.errors import OutOfMemory
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.planning.measure import memory_of
from rgbd_reid_jax.planning.program import TooLarge, assumed_data, batch_unit, compile_step, least_batch, share_of
from rgbd_reid_jax.planning.search import largest
from rgbd_reid_jax.planning.topology import attached
from rgbd_reid_jax.stages.job import Job

_NAME = "too large"
_TOGETHER_MS = 5000  # where all processes lack memory, the last one does so no later than this after the first


def message(job: Job, error: OutOfMemory) -> str:
    """The error's text, and the largest batch that fits as far as it was tried; in all processes the same.

    Each try compiles the stage's step. Of several processes the first one does, for its own devices with their share of
    the batch, since a program for all devices may need all processes to compile it; what mining keeps of the pairs of
    all rows, some bytes each, is then counted for that share alone. No number is told where the devices' memory is not
    known, where parameters are shared out among devices of several processes, or where not all processes lack memory
    at about the same time.
    """
    devices = job.mesh.local_devices
    limit = memory_of(devices)
    if limit is None or len(devices) % job.settings.mesh.fsdp or not distributed.all_come(_NAME, _TOGETHER_MS):
        return str(error)
    return distributed.on_first(lambda: _with_batch(job, error, limit), _NAME)


def _with_batch(job: Job, error: OutOfMemory, limit: float) -> str:
    stage, settings = error.stage, job.settings
    wanted, frames = settings.training[stage], job.training_frames(stage)
    data = assumed_data(settings, len(np.unique(frames.labels["person_id"])), len(frames))
    here = dataclasses.replace(attached(), devices=job.mesh.local_devices)
    share = job.mesh.size // len(here.devices)
    part = share_of(settings, stage, share)
    unit = batch_unit(settings, stage, job.mesh.size)
    grouped = wanted.sampling.name != "shuffle"
    if grouped:
        unit = math.lcm(unit, wanted.sampling.frames)
    say(stage, "is too large for the devices; looking for a batch that fits")

    def fits(batch: int) -> bool:
        if batch >= error.batch_size:
            return False
        try:
            program, _ = compile_step(part, stage, here, batch // share, data)
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
