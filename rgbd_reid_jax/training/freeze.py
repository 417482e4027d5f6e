"""Which parameters train: a table of regular expressions in which every parameter matches exactly one rule."""

import re
from collections.abc import Sequence
from typing import Any

from flax import traverse_util

from rgbd_reid_jax.core.errors import InputError

Rules = Sequence[tuple[str, str]]
TRAIN, FREEZE = "train", "freeze"


def partition(params: Any, rules: Rules, source: str = "freeze") -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into those that train and those that stay.

    Args:
        params: nested dict of arrays.
        rules: (regular expression, "train" or "freeze") pairs. An expression must match a parameter's
            whole path, such as "backbone/layer3_0/conv2/kernel".
        source: where the rules stand, for messages.

    Returns:
        (trainable, frozen), two nested dicts that `merge` puts together again.

    Raises:
        InputError: a parameter matches no rule or more than one, a rule matches nothing, or its word is unknown.
    """
    for pattern, word in rules:
        if word not in (TRAIN, FREEZE):
            raise InputError(f"{source}: rule {pattern!r} says {word!r}; say {TRAIN!r} or {FREEZE!r}")
    flat = traverse_util.flatten_dict(params, sep="/")
    used: set[int] = set()
    sides: dict[str, dict[str, Any]] = {TRAIN: {}, FREEZE: {}}
    for path, value in flat.items():
        matching = [index for index, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)]
        if len(matching) != 1:
            which = " and ".join(repr(rules[index][0]) for index in matching)
            found = f"{which}: make one narrower" if which else f"none: add ({path!r}, {FREEZE!r})"
            raise InputError(f"{source}: parameter {path} must match exactly one rule; it matches {found}")
        used.add(matching[0])
        sides[rules[matching[0]][1]][path] = value
    unused = [rules[index][0] for index in range(len(rules)) if index not in used]
    if unused:
        raise InputError(f"{source}: rule {unused[0]!r} matches no parameter; remove it or mend its path")
    return traverse_util.unflatten_dict(sides[TRAIN], sep="/"), traverse_util.unflatten_dict(sides[FREEZE], sep="/")


def merge(trainable: Any, frozen: Any) -> dict[str, Any]:
    """The whole parameters again; or any two nested dicts that share no leaf."""
    flat = traverse_util.flatten_dict(trainable, sep="/") | traverse_util.flatten_dict(frozen, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def norms(params: Any) -> frozenset[str]:
    """Paths of the batch-norm layers among some parameters ("backbone/layer3_0/bn3")."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return frozenset(path.rsplit("/", 1)[0] for path in flat if path.endswith("/scale"))
