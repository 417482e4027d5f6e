"""Another background as augmentation: what is not the person comes from another image of the batch.

The depth sensor knows the person's outline, and while training it may lend it to the colour image (learning with
privileged information, Vapnik and Vashist 2009, doi:10.1016/j.neunet.2009.06.042). Tests never see it.
"""

import jax
import jax.numpy as jnp


def swap_background(key: jax.Array, unit: jax.Array, mask: jax.Array, probability: float) -> jax.Array:
    """Images with the surroundings of others.

    Args:
        key: PRNG key.
        unit: float32 [B, H, W, 3].
        mask: uint8 [B, H, W, 1], non-zero on the person; an image without a person on it stays as it is.
        probability: of a swap.

    Returns:
        float32 [B, H, W, 3]: a chosen image keeps its pixels on the mask, the others are those of another image of the
        batch, the same distance down the batch for all.
    """
    chosen_key, shift_key = jax.random.split(key)
    batch = unit.shape[0]
    others = jnp.roll(unit, jax.random.randint(shift_key, (), 1, max(batch, 2)), axis=0)
    person = mask > 0
    chosen = jax.random.bernoulli(chosen_key, probability, (batch, 1, 1, 1)) & person.any(axis=(1, 2, 3), keepdims=True)
    return jnp.where(chosen & ~person, others, unit)
