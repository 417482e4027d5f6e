"""The hardest pairs of a batch against a search through all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rgbd_reid_jax.training import hard_pairs

hardest = jax.jit(hard_pairs.hardest)


def search(squared, identity):
    """(row, column) of the farthest positive and the nearest negative of each row, then of each column."""
    count = len(identity)
    found = []
    for of_row in (True, False):
        for positive in (True, False):
            for anchor in range(count):
                places = [(anchor, other) if of_row else (other, anchor) for other in range(count)]
                allowed = [place for place in places if (identity[place[0]] == identity[place[1]]) == positive]
                by_distance = sorted(allowed, key=lambda place: squared[place])
                found.append(by_distance[-1 if positive else 0] if allowed else places[0])
    return found


@pytest.mark.parametrize("identity", [[0, 0, 1, 1, 2, 2], [3, 1, 3, 3, 1, 7], [5, 4, 3, 2, 1, 0]])
def test_pairs_are_those_of_a_search(identity):
    squared = np.random.default_rng(2).uniform(0, 9, (6, 6)).astype(np.float32)
    rows, columns = hardest(squared, np.array(identity, np.int32))
    assert rows.shape == columns.shape == (24,)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == search(squared, identity)


def test_without_negatives_each_gets_its_first_pair():
    squared = np.random.default_rng(3).uniform(0, 9, (4, 4)).astype(np.float32)
    rows, columns = hardest(squared, np.zeros(4, np.int32))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == search(squared, [0] * 4)


def test_no_gradient_passes_through_the_choice():
    squared = np.random.default_rng(4).uniform(0, 9, (4, 4)).astype(np.float32)
    identity = jnp.asarray([0, 0, 1, 1], jnp.int32)

    def chosen(matrix):
        rows, columns = hard_pairs.hardest(matrix, identity)
        return squared[0, 0] * 0.0 + (rows + columns).sum().astype(np.float32)

    np.testing.assert_array_equal(jax.jit(jax.grad(chosen))(squared), 0.0)
