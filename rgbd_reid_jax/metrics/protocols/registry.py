"""The protocols by name: what each means, its parameters, and `evaluate`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import paper
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.protocols import open_set, passages, single_shot, sysu
from rgbd_reid_jax.metrics.protocols.base import DEFINITIONS, STEP_AP, Task
from rgbd_reid_jax.metrics.protocols.exclusion import ranked
from rgbd_reid_jax.metrics.ranking import LEAST_MAX_RANK, RULES, check_sides
from rgbd_reid_jax.metrics.ranks import METRICS


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        words: what it does, in a sentence or two.
        evaluate: maps a `Task` to the numbers of one direction.
        defaults: its parameters; a given value has to be of the same type, and a number at least 1.
        definitions: what numbers mean where it is not what `DEFINITIONS` says.
        options: it knows groups, query expansion and re-ranking.
    """

    words: str
    evaluate: Callable[[Task], dict[str, Any]]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    definitions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: bool = False


def _paper(task: Task) -> dict[str, Any]:
    return _of_paper(task, functools.partial(paper.paper, mesh=task.engine.get("mesh")))


def _of_paper(task: Task, function: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    found = function(
        task.query, task.gallery, seed=task.seed, metric=task.metric, max_rank=task.max_rank, **task.parameters
    )
    return {key: value for key, value in found.items() if key != "parameters"}  # `evaluate` says them


_PAPER = {"images_per_identity": 50, "repeats": 15}
PROTOCOLS: dict[str, Protocol] = {
    **{name: Protocol(rule.words, functools.partial(ranked, rule=name), options=True) for name, rule in RULES.items()},
    "single_gallery_shot": Protocol(
        "CMC with one gallery image per person drawn for each query, mean over repeats; multi-shot mAP; items are "
        "dropped by the parameter rule",
        single_shot.single_gallery_shot,
        {"repeats": 15, "rule": "twin_excluded"},
        {"cmc": single_shot.CMC},
    ),
    "cuhk03": Protocol(
        "torchreid's CUHK03 metric: market rule, single-shot CMC over repeats, multi-shot mAP",
        single_shot.cuhk03,
        {"repeats": 10},
        {"cmc": single_shot.CMC},
    ),
    "paper": Protocol(
        "the RGB-D papers' protocol done right: for either side images are drawn per identity with replacement; the "
        "query's own instant is dropped, mAP is multi-shot, CMC single-shot; mean over repeats",
        _paper,
        _PAPER,
        {"mAP": f"mean over repeats of the {STEP_AP}", "cmc": single_shot.CMC},
    ),
    "paper_compat": Protocol(
        "the RGB-D papers' protocol as their public code computes it, its faults included and listed; for comparison "
        "with numbers of that code only",
        functools.partial(_of_paper, function=paper.paper_compat),
        _PAPER,
        {
            "mAP": "step AP of the public code's faulty lists",
            "mAP_trapezoid": "what the public code prints as mAP",
            "cmc": "what the public code prints as CMC, single shot",
        },
    ),
    "sysu_mm01": Protocol(
        "queries of the infrared cameras 3 and 6; gallery of drawn images, shots per person and visible camera (search "
        "all: 1, 2, 4, 5; indoor: 1, 2), mean over trials; queries of camera 3 do not see camera 2; draws are seeded, "
        "the official MATLAB permutations are not reproduced",
        sysu.sysu_mm01,
        {"search": "all", "trials": 10, "shots": 1},
        {"mAP": "mean over trials of the mean step AP over all drawn images", "cmc": sysu.CMC},
    ),
    "tvrid": Protocol(
        "passages (mean embedding of a recording's frames) of different passage_name in three scenarios: same camera, "
        "upward against downward, flat against the others; mean over the scenarios",
        passages.tvrid,
        passages.CAMERAS,
        {"mAP": passages.MAP, "cmc": passages.CMC},
    ),
    "verification": Protocol(
        "same person or not, pair by pair: error rates and thresholds; pairs are dropped by the parameter rule",
        open_set.verification,
        {"rule": "twin_excluded"},
        open_set.DEFINITIONS,
    ),
}


def evaluate(
    name: str,
    query: Embeddings,
    gallery: Embeddings,
    *,
    metric: str = "euclidean",
    seed: int = 0,
    max_rank: int = 20,
    parameters: Mapping[str, Any] | None = None,
    groups: bool = False,
    query_expansion: int = 0,
    rerank: tuple[int, int, float] | None = None,
    engine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The numbers of one direction under a protocol, and what they mean.

    Args:
        name: a key of `PROTOCOLS`.
        query: the queries.
        gallery: what they are compared with; may be the same set.
        metric: one of `METRICS`.
        seed: of draws and bootstrap, at least 0.
        max_rank: length of the CMC curve, at least 10.
        parameters: of the protocol, where they differ from its defaults; text is read as the default's type.
        groups: break the numbers down by clothes, cameras and type of recording.
        query_expansion: nearest gallery items that are averaged into each query; 0 for none.
        rerank: (k1, k2, lambda) of k-reciprocal re-ranking; None for none. Both see what the rule leaves, but for
            `market`, whose dropped items have a part in the encoding as in the published numbers.
        engine: arguments of the ranking engine that change no score: mesh, stage, block sizes.

    Returns:
        A dict for JSON; scores are fractions of 1. docs/evaluation.md lists the keys.

    Raises:
        InputError: an unknown name or value, sets that do not fit, or no query has a positive.
    """
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    for value, least, flag in ((seed, 0, "seed"), (max_rank, LEAST_MAX_RANK, "max_rank")):
        if value < least:
            raise InputError(f"{flag}={value} must be at least {least}")
    options = {"groups": groups, "query_expansion": query_expansion, "rerank": rerank}
    for option, given in options.items():
        if given and not protocol.options:
            raise InputError(
                f"protocol {name} has no {option}; choose one of {', '.join(RULES)}, or leave {option} out"
            )
    check_sides(query, gallery)
    complete = _parameters(name, protocol, parameters or {})
    task = Task(query, gallery, metric, seed, max_rank, complete, engine or {}, **options)
    found = protocol.evaluate(task)
    meaning = {key: text for key, text in {**DEFINITIONS, **protocol.definitions}.items() if key in found}
    about = {"name": name, "parameters": complete, "seed": seed, "words": protocol.words}
    if query_expansion:
        about["query_expansion"] = query_expansion
    if rerank:
        about["rerank"] = dict(zip(("k1", "k2", "lambda"), rerank, strict=True))
    return {**found, "protocol": about, "metric": metric, "definitions": meaning}


def _parameters(name: str, protocol: Protocol, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with the given values instead, each of its default's type."""
    unknown = [key for key in given if key not in protocol.defaults]
    if unknown:
        known = ", ".join(f"{key}={value}" for key, value in protocol.defaults.items()) or "none"
        raise InputError(f"protocol {name} has no parameter {unknown[0]!r}; its parameters and defaults: {known}")
    complete = dict(protocol.defaults)
    for key, value in given.items():
        kind = type(protocol.defaults[key])
        try:
            complete[key] = kind(value)
        except (TypeError, ValueError):
            raise InputError(f"protocol {name}: {key}={value!r} is not of the form {key}={complete[key]!r}") from None
        if kind is not str and complete[key] < 1:
            raise InputError(f"protocol {name}: {key}={value} must be at least 1")
    return complete
