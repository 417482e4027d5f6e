"""Embedding extraction of the main job: time against the number of frames."""

import json
import math
import pathlib
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

from rgbd_reid_jax import cli
from rgbd_reid_jax.data.frames import subset
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.stages.workdir import Workdir


def measure(shares: Sequence[float], repeats: int) -> str:
    """Seconds, the least of `repeats` turns, for each share of the training split, as JSON."""
    config = cli.configuration(["--config=configs/distill.py"])
    with tempfile.TemporaryDirectory() as folder, Workdir(pathlib.Path(folder)) as workdir:
        job = Job(read_settings(config, tuple(STAGES)), workdir, config)
        size = job.settings.input
        weights = job.settings.network(None).init(jax.random.key(0), size.height, size.width)
        embedder, frames = job.embedder("depth", "teacher"), job.frames("train")
        parts = [subset(frames, np.arange(len(frames)) < share * len(frames)) for share in shares]
        least = [math.inf] * len(parts)
        for turn in range(repeats + 1):  # the first one decodes and compiles
            for index, part in enumerate(parts):
                began = time.perf_counter()
                embedder(*weights, part)
                if turn:
                    least[index] = min(least[index], time.perf_counter() - began)
    return json.dumps([{"frames": len(part), "seconds": seconds} for part, seconds in zip(parts, least, strict=True)])
