"""The training state: all that a step reads and writes, and all that a checkpoint must hold."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """A pytree.

    Attributes:
        step: int32 scalar, updates done.
        key: uint32 key data of the run's PRNG key; each step folds its number in.
        trainable: parameters that train.
        frozen: parameters that stay; no gradient, no optimizer slots.
        batch_stats: running statistics of all batch-norm layers.
        opt_state: optimizer slots of `trainable`.
    """

    step: jax.Array
    key: jax.Array
    trainable: Any
    frozen: Any
    batch_stats: Any
    opt_state: Any


def create_state(
    key: jax.Array, trainable: Any, frozen: Any, batch_stats: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first update.

    Args:
        key: typed PRNG key of the stage.
        trainable: parameters that train.
        frozen: parameters that stay.
        batch_stats: running statistics.
        optimizer: whose slots are made for `trainable` alone.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(key),
        trainable=trainable,
        frozen=frozen,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trainable),
    )
