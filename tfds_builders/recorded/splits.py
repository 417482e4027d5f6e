"""Which people train, validate and test: as published, or drawn from a seed with the published sizes."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded import tree
from tfds_builders.recorded.frames import SPLITS


def seeded_split(ids: Sequence[int], sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Draws disjoint sets of ids.

    Args:
        ids: all ids (of people, or of identities).
        sizes: how many each of `SPLITS` gets of a whole tree; where there are fewer or more ids, splits shrink or
            grow in proportion, each to one id at least.
        seed: of the draw.

    Returns:
        Sorted ids of each split; together they are `ids`.

    Raises:
        InputError: there are fewer ids than splits.
    """
    ids = sorted(set(ids))
    if len(ids) < len(SPLITS):
        raise InputError(
            f"{len(ids)} people cannot be split into {', '.join(SPLITS)}; at least {len(SPLITS)} are needed"
        )
    order = np.random.default_rng(seed).permutation(np.asarray(ids))
    shares = np.array([sizes[split] for split in SPLITS], np.float64)
    counts = np.maximum(np.floor(len(ids) * shares / shares.sum()).astype(int), 1)
    while counts.sum() > len(ids):
        counts[counts.argmax()] -= 1
    counts[0] += len(ids) - counts.sum()  # the training split takes what rounding leaves
    ends = np.cumsum(counts)
    return {split: sorted(order[end - n : end].tolist()) for split, n, end in zip(SPLITS, counts, ends, strict=True)}


def official_splits(path: pathlib.Path, fold: int, num_identities: int) -> dict[str, list[int]]:
    """One fold of an open-reid `splits.json`: train, val and the test identities (query and gallery together).

    Raises:
        InputError: the file is malformed, has no such fold, names identities that do not exist, or has an identity on
            two sides.
    """
    content = tree.read_json(path)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise InputError(f"{path} must hold a list of objects, one a fold; give the published file")
    if not 0 <= fold < len(content):
        raise InputError(f"fold={fold}: {path} has the folds 0 to {len(content) - 1}")
    wanted = {"train": ("train",), "validation": ("val",), "test": ("query", "gallery")}
    split = {
        name: sorted({one for key in keys for one in _ids(path, content[fold], key)}) for name, keys in wanted.items()
    }
    seen: dict[int, str] = {}
    for name, ids in split.items():
        for one in ids:
            if not 0 <= one < num_identities:
                raise InputError(
                    f"{path}: fold {fold} names identity {one}; there are 0 to {num_identities - 1}. Give the "
                    "meta.json that belongs to it, or remove it for a seeded split"
                )
            if one in seen:
                raise InputError(f"{path}: fold {fold} has identity {one} in {seen[one]} and in {name}; mend the file")
            seen[one] = name
    return split


def check_fold(fold: int, source: str, needs: str) -> None:
    """Raises InputError where a fold was asked for and there is no published split to take it from.

    Args:
        fold: the knob.
        source: of a scan's split: "splits.json", or "seed".
        needs: what folds need.
    """
    if fold and source == "seed":
        raise InputError(f"fold={fold} needs {needs}; other splits come from split_seed")


def _ids(path: pathlib.Path, fold: Mapping[str, Any], key: str) -> list[int]:
    ids = fold.get(key)
    if not isinstance(ids, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise InputError(f"{path}: {key!r} must be a list of whole numbers in every fold; give the published file")
    return ids
