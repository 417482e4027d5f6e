"""Seconds from the start of a process (BENCHMARK_BEGAN, Unix time) to the main job's first training batch.

What the job does before: imports, settings, checks of the dataset's files, labels. The network is made meanwhile.
"""

import json
import os
import pathlib
import sys
import tempfile
import time

from rgbd_reid_jax.core.loading import without_collection

with without_collection():  # as main does
    from rgbd_reid_jax import cli
    from rgbd_reid_jax.data.frames import identities
    from rgbd_reid_jax.data.pipeline import training_batches
    from rgbd_reid_jax.evaluation.embed import RAW_IMAGES
    from rgbd_reid_jax.stages.checks import read_settings
    from rgbd_reid_jax.stages.job import Job
    from rgbd_reid_jax.stages.table import STAGES
    from rgbd_reid_jax.stages.workdir import Workdir

config = cli._load("configs/distill.py").to_dict()
config["dataset"]["cache"] = sys.argv[1]
with tempfile.TemporaryDirectory() as folder, Workdir(pathlib.Path(folder)) as workdir:
    job = Job(read_settings(config, tuple(STAGES)), workdir, config)
    frames = job.training_frames("teacher")
    labels, _ = identities(frames.labels["person_id"])
    images = RAW_IMAGES["depth"]
    placed = frames.placed(images, job.mesh)
    columns = {"identity": labels}
    batches = training_batches(frames, images=images, columns=columns, batch_size=64, seed=0, placed=placed)
    next(iter(batches))
    print(json.dumps({"seconds": time.time() - float(os.environ["BENCHMARK_BEGAN"])}))
