"""Tiles of distances against the definition, and equal rows at equal distances."""

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.distances import Side
from rgbd_reid_jax.metrics.pairwise import Pairwise


def side(rng, n, width=7, distinct=None):
    rows = np.arange(n) if distinct is None else rng.integers(0, distinct, n)
    embedding, gate = rng.normal(size=(n, width))[rows], rng.random((n, width))[rows]
    codes = np.zeros(n, np.int64)
    return Side(embedding.astype(np.float32), codes, codes, gate.astype(np.float32))


def defined(query, gallery, metric):
    """float64 [Q, G], without products that cancel."""
    q, g = (items.embedding.astype(np.float64) for items in (query, gallery))
    if metric == "cosine":
        q, g = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (q, g))
        cosine = (q[:, None] * g[None]).sum(2)
        return 1.0 - cosine
    if metric == "gated":
        difference = q[:, None] * gallery.gate.astype(np.float64) - g[None] * query.gate.astype(np.float64)[:, None]
    else:
        difference = q[:, None] - g[None]
    return np.sqrt((difference**2).sum(2))


def assembled(pairwise, shape, blocks=None):
    distance = np.full(shape, np.nan)
    if blocks is None:
        for rows, columns, values in pairwise.tiles():
            assert np.isnan(distance[np.ix_(rows, columns)]).all()  # every pair once
            distance[np.ix_(rows, columns)] = values
    else:
        for rows, values in pairwise.row_blocks(blocks):
            assert values.size <= max(blocks, shape[1])
            distance[rows] = values
    return distance


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "gated"])
@pytest.mark.parametrize("distinct", [None, 40, 1])
def test_all_ways_give_the_definition(metric, distinct):
    rng = np.random.default_rng(0)
    query, gallery = side(rng, 600, distinct=distinct), side(rng, 130, distinct=distinct)
    query.embedding[5] = 0.0
    pairwise, expected = Pairwise(query, gallery, metric), defined(query, gallery, metric)
    for blocks in (None, 1, 1000, 1 << 20):
        np.testing.assert_allclose(assembled(pairwise, expected.shape, blocks), expected, atol=1e-7)
    rows, columns = rng.integers(0, 600, 50), rng.integers(0, 130, 50)
    np.testing.assert_allclose(pairwise.of(rows, columns), expected[rows, columns], atol=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "gated"])
def test_equal_rows_have_equal_distances(metric):
    rng = np.random.default_rng(1)
    query, gallery = side(rng, 700, 33, distinct=300), side(rng, 5003, 33, distinct=2500)
    for items in (query, gallery):
        items.embedding[:, 0] = np.where(rng.random(len(items.embedding)) < 0.5, 0.0, -0.0)  # equal all the same
    distance = assembled(Pairwise(query, gallery, metric), (700, 5003))
    _, of_query = np.unique(query.embedding + 0.0, axis=0, return_inverse=True)
    _, of_gallery = np.unique(gallery.embedding + 0.0, axis=0, return_inverse=True)
    group = of_query.reshape(-1, 1) * 2500 + of_gallery.reshape(1, -1)
    order = np.argsort(group, axis=None)
    same = np.diff(group.ravel()[order]) == 0
    assert same.sum() > 1e5
    assert (np.diff(distance.ravel()[order])[same] == 0).all()


def test_near_duplicates_have_no_negative_distance():
    codes = np.zeros(1, np.int64)
    point = np.full((1, 2048), 1e3, np.float32)
    other = np.nextafter(point, np.float32(2e3))
    pairwise = Pairwise(Side(point, codes, codes), Side(other, codes, codes))
    assert assembled(pairwise, (1, 1))[0, 0] >= 0
    assert pairwise.of(np.zeros(1, int), np.zeros(1, int))[0] == pytest.approx(np.sqrt(2048) * 2**-14, rel=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "gated"])
@pytest.mark.parametrize("kind", ["collapsed", "clusters"])
def test_an_almost_collapsed_model_keeps_its_order(metric, kind):
    """Distances thousands of times smaller than the rows, in float32's last bits."""
    rng = np.random.default_rng(3)
    query, gallery = side(rng, 60, 512), side(rng, 90, 512)
    centre = np.full(512, 10.0) if kind == "collapsed" else rng.normal(size=(2, 512)) * 10
    for items in (query, gallery):
        near = centre if kind == "collapsed" else centre[rng.integers(0, 2, len(items.embedding))]
        items.embedding[:] = near + 1e-5 * rng.normal(size=items.embedding.shape)
        assert items.gate is not None
        items.gate[:] = 0.5
    pairwise = Pairwise(query, gallery, metric)
    rows, columns = np.divmod(np.arange(60 * 90), 90)
    exact = pairwise.of(rows, columns).reshape(60, 90)  # sums of squares: no terms cancel
    assert exact.min() < 1e-3
    for blocks in (None, 1 << 20):
        np.testing.assert_allclose(assembled(pairwise, (60, 90), blocks), exact, rtol=1e-7)


def test_equal_rows_of_the_two_sides_are_at_distance_zero():
    rng = np.random.default_rng(4)
    items = side(rng, 50, 300)
    assert (np.diag(assembled(Pairwise(items, items), (50, 50))) == 0).all()


def test_sides_that_do_not_fit_are_named():
    rng = np.random.default_rng(2)
    with pytest.raises(InputError, match="width 7, gallery embeddings 6"):
        Pairwise(side(rng, 3), side(rng, 3, 6))
