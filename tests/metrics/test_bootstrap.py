"""Bootstrap intervals against all resamples written out, known coverage and degenerate cases."""

import itertools
import tracemalloc

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.bootstrap import interval


def all_resampled_means(values, person):
    """The mean of each of the n^n equally likely resamples of n identities."""
    groups = [values[person == p] for p in np.unique(person)]
    return np.array([np.concatenate(draw).mean() for draw in itertools.product(groups, repeat=len(groups))])


def test_equals_the_quantiles_of_all_resamples_written_out():
    values = np.array([0.1, 0.2, 0.9, 0.4, 0.5, 0.6, 0.6])
    person = np.array([7, 7, 7, 3, 3, 5, 9])
    exact = np.sort(all_resampled_means(values, person))
    assert len(exact) == 4**4
    for level in (0.5, 0.9):
        low, high = interval(values, person, resamples=200_000, level=level)
        # The drawn quantile lies between the exact ones a little below and above (the distribution is discrete).
        for drawn, at in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
            assert np.quantile(exact, at - 0.01) - 1e-12 <= drawn <= np.quantile(exact, at + 0.01) + 1e-12


def test_two_identities_have_four_resamples():
    values, person = np.array([0.0, 1.0]), np.array([1, 2])  # means 0, 1/2, 1/2, 1
    assert interval(values, person, level=0.9) == (0.0, 1.0)
    assert interval(values, person, level=0.4) == (0.5, 0.5)


def test_queries_of_one_identity_are_drawn_together():
    values, person = np.array([0.0] * 30 + [1.0] * 10), np.array([1] * 30 + [2] * 10)
    low, high = interval(values, person, level=0.9)
    assert (low, high) == (0.0, 1.0)  # singly drawn queries would give about 0.25 +- 0.11
    assert interval(values, person, level=0.4) == (0.25, 0.25)


def test_order_of_the_queries_and_of_the_blocks_changes_nothing():
    rng = np.random.default_rng(0)
    values, person = np.exp(5 * rng.normal(size=500)), rng.integers(0, 40, 500)  # sums that round
    values[rng.random(500) < 0.1] = np.nan
    expected = interval(values, person, seed=3)
    for _ in range(3):
        order = rng.permutation(500)
        assert interval(values[order], person[order], seed=3) == expected
    assert interval(values, person, seed=4) != expected


def test_scenarios_are_averaged_in_each_resample():
    """Two persons, of whom one is seen in the first scenario alone: means of scenarios, not of pooled queries."""
    values = np.array([[0.0, np.nan], [1.0, 0.5], [1.0, np.nan]])
    person = np.array([1, 2, 2])
    # Resamples: 1, 1: the first scenario's 0; 1, 2 twice: (2/3 + 1/2) / 2; 2, 2: (1 + 1/2) / 2.
    assert interval(values, person, level=0.4) == pytest.approx((7 / 12, 7 / 12))
    assert interval(values, person, level=0.9) == pytest.approx((0.0, 0.75))
    assert interval(values[1:], person[1:]) == (0.75, 0.75)
    assert interval(values[:, :1], person) == interval(values[:, 0], person)


def test_skipped_queries_and_identities_do_not_count():
    values, person = np.array([0.2, np.nan, 0.4, np.nan]), np.array([1, 1, 2, 3])
    assert interval(values, person) == interval(values[[0, 2]], person[[0, 2]])


def test_one_identity_or_equal_values_have_no_spread():
    assert interval(np.array([0.25, 0.75]), np.array([4, 4])) == (0.5, 0.5)
    low, high = interval(np.full(9, 0.3), np.arange(9))
    assert (low, high) == pytest.approx((0.3, 0.3))
    assert np.isnan(interval(np.full(3, np.nan), np.arange(3))).all()
    assert np.isnan(interval(np.zeros(0), np.zeros(0, int))).all()


def test_covers_the_true_mean_of_clustered_data():
    rng = np.random.default_rng(0)
    trials, covered, singly = 200, 0, 0
    for trial in range(trials):
        effect = np.repeat(rng.normal(0.5, 0.2, 40), 10)  # a person's queries share most of their error
        values, person = effect + rng.normal(0, 0.05, 400), np.repeat(np.arange(40), 10)
        low, high = interval(values, person, seed=trial, resamples=300)
        covered += low <= 0.5 <= high
        low, high = interval(values, np.arange(400), seed=trial, resamples=300)
        singly += low <= 0.5 <= high
    assert 0.88 <= covered / trials <= 0.99  # 95 % wanted; 200 trials have a standard error of 1.5 %
    assert singly / trials < 0.7


def test_ten_thousand_identities_fit_in_little_memory():
    values, person = np.random.default_rng(0).random(20_000), np.arange(20_000) // 2
    tracemalloc.start()
    low, high = interval(values, person)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < values.mean() < high
    assert peak < 64e6  # all 10^7 draws at once would be 80 MB and more


@pytest.mark.parametrize("wrong", [{"resamples": 0}, {"level": 0.0}, {"level": 1.0}])
def test_bad_arguments_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        interval(np.zeros(3), np.arange(3), **wrong)
