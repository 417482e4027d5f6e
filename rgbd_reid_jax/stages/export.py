"""The export stage: both encoders as StableHLO, checked against the live model in a clean process.

The live model and the program are compared on the CPU, whatever devices trained the model: two platforms
round differently, and a second process may not open an accelerator that the first one holds.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.distributed import on_first
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.evaluation.embed import RAW_IMAGES
from rgbd_reid_jax.export.stablehlo import export_encoder
from rgbd_reid_jax.stages.job import Job

_RELATIVE_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
_ROWS = 7


def run_export(job: Job) -> None:
    """Exports, re-loads and compares; only programs that passed come into the export folder, each with its card.

    Raises:
        InputError: the evaluation stage has not been run, or an exported encoder differs from the live model
            by more than `tolerance`.
    """
    job.workdir.require("evaluation")
    for stage in sorted(set(job.settings.encoders.values())):  # all processes in the same order
        job.trained(stage)  # a checkpoint is read by all processes together
    _ = job.dataset
    on_first(lambda: _export(job))


def _export(job: Job) -> None:
    # Here, so that training need not wait for matplotlib.
    from rgbd_reid_jax.reporting.report import INTENDED_USE

    results = job.workdir.read_results()["results"]
    for modality, stage in job.settings.encoders.items():
        (job.workdir.export / f"{modality}.stablehlo").unlink(missing_ok=True)
        (job.workdir.export / f"{modality}.json").unlink(missing_ok=True)
        params, batch_stats = job.trained_encoder(modality, stage)
        frames = job.frames_of(job.settings.evaluation.splits[-1], modality)
        images = frames.gather(np.arange(min(_ROWS, len(frames))), RAW_IMAGES[modality])
        facts = {
            "method": job.settings.method,
            "dataset": job.dataset.info.full_name,
            "results": results,
            "intended_use": INTENDED_USE,
            "licence": "Apache-2.0; weights trained on a dataset also follow that dataset's licence",
        }
        encoder = job.encoder(modality, stage)
        scratch = job.workdir.scratch
        shutil.rmtree(scratch, ignore_errors=True)
        size = images[RAW_IMAGES[modality][0]].shape[1:3]
        card = export_encoder(encoder, params, batch_stats, size, scratch, job.settings.export.platforms, facts)
        live = jax.device_get(jax.jit(encoder.answer)(*jax.device_put((params, batch_stats, images), cpu_device())))
        allowed = tolerance(encoder.model.compute_dtype, live["embedding"])
        check = _compare(card, {**images, **live})
        difference = check["max_abs_difference"]
        if not difference <= allowed:
            raise InputError(
                f"the exported {modality} encoder differs from the live model by {difference:.1e} "
                f"(allowed {allowed:.1e}); report this with your jax version"
            )
        files.write_json(card, {**files.read_json(card), "check": {**check, "tolerance": allowed}})
        _publish(card, job.workdir.export)
        program = job.workdir.export / f"{modality}.stablehlo"
        mib = program.stat().st_size / 2**20
        met = f"in a clean process {difference:.1e} from the live model, {allowed:.1e} allowed"
        say("export", f"{program} ({mib:.1f} MiB), {met}")


def cpu_device() -> Any:
    """The device on which programs are compared.

    Raises:
        InputError: JAX was told to leave the CPU out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise InputError(
            f"stage export checks its programs on the CPU, which JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} "
            "leaves out; add ',cpu' to it"
        ) from error


def tolerance(compute_dtype: str, embeddings: np.ndarray) -> float:
    """Largest absolute difference that rounding explains.

    Args:
        compute_dtype: the network's.
        embeddings: float32 [B, D] of the live model, whose largest number gives the scale, at least 1.
    """
    return _RELATIVE_TOLERANCE[compute_dtype] * max(1.0, float(np.max(np.abs(embeddings))))


def _publish(card: pathlib.Path, folder: pathlib.Path) -> None:
    """Moves a checked card and its program into `folder`; the card first: without its program it says so when used."""
    folder.mkdir(parents=True, exist_ok=True)
    program = card.with_suffix(".stablehlo")
    for path in (card, program):
        os.replace(path, folder / path.name)
    card.parent.rmdir()


def _compare(card: pathlib.Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """Runs `rgbd_reid_jax.export.check` in a process of its own, on the CPU."""
    inputs = card.with_name("inputs.npz")
    np.savez(inputs, **arrays)
    command = [sys.executable, "-m", "rgbd_reid_jax.export.check", str(card), str(inputs)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    inputs.unlink()
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"the exported {card.stem} encoder cannot be run in a clean process: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])
