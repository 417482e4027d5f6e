"""The evaluation protocol against the labels, before any training: it must leave queries something to find."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rgbd_reid_jax.evaluation.embed import labelled
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS
from rgbd_reid_jax.metrics.galleries import check_galleries
from rgbd_reid_jax.metrics.protocols.passages import mean_of_frames
from rgbd_reid_jax.stages.job import Job


def check_validation(job: Job, stage: str) -> None:
    """Raises InputError if a training stage's validation, or the evaluation after it, could score no query.

    Args:
        job: the run.
        stage: the training stage.
    """
    _check(job, "validation", job.settings.directions(stage))
    if "evaluation" in job.settings.stages:
        check_evaluation(job)


def check_evaluation(job: Job) -> None:
    """Raises InputError if the evaluation could score no query of a split and direction."""
    for split in job.settings.evaluation.splits:
        _check(job, split, DIRECTIONS.values())


def _check(job: Job, split: str, directions: Iterable[tuple[str, str]]) -> None:
    labels = functools.cache(lambda modality: _labels(job, split, modality))
    for query, gallery in directions:
        where = f"{job.dataset.info.full_name} {split} {query}_to_{gallery}"
        check_galleries(labels(query), labels(gallery), job.settings.evaluation.protocol, where)


def _labels(job: Job, split: str, modality: str) -> Mapping[str, Any]:
    """The labels of what is ranked: of frames, or of recordings with `evaluation.multi_frame`."""
    frames = job.frames_of(split, modality)
    if not job.settings.evaluation.multi_frame:
        return frames.labels
    nothing = np.zeros((len(frames.labels["person_id"]), 1), np.float32)
    items = dataclasses.replace(labelled(nothing, frames, modality), source=f"{split} {modality}")
    return vars(mean_of_frames(items, "evaluation.multi_frame"))
