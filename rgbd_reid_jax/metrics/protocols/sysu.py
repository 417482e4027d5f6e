"""SYSU-MM01: infrared queries, visible gallery of drawn images, the mean of several draws.

Wu, Zheng, Yu, Gong, Lai, RGB-Infrared Cross-Modality Person Re-Identification, ICCV 2017, doi:10.1109/ICCV.2017.575.
Queries are all images of the infrared cameras 3 and 6. The gallery of one trial holds `shots` images of each person
from each visible camera: 1, 2, 4, 5 ("all" search) or 1, 2 ("indoor"). Cameras 2 and 3 look at one place, so a query of
camera 3 does not see camera 2. CMC is counted over persons: a person stands where its nearest image stands.

Deviation: the official MATLAB list of permutations is not reproduced; images are drawn from a seed (as in AGW's code).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import scores
from rgbd_reid_jax.metrics.bootstrap import intervals
from rgbd_reid_jax.metrics.dense import BLOCK_NUMBERS, dense_ranks, pairwise
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.protocols.base import Task, canonical_order, numbers
from rgbd_reid_jax.metrics.ranking import check_sides, shown_hits

CMC = "over persons, each at the rank of its nearest image: mean over trials"
_QUERY_CAMERAS = (3, 6)
_GALLERY_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
_SAME_PLACE = (3, 2)  # query camera, gallery camera it does not see


def sysu_mm01(task: Task) -> dict[str, Any]:
    """The numbers with parameters `search` ("all" or "indoor"), `trials` and `shots`."""
    search, trials, shots = (task.parameters[name] for name in ("search", "trials", "shots"))
    if search not in _GALLERY_CAMERAS:
        raise InputError(
            f"protocol sysu_mm01: search={search!r} is unknown; choose one of {', '.join(_GALLERY_CAMERAS)}"
        )
    query = _of_cameras(task.query, _QUERY_CAMERAS, "query")
    gallery = _of_cameras(task.gallery, _GALLERY_CAMERAS[search], "gallery")
    check_sides(query, gallery)
    gallery = gallery.take(canonical_order(gallery, "camera_id"))
    rng = np.random.default_rng(task.seed)
    per_trial = []
    for _ in range(trials):
        drawn = gallery.take(_draw(gallery, shots, rng))
        per_trial.append((*_trial(query, drawn, task.metric), len(drawn)))
    ap, trapezoid, inp, first, tie_rates, sizes = (np.array(column) for column in zip(*per_trial, strict=True))
    absent = ~np.isin(query.person_id, gallery.person_id)
    scored = first[0] > 0  # a person's cameras are in every draw, so all trials skip the same queries
    if not scored.any():
        why = "protocol sysu_mm01 (queries of camera 3 do not see camera 2) leaves none of the"
        if absent.all():
            why = f"persons of {query.source} do not appear in {gallery.source}: none of the"
        raise InputError(f"{why} {len(query)} queries a gallery item of its person; mend the split")
    ranks = np.arange(1, task.max_rank + 1)
    hits = np.where(scored[:, None], (first[..., None] <= ranks).mean(0), np.nan)
    ap, trapezoid, inp = (values.mean(0) for values in (ap, trapezoid, inp))
    return numbers(
        ap[scored].mean(),
        trapezoid[scored].mean(),
        inp[scored].mean(),
        hits[scored].mean(0),
        num_query=len(query),
        num_query_skipped=int((~scored).sum()),
        num_query_absent=int(absent.sum()),
        num_gallery=int(sizes[0]),
        tie_rate=float(tie_rates.mean()),
        intervals=intervals(
            {"mAP": ap, "mAP_trapezoid": trapezoid, "mINP": inp} | shown_hits(hits), query.person_id, seed=task.seed
        ),
    )


def _of_cameras(items: Embeddings, cameras: tuple[int, ...], side: str) -> Embeddings:
    rows = np.isin(items.camera_id, cameras)
    if not rows.any():
        found = ", ".join(map(str, np.unique(items.camera_id)[:8]))
        raise InputError(
            f"{items.source} holds no image of the {side} cameras {', '.join(map(str, cameras))} (its camera_id: "
            f"{found}); number the cameras as SYSU-MM01 does: 1, 2, 4, 5 visible, 3 and 6 infrared"
        )
    return items.take(rows)


def _draw(gallery: Embeddings, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `shots` different images (or all, if fewer) per person and camera of a gallery in that order."""
    pairs = np.stack([gallery.person_id, gallery.camera_id], 1)
    _, start, count = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    return np.concatenate(
        [at + np.sort(rng.permutation(size)[:shots]) for at, size in zip(start.tolist(), count.tolist(), strict=True)]
    )


def _trial(query: Embeddings, gallery: Embeddings, metric: str):
    """AP, trapezoid AP, INP and rank among persons, [Q] each, and the tie rate of one drawn gallery."""
    first = np.zeros(len(query), np.int64)
    persons, start = np.unique(gallery.person_id, return_index=True)
    place = np.minimum(np.searchsorted(persons, query.person_id), len(persons) - 1)
    hidden = gallery.camera_id == _SAME_PLACE[1]

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for rows, distance in pairwise(query, gallery, metric).row_blocks(BLOCK_NUMBERS):
            visible = ~((query.camera_id[rows] == _SAME_PLACE[0])[:, None] & hidden[None])
            nearest = np.minimum.reduceat(np.where(visible, distance, np.inf), start, axis=1)
            mine = nearest[np.arange(len(rows)), place[rows]]
            known = (persons[place[rows]] == query.person_id[rows]) & np.isfinite(mine)
            first[rows] = np.where(known, (nearest <= mine[:, None]).sum(1), 0)
            yield rows, distance, visible

    ranks = dense_ranks(blocks(), query.person_id, gallery.person_id)
    ap, trapezoid = scores.average_precision(ranks), scores.average_precision_trapezoid(ranks)
    return ap, trapezoid, scores.inverse_negative_penalty(ranks), first, scores.tie_rate(ranks)
