"""The largest batch that fits: each try is a compilation, so few are made."""

from collections.abc import Callable

CLOSE = 16
"""The search ends where what fits and what does not differ by no more than 1/16 of what fits, or by one unit."""


def largest(fits: Callable[[int], bool], unit: int, start: int, guess: int, least: int = 1) -> tuple[int, int]:
    """The largest number that fits, as far as it was tried, and the smallest that was tried and does not.

    Tries the guess, then numbers further and further from it until one fits and one does not, then halves the gap.

    Args:
        fits: tells whether a multiple of `unit` fits; larger ones then fit no more than smaller ones.
        unit: what all numbers are multiples of.
        start: a number that is known to fit, or 0.
        guess: where the limit is expected.
        least: no smaller number is asked for.

    Returns:
        (fits, does not fit); 0 and the smallest multiple from `least` on where nothing fits.
    """
    low, high = start // unit, 0  # in units; a `high` of 0 is not known yet
    fewest = -(-least // unit)
    here = max(low + 1, fewest, guess // unit)
    stride = max(1, here // CLOSE)
    while not high or (high > fewest and high - low > max(1, low // CLOSE)):
        if fits(here * unit):
            low = here
        else:
            high = here
        if not high:
            here, stride = low + stride, 2 * stride
        elif low > start // unit or high - stride <= low:
            here = (low + high) // 2
        else:
            here, stride = high - stride, 2 * stride
        here = max(here, fewest)
    return low * unit, high * unit
