"""Open-set verification, "same person or not?", as a protocol: every visible pair is compared on its own.

A pair is accepted when its distance is at most a threshold. FPR is the accepted share of the pairs of different
persons, TPR that of the pairs of the same person; each wanted FPR has the largest threshold that keeps it.
"""

import dataclasses
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.protocols.base import Task, rule_name
from rgbd_reid_jax.metrics.ranking import RULES, check, sides
from rgbd_reid_jax.metrics.verification import verify_pairs

WANTED_FPR = (1e-2, 1e-3, 1e-4)
DEFINITIONS = {
    "eer": "equal error rate: the smallest value of max(FPR, 1 - TPR) over all thresholds",
    "tpr_at_fpr": "at the largest threshold whose FPR is at most the wanted one: the accepted share of the pairs of "
    "the same person (TPR) and of different persons (FPR)",
    "roc": "[FPR, TPR] of some thresholds",
}


def verification(task: Task) -> dict[str, Any]:
    """Error rates and thresholds of the pairs that the parameter `rule` leaves."""
    rule = rule_name(task, "verification")
    check(task.query, task.gallery, rule)
    both = sides(task.query, task.gallery, rule, task.metric)
    try:
        found = verify_pairs(*both, metric=task.metric, wanted_fpr=WANTED_FPR, stage=task.engine.get("stage", ""))
    except InputError as error:
        raise InputError(f"protocol verification with rule={rule} ({RULES[rule].words}): {error}") from error
    numbers = dataclasses.asdict(found)
    points = {f"{point.pop('wanted_fpr'):g}": point for point in numbers.pop("points")}
    roc = [list(map(float, point)) for point in numbers.pop("roc")]
    counts = {"num_query": len(task.query), "num_gallery": len(task.gallery)}
    return {**numbers, "tpr_at_fpr": points, "roc": roc, **counts}
