"""The evaluation stage: embeddings of both modalities, every direction ranked, `results.json`."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.distributed import on_first
from rgbd_reid_jax.core.modalities import MODALITIES
from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.evaluation.compare import Comparison
from rgbd_reid_jax.evaluation.results import SCHEMA, environment, rank_directions
from rgbd_reid_jax.stages.galleries import check_evaluation
from rgbd_reid_jax.stages.job import Job, fingerprint


def run_evaluation(job: Job) -> None:
    """Embeds the splits, ranks them, and writes the results of the test people."""
    check_evaluation(job)
    settings = job.settings
    comparison = job.comparison((settings.encoders["rgb"], settings.encoders["depth"]))
    ranked = {split: _ranked(job, split, comparison) for split in settings.evaluation.splits}
    on_first(lambda: _write(job, ranked))


def _ranked(job: Job, split: str, comparison: Comparison) -> dict[str, Any]:
    """The scores of one split, whose embeddings are saved; its maps, where there are any, do not outlive this."""
    sets = {modality: job.test_set(split, modality) for modality in MODALITIES}

    def save_and_rank() -> dict[str, Any]:
        for modality, one in sets.items():
            one.embeddings.save(job.workdir.embeddings(split, modality))
        return rank_directions(sets, comparison, f"rank {split}")

    return on_first(save_and_rank)


def _write(job: Job, ranked: Mapping[str, Mapping[str, Any]]) -> None:
    settings = job.settings
    last = settings.evaluation.splits[-1]
    people = {split: len(np.unique(job.frames(split).labels["person_id"])) for split in settings.evaluation.splits}
    content = {
        "schema": SCHEMA,
        "method": settings.method,
        "seed": settings.seed,
        "dataset": job.dataset.info.full_name,
        "dataset_fingerprint": fingerprint(job.dataset),
        "split": last,
        "protocol": settings.evaluation.protocol,
        "multi_frame": settings.evaluation.multi_frame,
        "gate": settings.gate(settings.encoders["rgb"]).kind,
        "people": people,
        **ranked[last],
        "other_splits": {split: ranked[split]["results"] for split in settings.evaluation.splits[:-1]},
        "seconds": job.workdir.seconds(),
        "environment": {**environment(), "command": " ".join(sys.argv)},
    }
    files.write_json(job.workdir.results, content)
    say("evaluation", f"wrote {job.workdir.results}")
