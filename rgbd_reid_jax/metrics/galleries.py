"""What a rule leaves of each query's gallery, known from labels before anything is embedded.

A query whose positives are all dropped cannot be scored; where that happens to every query, the protocol does not suit
the dataset, and training on it would end without a number.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.ranking import RULES

Labels = Mapping[str, np.ndarray]
"""Columns of int [N] by name: `person_id` and what the rules compare."""


def emptied(query: Labels, gallery: Labels, rule: str) -> np.ndarray:
    """bool [Q]: the queries to which `rule`, a key of `RULES`, leaves no item of their person.

    Args:
        query: labels of the queries.
        gallery: labels of the gallery, which may hold the queries themselves.
        rule: a key of `RULES`.
    """
    positives = _equal(query, gallery, ("person_id",))
    return positives == _equal(query, gallery, ("person_id", *RULES[rule].columns))


def _equal(query: Labels, gallery: Labels, columns: Sequence[str]) -> np.ndarray:
    """int64 [Q]: gallery rows that equal the query in all `columns`."""
    rows = [np.stack([side[name] for name in columns], axis=1) for side in (query, gallery)]
    _, group = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    group = group.reshape(-1)
    num_query = len(rows[0])
    return np.bincount(group[num_query:], minlength=int(group.max(initial=0)) + 1)[group[:num_query]]


def check_galleries(query: Labels, gallery: Labels, protocol: str, where: str) -> None:
    """Raises InputError if a rule empties the gallery of every query.

    Args:
        query: labels of the queries.
        gallery: labels of the gallery.
        protocol: a key of `RULES`.
        where: names the dataset, split and direction in the message.
    """
    if not emptied(query, gallery, protocol).all():
        return
    others = [name for name in RULES if not emptied(query, gallery, name).all()]
    mend = f"say --config.evaluation.protocol={others[0]}, or " if others else ""
    raise InputError(
        f"{where}: protocol {protocol} ({RULES[protocol].words}) leaves none of the {len(query['person_id'])} queries "
        f"a gallery item of its person; {mend}{RULES[protocol].mend}"
    )
