"""Max pooling against XLA's own and against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.models.max_pool import max_pool


def by_loops(x, gradient):
    """(output, gradient of the image) by the definition; of equal places the first in the order of rows counts."""
    pooled, pulled = np.full(gradient.shape, -np.inf), np.zeros(x.shape)
    for b, i, j, c in np.ndindex(gradient.shape):
        places = [
            (x[b, row, column, c], -row, -column)
            for row in range(max(0, 2 * i - 1), min(x.shape[1], 2 * i + 2))
            for column in range(max(0, 2 * j - 1), min(x.shape[2], 2 * j + 2))
        ]
        value, row, column = max(places)
        pooled[b, i, j, c] = value
        pulled[b, -row, -column, c] += gradient[b, i, j, c]
    return pooled, pulled


@pytest.mark.parametrize(("height", "width"), [(8, 4), (9, 7), (2, 5), (1, 1)])
@pytest.mark.parametrize("levels", [3, 100_000])  # 3: most windows have equal places
def test_values_and_gradients_are_those_of_the_definition(height, width, levels):
    rng = np.random.default_rng(0)
    x = rng.integers(levels, size=(2, height, width, 3)).astype(np.float32)
    gradient = rng.normal(size=(2, -(-height // 2), -(-width // 2), 3)).astype(np.float32)

    @jax.jit
    def run(x, gradient):
        y, pull = jax.vjp(max_pool, x)
        return y, pull(gradient)[0]

    y, pulled = run(x, gradient)
    expected = by_loops(x, gradient)
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_allclose(pulled, expected[1], atol=1e-6)


def test_bfloat16_sharded_mapped_and_recomputed(mesh_of):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 6, 4, 2)), jnp.bfloat16)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(max_pool(x).astype(jnp.float32) ** 2))(x)

    expected = jax.jit(gradient)(x)
    assert expected.dtype == jnp.bfloat16
    rows = jax.NamedSharding(mesh_of(8), jax.P("data"))
    text = jax.jit(gradient).lower(jax.device_put(x, rows)).compile().as_text() or ""
    assert "all-gather" not in text
    for found in (
        jax.jit(gradient)(jax.device_put(x, rows)),
        jax.jit(jax.vmap(gradient))(x[None])[0],
        jax.jit(jax.grad(lambda x: jnp.sum(jax.checkpoint(max_pool)(x).astype(jnp.float32) ** 2)))(x),
    ):
        np.testing.assert_array_equal(found, expected)


def test_what_is_not_a_number_stays_so():
    x = jnp.ones((1, 4, 4, 1)).at[0, 2, 2, 0].set(jnp.nan)
    assert np.isnan(max_pool(x)).any()


def test_accelerators_keep_their_own_gradient():
    x = jnp.ones((2, 8, 4, 3))
    run = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x))))
    for platform, count in (("cpu", 0), ("tpu", 1)):
        text = run.trace(x).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.select_and_scatter") == count
