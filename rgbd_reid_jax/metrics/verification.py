"""Same person or not: error rates of a distance threshold."""

import dataclasses

import numpy as np

from rgbd_reid_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Verification:
    """A pair is called the same person when its distance is at most `threshold`.

    Attributes:
        threshold: the largest distance of a pair at which the false positive rate is at most the wanted one; minus
            infinity when already the nearest distance exceeds it.
        fpr: share of pairs of different persons at or below it, in 0..1.
        tpr: share of pairs of the same person at or below it, in 0..1.
        eer: equal error rate: the smallest value of max(FPR, 1 - TPR) over all thresholds, in 0..1.
    """

    threshold: float
    fpr: float
    tpr: float
    eer: float


def verify(same: np.ndarray, different: np.ndarray, *, fpr: float = 1e-2) -> Verification:
    """Threshold at a wanted false positive rate, with the rates there.

    Args:
        same: float [S], distances of pairs of the same person.
        different: float [D], distances of pairs of different persons.
        fpr: wanted false positive rate, in 0..1.

    Raises:
        InputError: a side is empty.
    """
    if not len(same) or not len(different):
        raise InputError(
            f"{len(same)} pairs of the same and {len(different)} of different persons: a threshold needs both; "
            "evaluate at least two persons with two valid images each"
        )
    same, different = np.sort(np.asarray(same, np.float64)), np.sort(np.asarray(different, np.float64))
    # Thresholds between the values: accepting nothing, then each distinct distance.
    threshold = np.concatenate([[-np.inf], np.unique(np.concatenate([same, different]))])
    false_positive = np.searchsorted(different, threshold, "right") / len(different)
    true_positive = np.searchsorted(same, threshold, "right") / len(same)
    chosen = int(np.searchsorted(false_positive, fpr, "right")) - 1
    return Verification(
        threshold=float(threshold[chosen]),
        fpr=float(false_positive[chosen]),
        tpr=float(true_positive[chosen]),
        eer=float(np.maximum(false_positive, 1.0 - true_positive).min()),
    )
