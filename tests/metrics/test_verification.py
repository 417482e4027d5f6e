"""Thresholds against hand numbers."""

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.verification import verify


def test_hand_example():
    result = verify(np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.5, 5.0, 7.0, 8.0]), fpr=0.25)
    assert (result.threshold, result.fpr, result.tpr) == (3.0, 0.25, 0.75)
    assert result.eer == 0.25


def test_separated_distances_have_no_error():
    result = verify(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert (result.threshold, result.fpr, result.tpr, result.eer) == (2.0, 0.0, 1.0, 0.0)


def test_collapsed_distances_accept_nothing():
    result = verify(np.zeros(5), np.zeros(5))
    assert (result.threshold, result.tpr, result.eer) == (-np.inf, 0.0, 1.0)


def test_an_empty_side_is_named():
    with pytest.raises(InputError, match="0 pairs of the same"):
        verify(np.zeros(0), np.zeros(3))
