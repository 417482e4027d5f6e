"""Which stages stand on which: what has to be done again, and what may be taken from elsewhere."""

from collections.abc import Collection, Sequence


def training_order(stages: Sequence[str], training: Collection[str]) -> list[str]:
    """The training stages among `stages`, in the order in which they run."""
    return [stage for stage in stages if stage in training]


def stands_on(stage: str, order: Sequence[str]) -> tuple[str, ...]:
    """The training stages whose networks a training stage begins with or learns from.

    Args:
        stage: its name.
        order: all training stages of its configuration, in the order in which they run.
    """
    if stage == "student":
        return ("teacher",)
    return tuple(order[: order.index(stage)]) if stage == "pair" else ()


def outdated_by(stage: str, stages: Sequence[str], training: Collection[str]) -> list[str]:
    """The later stages whose work is out of date when a stage is done anew.

    Args:
        stage: its name.
        stages: all stages of the configuration in order.
        training: names of the training stages; all other stages use whatever was done before them.
    """
    order = training_order(stages, training)
    later = stages[stages.index(stage) + 1 :]
    return [one for one in later if one not in training or stage in stands_on(one, order)]
