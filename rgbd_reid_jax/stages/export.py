"""The export stage: both encoders as StableHLO, checked against the live model in a clean process."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES
from rgbd_reid_jax.export.stablehlo import export_encoder
from rgbd_reid_jax.stages.job import Job

TOLERANCE = 1e-4
_ROWS = 7
_USE = (
    "Finding consenting people again across RGB and depth cameras, for research and robotics. Not for "
    "identifying people who did not agree to it; respect the law on biometric data where you are."
)


def run_export(job: Job) -> None:
    """Exports, re-loads and compares.

    Raises:
        InputError: an exported encoder differs from the live model by more than `TOLERANCE`.
    """
    results = files.read_json(job.workdir.results)["results"] if job.workdir.results.exists() else None
    for modality, stage in job.settings.encoders.items():
        params, batch_stats = job.trained(stage)
        split = job.settings.evaluation.splits[-1]
        images = job.frames(split).gather(np.arange(min(_ROWS, len(job.frames(split)))), RAW_IMAGES[modality])
        size = images[RAW_IMAGES[modality][0]].shape[1:3]
        facts = {
            "method": job.settings.method,
            "dataset": job.dataset.info.full_name,
            "results": results,
            "intended_use": _USE,
            "licence": "Apache-2.0; weights trained on a dataset also follow that dataset's licence",
        }
        encoder = job.encoder(modality)
        card = export_encoder(
            encoder, params, batch_stats, size, job.workdir.export, job.settings.export.platforms, facts
        )
        live = np.asarray(encoder(params, batch_stats, images))
        check = _compare(card, {**images, "embedding": live})
        if not check["max_abs_difference"] <= TOLERANCE:
            raise InputError(
                f"{card} differs from the live model by {check['max_abs_difference']} (allowed {TOLERANCE}); "
                "report this with your jax version"
            )
        files.write_json(card, {**files.read_json(card), "check": {**check, "tolerance": TOLERANCE}})
        program = card.with_suffix(".stablehlo")
        say(
            "export",
            f"{program} ({program.stat().st_size / 2**20:.1f} MiB), in a clean process within "
            f"{check['max_abs_difference']:.1e} of the live model",
        )


def _compare(card: pathlib.Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """Runs `rgbd_reid_jax.export.check` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = pathlib.Path(folder) / "inputs.npz"
        np.savez(inputs, **arrays)
        command = [sys.executable, "-m", "rgbd_reid_jax.export.check", str(card), str(inputs)]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{card} cannot be run in a clean process: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])
