"""The RGB-D papers' protocol: done right (`paper`), and as their public code computes it (`paper_compat`).

Query set and gallery set are the test identities. Of each identity a number of images (50) is drawn with replacement
for either side, and the query's own instant (same recording and frame) is left out. AP is multi-shot, the CMC
single-shot: for each query one gallery image per identity is drawn. The four directions are four calls. Hafner,
Bhuiyan, Kooij, Granger, Cross-Modal Distillation for RGB-Depth Person Re-Identification, arXiv:1810.11641,
doi:10.1016/j.cviu.2021.103352.

`paper_compat` follows the public code of the AVSS 2019 version, which builds on open-reid, with its `FAULTS`. Its
repeat r draws what that code draws after `numpy.random.seed(seed + r)`, if images are listed by person, camera,
recording and frame, and both modalities list the same frames: gallery and queries of modality 1 (RGB), then those of
modality 2, then the CMC's images. So the four directions of a repeat share their drawn images. In that code the CMC's
draws run on from one direction to the next; here they start anew in each, so only those of the first, 1 -> 1, are the
same.

Deviation: distances are float64, not float32, and equal ones stand in the order of the drawn gallery, where that code
leaves it to an unstable sort.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import Progress
from rgbd_reid_jax.metrics.bootstrap import intervals
from rgbd_reid_jax.metrics.dense import matrix
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.protocols.base import Task, canonical_order, numbers
from rgbd_reid_jax.metrics.protocols.single_shot import hit_rates
from rgbd_reid_jax.metrics.ranking import LEAST_MAX_RANK, check, multi_shot, rank, shown_hits

FAULTS = {
    "twin_mask_in_gallery_order": (
        "the mask of the query's own instant is built in gallery order but applied to the list sorted by distance: "
        "items at random ranks vanish, the instant itself mostly stays"
    ),
    "highest_identity_dropped": "the sampler counts identities up to the highest one and leaves that one out",
    "mask_of_the_other_modality": "modality 1 against itself is masked with the images drawn for modality 2",
    "trapezoid_average_precision": (
        "AP is that of scikit-learn 0.15: trapezoids under the precision-recall curve, on which equal distances, such "
        "as those of an image drawn twice, are one step"
    ),
    "unseeded_draws": "each evaluation draws its images anew from an unseeded generator (here it is seeded)",
}
_RULE = "twin_excluded"
_SHOTS = 15  # single shots per query in the public code
_TIED = 1e-8  # scikit-learn 0.15 merges scores that lie no further apart
_BLOCK = 1 << 22  # distances at once


def paper(
    query: Embeddings,
    gallery: Embeddings,
    *,
    seed: int = 0,
    images_per_identity: int = 50,
    repeats: int = 15,
    metric: str = "euclidean",
    max_rank: int = 20,
    mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Any]:
    """The protocol done right. The order of the rows changes nothing.

    An identity without an image in one of the sets is drawn from the other: in the gallery it is one more to confuse
    with, and its queries are skipped and counted as absent.

    Args:
        query: the test set in the query's modality.
        gallery: the test set in the gallery's modality; may be the same.
        seed: of the draws and of the bootstrap.
        images_per_identity: drawn with replacement for each side in each repeat.
        repeats: how often images are drawn, and with them one gallery image per identity and query for the CMC.
        metric: "euclidean", "cosine" or "gated".
        max_rank: length of the CMC.
        mesh: devices that share the ranking; one when None. They change no score.

    Returns:
        The keys of `protocols.base.numbers`: means over the repeats; num_query, num_query_skipped and num_query_absent
        count the queries of all repeats, num_gallery the images of one. "per_repeat" lists the scores of each,
        "num_identity" {"query", "gallery", "both"}, "parameters" what was asked for.

    Raises:
        InputError: recording_id or frame_id is missing, the sets do not fit, or no query has a positive.
    """
    parameters = _checked(query, gallery, images_per_identity, repeats, metric, max_rank)
    query, gallery = (items.take(canonical_order(items)) for items in (query, gallery))
    done = []
    for repeat in _shown(repeats):
        rng = np.random.default_rng([seed, repeat])
        rows, columns = (_draw(items, images_per_identity, rng.integers) for items in (query, gallery))
        queries, images = query.take(rows), gallery.take(columns)
        result = rank(queries, images, _RULE, metric=metric, max_rank=max_rank, mesh=mesh)
        shots = Task(queries, images, metric, int(rng.integers(2**31)), max_rank, {"repeats": 1})
        ap, ap_trapezoid, inp = multi_shot(result.ranks).values()
        done.append(
            _Repeat(
                person=queries.person_id,
                ap=ap,
                ap_trapezoid=ap_trapezoid,
                inp=inp,
                hits=hit_rates(shots, _RULE),
                tie_rate=result.tie_rate,
                num_gallery=len(images),
            )
        )
    return _merged(done, query, gallery, parameters, seed)


def paper_compat(
    query: Embeddings,
    gallery: Embeddings,
    *,
    seed: int = 0,
    images_per_identity: int = 50,
    repeats: int = 15,
    metric: str = "euclidean",
    max_rank: int = 20,
) -> dict[str, Any]:
    """What the public code computes, faults included, for comparison with numbers that were computed with it.

    "mAP_trapezoid" is the mean AP which that code prints, "mAP" the step AP of the same faulty lists.

    Args:
        query: as in `paper`.
        gallery: as in `paper`.
        seed: repeat r is one run of that evaluator, 15 single shots per query included, seeded with seed + r.
        images_per_identity: as in `paper`.
        repeats: runs of the evaluator; the public code makes one.
        metric: "euclidean" (squared, as there), "cosine" or "gated".
        max_rank: length of the CMC.

    Returns:
        The keys of `paper`, and "faults": [{"name", "words"}] of those that act in this direction; over all repeats
        "num_twins_kept" and "num_others_lost", what the mask missed and what it hit instead; and
        "identities_dropped" {"query", "gallery"}.

    Raises:
        InputError: as in `paper`; a set has a single identity, of which the sampler leaves none; a seed over 32 bits.
    """
    parameters = _checked(query, gallery, images_per_identity, repeats, metric, max_rank)
    if seed + repeats > 1 << 32:
        raise InputError(f"seed={seed} is too large for the public code's generator; give one below 2^32 - {repeats}")
    query, gallery = (items.take(canonical_order(items)) for items in (query, gallery))
    queries, images = _all_but_highest(query), _all_but_highest(gallery)
    within = query.modality == gallery.modality
    foreign_mask = within and query.modality == "rgb"
    instants = _instants(queries, images)
    done, missed = [], np.zeros(2, np.int64)
    for repeat in _shown(repeats):
        random = np.random.RandomState(seed + repeat)  # the generator of the public code
        drawn = _public_draws(queries, images, within, images_per_identity, random)
        rows, columns = drawn[0]
        twins = [code[at] for code, at in zip(instants, drawn[0], strict=True)]
        # Fault: modality 1 against itself takes the mask of what was drawn for modality 2.
        hidden = [code[at] for code, at in zip(instants, drawn[1 if foreign_mask else 0], strict=True)]
        run, run_missed = _public_run(queries.take(rows), images.take(columns), hidden, twins, metric, max_rank, random)
        done.append(run)
        missed += run_missed
    return {
        **_merged(done, query, gallery, parameters, seed),
        "faults": [
            {"name": name, "words": words}
            for name, words in FAULTS.items()
            if foreign_mask or name != "mask_of_the_other_modality"
        ],
        "num_twins_kept": int(missed[0]),
        "num_others_lost": int(missed[1]),
        "identities_dropped": {
            side: int(items.person_id.max()) for side, items in (("query", query), ("gallery", gallery))
        },
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Repeat:
    """One repeat's values per drawn query, float64 [Q], NaN where skipped; `hits` is float64 [Q, max_rank]."""

    person: np.ndarray
    ap: np.ndarray
    ap_trapezoid: np.ndarray
    inp: np.ndarray
    hits: np.ndarray
    tie_rate: float
    num_gallery: int


def _shown(repeats: int) -> Iterator[int]:
    """0, 1, ... with a line of progress where it takes long."""
    progress = Progress("paper protocol", repeats, unit="repeat", items="repeats")
    for repeat in range(repeats):
        if repeat:
            progress.update(repeat)
        yield repeat


def _all_but_highest(items: Embeddings) -> Embeddings:
    """Fault: the images of all identities but the one with the highest number."""
    lower = items.take(items.person_id < items.person_id.max())
    if not len(lower):
        raise InputError(
            f"{items.source} holds one identity, and paper_compat leaves the highest one out, as the public code does; "
            "give at least two, or use the protocol paper"
        )
    return lower


def _draw(items: Embeddings, number: int, below: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """int64 [persons x number]: rows of each person in ascending order, drawn by `below(count)` -> int in 0..count - 1.

    Args:
        items: ordered by person.
        number: rows per person.
        below: called once, with the count of its person for every draw.
    """
    _, start, count = np.unique(items.person_id, return_index=True, return_counts=True)
    return np.repeat(start, number) + below(np.repeat(count, number))


def _public_draws(
    query: Embeddings, gallery: Embeddings, within: bool, number: int, random: np.random.RandomState
) -> list[list[np.ndarray]]:
    """Drawn rows, in row order, of [query, gallery] for this direction, and within a modality for the other one.

    The public code draws the gallery and the queries of modality 1, then those of modality 2, whatever the direction.
    Query set and gallery set of a modality are the same; within a modality, the other is taken to list the same frames.
    """
    first = [gallery, query] if within else [gallery, gallery] if query.modality == "depth" else [query, query]
    second = [gallery, query] if within else [query, query] if query.modality == "depth" else [gallery, gallery]
    draws = [np.sort(_draw(items, number, lambda count: random.randint(0, count))) for items in (*first, *second)]
    of_modality = [draws[1::-1], draws[3:1:-1]]  # [query, gallery] of either
    this = int(query.modality == "depth")
    if within:
        return [of_modality[this], of_modality[1 - this]]
    return [[of_modality[this][0], of_modality[1 - this][1]]]


def _public_run(
    query: Embeddings,
    gallery: Embeddings,
    hidden: list[np.ndarray],
    twins: list[np.ndarray],
    metric: str,
    max_rank: int,
    random: np.random.RandomState,
) -> tuple[_Repeat, np.ndarray]:
    """One run of the public evaluator on drawn images.

    Args:
        query: the drawn queries.
        gallery: the drawn gallery.
        hidden: int64 [Q] and [G]; equal codes are masked.
        twins: int64 [Q] and [G]; equal codes are the same instant, which should have been masked.
        metric: as in `paper`.
        max_rank: length of the CMC.
        random: draws the single shots.

    Returns:
        The values, and int64 [2], how many twins stayed and how many other items vanished.
    """
    ap, ap_trapezoid, inp = (np.full(len(query), np.nan) for _ in range(3))
    hits = np.full((len(query), max_rank), np.nan)
    tied, missed = np.zeros(2, np.int64), np.zeros(2, np.int64)
    step = max(1, _BLOCK // len(gallery))
    for start in range(0, len(query), step):
        rows = np.arange(start, min(start + step, len(query)))
        distance = matrix(query.take(rows), gallery, metric)
        if metric == "euclidean":
            distance **= 2
        order = np.argsort(distance, axis=1, kind="stable")
        for row, by_distance, of_gallery in zip(rows, order, distance, strict=True):
            # Fault: place j of the mask speaks of gallery item j, and hides whatever stands at place j of the list.
            listed = by_distance[hidden[0][row] != hidden[1]]
            twin = twins[0][row] == twins[1]
            missed += [twin[listed].sum(), len(twin) - len(listed) - (twin.sum() - twin[listed].sum())]
            match = gallery.person_id[listed] == query.person_id[row]
            if match.any():
                ap[row], ap_trapezoid[row], inp[row], num_tied = _public_scores(match, of_gallery[listed])
                tied += [num_tied, match.sum()]
                hits[row] = _public_shots(gallery.person_id[listed], match, max_rank, random)
    if not tied[1]:
        raise InputError(
            f"none of the {len(query)} drawn queries has an item of its person in its list; query and gallery need the "
            "same person_id for the same person, besides the highest, which paper_compat leaves out"
        )
    return _Repeat(query.person_id, ap, ap_trapezoid, inp, hits, float(tied[0] / tied[1]), len(gallery)), missed


def _public_scores(match: np.ndarray, distance: np.ndarray) -> tuple[float, float, float, int]:
    """Step AP, trapezoid AP, INP, and the number of positives tied with another person, of one sorted list.

    Both AP are areas under the precision-recall curve that scikit-learn 0.15 draws: a point after each group of equal
    distances up to the last positive, and (0, 1) to begin with.
    """
    last = np.flatnonzero(np.append(np.abs(np.diff(distance)) > _TIED, True))  # of each group
    found = np.cumsum(match)[last]
    new, size = np.diff(found, prepend=0), np.diff(last, prepend=-1)
    end = int(np.argmax(found == found[-1])) + 1
    precision = np.append(1.0, found[:end] / (last[:end] + 1))
    width = new[:end] / found[-1]
    return (
        float(width @ precision[1:]),
        float(width @ (precision[1:] + precision[:-1]) / 2.0),
        float(found[-1] / (last[end - 1] + 1)),
        int(new[new < size].sum()),
    )


def _public_shots(person: np.ndarray, match: np.ndarray, max_rank: int, random: np.random.RandomState) -> np.ndarray:
    """float64 [max_rank]: CMC of single shots, one place of the list drawn per person.

    Args:
        person: int64 [n], of the listed items.
        match: bool [n], those of the query's person.
        max_rank: length of the curve.
        random: draws for the persons in the order in which the list first shows them, shot by shot.
    """
    _, first, group, count = np.unique(person, return_index=True, return_inverse=True, return_counts=True)
    shown = np.argsort(first)
    places = np.argsort(np.argsort(shown)[group], kind="stable")  # places of the first person shown, of the second, ...
    start = np.cumsum(count[shown]) - count[shown]
    drawn = places[start + random.randint(0, np.tile(count[shown], (_SHOTS, 1)))]
    mine = drawn[:, match[places[start]]]
    before = (drawn < mine).sum(1)
    return (before[:, None] < np.arange(1, max_rank + 1)).mean(0)


def _instants(query: Embeddings, gallery: Embeddings) -> list[np.ndarray]:
    """int64 [Q] and [G]: equal for equal recording and frame."""
    pairs = [
        np.stack([items.column(key, "protocol paper_compat") for key in ("recording_id", "frame_id")], 1)
        for items in (query, gallery)
    ]
    _, code = np.unique(np.concatenate(pairs), axis=0, return_inverse=True)
    return np.split(code.reshape(-1), [len(query)])


def _merged(
    done: list[_Repeat], query: Embeddings, gallery: Embeddings, parameters: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Means over the repeats, and each repeat's own."""
    per_repeat = [
        {
            "mAP": float(np.nanmean(one.ap)),
            "mAP_trapezoid": float(np.nanmean(one.ap_trapezoid)),
            "mINP": float(np.nanmean(one.inp)),
            "cmc": np.nanmean(one.hits, axis=0).tolist(),
            "num_query_skipped": int(np.isnan(one.ap).sum()),
            "tie_rate": one.tie_rate,
        }
        for one in done
    ]
    mean = {
        key: np.mean([one[key] for one in per_repeat], axis=0)
        for key in ("mAP", "mAP_trapezoid", "mINP", "cmc", "tie_rate")
    }
    person = np.concatenate([one.person for one in done])
    merged = numbers(
        mean["mAP"],
        mean["mAP_trapezoid"],
        mean["mINP"],
        mean["cmc"],
        tie_rate=mean["tie_rate"],
        intervals=intervals(
            {
                "mAP": np.concatenate([one.ap for one in done]),
                "mAP_trapezoid": np.concatenate([one.ap_trapezoid for one in done]),
                "mINP": np.concatenate([one.inp for one in done]),
                **shown_hits(np.concatenate([one.hits for one in done])),
            },
            person,
            seed=seed,
        ),
        num_query=len(person),
        num_query_skipped=sum(one["num_query_skipped"] for one in per_repeat),
        num_query_absent=int((~np.isin(person, gallery.person_id)).sum()),
        num_gallery=done[0].num_gallery,
    )
    persons = [np.unique(items.person_id) for items in (query, gallery)]
    both = int(np.isin(persons[0], persons[1]).sum())
    return {
        **merged,
        "per_repeat": per_repeat,
        "num_identity": {"query": len(persons[0]), "gallery": len(persons[1]), "both": both},
        "parameters": {**parameters, "seed": seed},
    }


def _checked(
    query: Embeddings, gallery: Embeddings, images_per_identity: int, repeats: int, metric: str, max_rank: int
) -> dict[str, Any]:
    """The parameters, if all is well."""
    check(query, gallery, _RULE)
    parameters = {"images_per_identity": images_per_identity, "repeats": repeats}
    least = {"max_rank": LEAST_MAX_RANK}
    for name, value in {**parameters, "max_rank": max_rank}.items():
        if value < least.get(name, 1):
            raise InputError(f"{name}={value} must be at least {least.get(name, 1)}")
    return {**parameters, "metric": metric}
