"""Recordings instead of frames: one embedding per recording, and the three scenarios of TVRID.

TVRID (ICPR 2026, doi:10.5281/zenodo.17909410): overhead RGB-D cameras; query and gallery are passages, the embedding of
a passage is the mean over its frames. Pairs are always of different passage_name, and in

    same_cam_cross_passage   of the same camera
    up_down_cross_passage    one of the upward, one of the downward camera
    flat_vs_others           exactly one of the flat camera

AP is the mean of the precisions at the hits (step AP); queries without a positive are skipped; a track's score is the
mean over scenarios. The tracks are the modalities of the two files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import scores
from rgbd_reid_jax.metrics.bootstrap import intervals
from rgbd_reid_jax.metrics.dense import dense_ranks, matrix
from rgbd_reid_jax.metrics.embeddings import KEYS, Embeddings
from rgbd_reid_jax.metrics.protocols.base import Task, canonical_order, numbers
from rgbd_reid_jax.metrics.ranking import check_sides, multi_shot, shown_hits
from rgbd_reid_jax.metrics.ranks import Ranks

CAMERAS = {"flat": "flat", "upward": "upward", "downward": "downward"}
"""What the dataset calls the cameras that scenarios speak of."""
SCENARIOS = ("same_cam_cross_passage", "up_down_cross_passage", "flat_vs_others")
MAP = "mean over the three scenarios of the mean step AP of their queries"
CMC = "share of queries whose first correct passage has rank <= k, mean over the three scenarios"


def mean_of_frames(items: Embeddings, wanted_by: str = "a mean over frames") -> Embeddings:
    """One row per recording: the mean of its embeddings, not normalised again; frame_id is 0.

    Raises:
        InputError: no recording_id, or a recording whose frames differ in another label.
    """
    recording = items.column("recording_id", wanted_by)
    if not len(items):
        raise InputError(f"{items.source} holds no embeddings, so {wanted_by} has no recordings; give a file with some")
    order = canonical_order(items)  # a sum's last bits, too, depend on no order of the rows
    ordered = items.take(order[np.argsort(recording[order], kind="stable")])
    codes, start, count = np.unique(np.sort(recording), return_index=True, return_counts=True)
    columns: dict[str, Any] = {}
    for key in KEYS:
        column = getattr(ordered, key)
        if key in ("embedding", "gate") and column is not None:
            total = np.stack(
                [column[at : at + size].mean(0, dtype=np.float64) for at, size in zip(start, count, strict=True)]
            )
            columns[key] = total.astype(np.float32)
        elif key not in ("embedding", "gate", "modality", "frame_id") and column is not None:
            columns[key] = column[start]
            differs = np.flatnonzero(column != np.repeat(column[start], count))
            if len(differs):
                code = codes[np.searchsorted(start, differs[0], "right") - 1]
                raise InputError(
                    f"{items.source}: the frames of recording_id {code} differ in {key}; "
                    f"{wanted_by} needs recordings of one person, camera and outfit: number them apart"
                )
    return dataclasses.replace(ordered, **columns, frame_id=np.zeros(len(codes), np.int64))


def tvrid(task: Task) -> dict[str, Any]:
    """The numbers, means over the scenarios, with those of each under "scenarios"; parameters name the cameras."""
    query, gallery = (mean_of_frames(items, "protocol tvrid") for items in (task.query, task.gallery))
    check_sides(query, gallery)
    pairs = _pairs(query, gallery, task.parameters)
    block = np.arange(len(query)), matrix(query, gallery, task.metric)  # passages are few
    found: dict[str, Any] = {}
    values = []
    for name in SCENARIOS:
        ranks = dense_ranks([(*block, pairs[name])], query.person_id, gallery.person_id)
        found[name], of_queries = _scenario(ranks, query, gallery, name, task)
        values.append(of_queries)
    stacked = {key: np.stack([one[key] for one in values], axis=1) for key in values[0]}

    def mean(key: str) -> Any:
        return np.mean([scenario[key] for scenario in found.values()], axis=0)

    merged = numbers(
        mean("mAP"),
        mean("mAP_trapezoid"),
        mean("mINP"),
        mean("cmc"),
        num_query=len(query),
        num_query_skipped=int(np.isnan(stacked["mAP"]).all(1).sum()),
        num_query_absent=int((~np.isin(query.person_id, gallery.person_id)).sum()),
        num_gallery=len(gallery),
        tie_rate=mean("tie_rate"),
        intervals=intervals(stacked, query.person_id, seed=task.seed),
    )
    return {**merged, "scenarios": found}


def _scenario(
    ranks: Ranks, query: Embeddings, gallery: Embeddings, name: str, task: Task
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The numbers of one scenario, and what they are means of: float64 [Q], NaN where skipped."""
    first = scores.first_hit_rank(ranks)
    scored = first > 0
    if not scored.any():
        raise InputError(
            f"protocol tvrid: scenario {name} leaves none of the {len(query)} query passages a gallery passage of its "
            "person; check camera_name and passage_name, and the parameters flat, upward and downward"
        )
    hits = np.where(scored[:, None], first[:, None] <= np.arange(1, task.max_rank + 1), np.nan)
    values = multi_shot(ranks) | shown_hits(hits)
    found = numbers(
        values["mAP"][scored].mean(),
        values["mAP_trapezoid"][scored].mean(),
        values["mINP"][scored].mean(),
        scores.cmc(first, task.max_rank),
        num_query=len(query),
        num_query_skipped=int((~scored).sum()),
        num_query_absent=int((~np.isin(query.person_id, gallery.person_id)).sum()),
        num_gallery=len(gallery),
        tie_rate=scores.tie_rate(ranks),
        intervals=intervals(values, query.person_id, seed=task.seed),
    )
    return found, values


def _pairs(query: Embeddings, gallery: Embeddings, parameters: Any) -> dict[str, np.ndarray]:
    """`compared`, of cameras that are there."""
    camera, other_camera = (_camera_names(items) for items in (query, gallery))
    passage, other_passage = (items.column("passage_name", "protocol tvrid") for items in (query, gallery))
    names = np.union1d(camera, other_camera)
    for role in ("flat", "upward", "downward"):
        if str(parameters[role]) not in names:
            raise InputError(
                f"{query.source} and {gallery.source} hold no camera {parameters[role]!r} (but: "
                f"{', '.join(names[:8])}); save names as camera_name, or say which is meant with the parameter {role}"
            )
    return compared((camera, passage), (other_camera, other_passage), parameters)


def compared(
    query: tuple[np.ndarray, np.ndarray], gallery: tuple[np.ndarray, np.ndarray], parameters: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """bool [Q, G] per scenario: the pairs that it compares.

    Args:
        query: camera_name and passage_name of the query passages, text [Q] each.
        gallery: of the gallery passages, text [G] each.
        parameters: which camera is `flat`, `upward` and `downward`.
    """
    (camera, passage), (other_camera, other_passage) = query, gallery

    def one_of(role: str, items: np.ndarray) -> np.ndarray:
        return items == str(parameters[role])

    other = passage[:, None] != other_passage[None]
    up_down = one_of("upward", camera)[:, None] & one_of("downward", other_camera)[None]
    down_up = one_of("downward", camera)[:, None] & one_of("upward", other_camera)[None]
    return {
        "same_cam_cross_passage": other & (camera[:, None] == other_camera[None]),
        "up_down_cross_passage": other & (up_down | down_up),
        "flat_vs_others": other & (one_of("flat", camera)[:, None] != one_of("flat", other_camera)[None]),
    }


def _camera_names(items: Embeddings) -> np.ndarray:
    """Text [N]: camera_name, or the number of the camera where the file has no names."""
    return items.camera_id.astype(np.str_) if items.camera_name is None else items.camera_name
