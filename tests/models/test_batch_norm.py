"""Tests of batch norm against Flax's."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.models.batch_norm import NormMode, batch_norm, normalised


class _Normalised(nn.Module):
    mode: NormMode
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return batch_norm(self.path, "bn", self.mode, self.dtype)(x)


def variables_of(channels: int) -> dict[str, Any]:
    draw = np.random.default_rng(2)
    scale, bias, mean, var = draw.uniform(0.5, 2, (4, channels)).astype(np.float32)
    return {"params": {"bn": {"scale": scale, "bias": bias}}, "batch_stats": {"bn": {"mean": mean, "var": var}}}


def ours(variables: dict[str, Any], x: jax.Array, mode: NormMode, dtype: Any = jnp.float32) -> Any:
    return _Normalised(mode, dtype).apply(variables, x, mutable=["batch_stats"])


def flax_norm(variables: dict[str, Any], x: jax.Array, train: bool, dtype: Any = jnp.float32) -> Any:
    module = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
    inner = {collection: variables[collection]["bn"] for collection in variables}
    y, updated = module.apply(inner, x, mutable=["batch_stats"])
    return y, {"batch_stats": {"bn": updated["batch_stats"]}}


def images(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(1.0, 2.0, shape), jnp.float32)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


@pytest.mark.parametrize("shape", [(6, 5, 3, 4), (8, 7)])
@pytest.mark.parametrize("train", [True, False])
def test_output_statistics_and_gradients_are_flax_s(shape: tuple[int, ...], train: bool) -> None:
    x, variables, weights = images(*shape), variables_of(shape[-1]), images(*shape, seed=1)

    def run(norm: Any, mode: Any) -> Any:
        def loss(params: Any, x: jax.Array) -> Any:
            y, updated = norm({**variables, "params": params}, x, mode)
            return (weights * y * y).sum(), (y, updated)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    assert_close(run(ours, NormMode(train)), run(flax_norm, train), 2e-6)


def test_without_a_bias_it_is_the_same_less_the_bias() -> None:
    x, variables = images(6, 5, 3, 4), variables_of(4)
    params = {"bn": {"scale": variables["params"]["bn"]["scale"]}}

    class Unbiased(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return batch_norm(self.path, "bn", NormMode(True), jnp.float32, use_bias=False)(x)

    whole, _ = ours(variables, x, NormMode(True))
    found, _ = Unbiased().apply({**variables, "params": params}, x, mutable=["batch_stats"])
    assert_close(np.asarray(found) + variables["params"]["bn"]["bias"], np.asarray(whole), 2e-6)
    assert jax.tree.structure(Unbiased().init(jax.random.key(0), x)["params"]) == jax.tree.structure(params)


def test_in_half_precision_statistics_stay_float32() -> None:
    x, variables = images(16, 9, 5, 8).astype(jnp.bfloat16), variables_of(8)
    (y, updated), (expected, statistics) = (
        ours(variables, x, NormMode(True), jnp.bfloat16),
        flax_norm(variables, x, True, jnp.bfloat16),
    )
    assert_close(updated, statistics, 2e-6)
    assert_close(y, expected, 2**-8)
    gradient = jax.grad(lambda x: ours(variables, x, NormMode(True), jnp.bfloat16)[0].astype(jnp.float32)[0].sum())(x)
    reference = jax.grad(lambda x: flax_norm(variables, x, True)[0][0].sum())(x.astype(jnp.float32))
    assert gradient.dtype == jnp.bfloat16
    assert_close(gradient, reference.astype(jnp.bfloat16), 2**-6)


def test_each_group_has_statistics_of_its_own() -> None:
    x, variables, weights = images(6, 5, 3, 4), variables_of(4), images(6, 5, 3, 4, seed=1)

    def loss(run: Any, x: jax.Array) -> Any:
        y, updated = run(x)
        return (weights * y).sum(), (y, updated)

    def apart(x: jax.Array) -> Any:
        ys, updates = zip(*(flax_norm(variables, part, True) for part in jnp.split(x, 3)), strict=True)
        return jnp.concatenate(ys), jax.tree.map(lambda *each: sum(each) / 3, *updates)

    found, expected = (
        jax.grad(loss, argnums=1, has_aux=True)(run, x)
        for run in (lambda x: ours(variables, x, NormMode(True, groups=3)), apart)
    )
    assert_close(found, expected, 2e-6)


def test_layers_named_so_keep_the_running_statistics_in_training() -> None:
    x, variables = images(6, 5, 3, 4), variables_of(4)
    y, updated = ours(variables, x, NormMode(True, running=frozenset({"bn"})))
    assert_close(y, ours(variables, x, NormMode(False))[0], 0)
    assert_close(updated["batch_stats"], variables["batch_stats"], 0)


def test_backward_keeps_one_map() -> None:
    x, width = images(2, 8, 6, 4, 3), jnp.ones(3)
    _, pull = jax.vjp(lambda *given: normalised(*given)[0], x, width, width)
    assert sum(leaf.size == x.size for leaf in jax.tree.leaves(pull)) == 1


def test_compiled_layers_keep_two_maps_each() -> None:
    """The input of each norm, and of what follows it; the centred one would be a third."""
    layers, channels = 12, 64
    x, width = images(64, 8, 8, channels), jnp.ones(channels)

    def loss(matrices: jax.Array, x: jax.Array) -> jax.Array:
        for matrix in matrices:
            x = nn.relu(normalised(x @ matrix, width, width)[0])
        return (x * x).sum()

    matrices = images(layers, channels, channels)
    memory: Any = jax.jit(jax.grad(loss)).lower(matrices, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < (2 * layers + layers / 2) * x.nbytes
