"""Numbers for the people, cameras and frames that files name."""

from collections.abc import Iterable

_MAX_INT32 = 2**31 - 1


def numbered(names: Iterable[str]) -> dict[str, int]:
    """The number of each name, an int32: what it says where all are different whole numbers, else its rank."""
    ordered = sorted(set(names))
    if all(name.isascii() and name.isdigit() for name in ordered):
        numbers = [int(name) for name in ordered]
        if len(set(numbers)) == len(numbers) and max(numbers, default=0) <= _MAX_INT32:
            return dict(zip(ordered, numbers, strict=True))
        ordered.sort(key=int)  # too large for an int32, such as times
    return {name: rank for rank, name in enumerate(ordered)}
