"""The largest batch, with few tries."""

import pytest

from rgbd_reid_jax.planning.search import largest


@pytest.mark.parametrize("limit", [1, 3, 7, 64, 65, 100, 333])
@pytest.mark.parametrize("guess", [8, 320, 512, 2664, 30000])
@pytest.mark.parametrize("start", [0, 8])
def test_the_largest_that_fits(limit, guess, start):
    tried = []

    def fits(number: int) -> bool:
        assert number % 8 == 0
        assert number not in tried
        tried.append(number)
        return number <= 8 * limit

    low, high = largest(fits, 8, start, guess)
    assert low <= 8 * limit < high
    assert high - low <= max(8, low / 16)
    assert len(tried) <= 20


def test_nothing_fits():
    assert largest(lambda _: False, 8, 0, 64) == (0, 8)


@pytest.mark.parametrize("guess", [0, 40, 64])
@pytest.mark.parametrize(("limit", "found"), [(8, (0, 24)), (23, (0, 24)), (24, (24, 32)), (47, (40, 48))])
def test_no_number_below_the_least_is_asked_for(limit, found, guess):
    asked = []
    assert largest(lambda number: asked.append(number) or number <= limit, 8, 0, guess, least=20) == found
    assert min(asked) >= 24


def test_a_good_guess_needs_few_tries():
    tried = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= 500

    assert largest(fits, 1, 64, 510) == (494, 510)
    assert len(tried) <= 3
