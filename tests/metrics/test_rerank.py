"""Re-ranking against the paper's algorithm on dense matrices; query expansion against hand numbers; memory."""

import tracemalloc

import numpy as np
import pytest

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import scores
from rgbd_reid_jax.metrics.ranks import Side, positive_ranks
from rgbd_reid_jax.metrics.rerank import expand_queries, reranked_ranks

_SMALL = {"k1": 7, "k2": 3, "weight": 0.3}


def side(rng, n, persons=5, width=6, kind="random", drops=None):
    person = rng.integers(0, persons, n)
    embedding = (np.eye(persons, width)[person] * 2 + rng.normal(size=(n, width))).astype(np.float32)
    if kind == "tied":
        embedding = np.round(embedding)
    elif kind == "duplicated":
        embedding = embedding[rng.integers(0, max(1, n // 2), n)]
    elif kind == "collapsed":
        embedding[:] = 0.3
    drop = rng.permutation(n) if drops is None else rng.integers(0, drops, n)
    return Side(embedding, person, drop)


def all_squared(query, gallery, metric):
    rows = np.concatenate([query.embedding, gallery.embedding]).astype(np.float64)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    distance = ((rows[:, None] - rows[None]) ** 2).sum(2)
    return distance / 2 if metric == "cosine" else distance


def dense_reranking(query, gallery, k1, k2, weight, metric="euclidean", hide=False):
    """Zhong et al., one item after the other, with sets and an N x N matrix of encodings."""
    distance = all_squared(query, gallery, metric)
    num_query, num = len(query.person), len(distance)
    hidden = np.zeros((num, num), bool)
    if hide:
        hidden[:num_query, num_query:] = query.drop[:, None] == gallery.drop[None]
        hidden |= hidden.T
    distance /= np.where(hidden, 0, distance).max(1, keepdims=True)
    # Rounding off makes equal what is equal in exact arithmetic, so that ties go by index.
    listed = [[j for j in np.argsort(np.round(distance[i], 12), kind="stable") if not hidden[i, j]] for i in range(num)]

    def reciprocal(i, k):
        return {j for j in listed[i][: k + 1] if i in listed[j][: k + 1]}

    encoding = np.zeros((num, num))
    for i in range(num):
        members = set(mine := reciprocal(i, k1))
        for j in mine:
            theirs = reciprocal(j, int(np.around(k1 / 2)))
            if len(theirs & mine) > 2 / 3 * len(theirs):
                members |= theirs
        members = [j for j in members if not hidden[i, j]]
        if members:
            value = np.exp(-distance[i, members])
            encoding[i, members] = value / value.sum()
    encoding = np.stack([encoding[listed[i][:k2]].mean(0) for i in range(num)])
    final = np.zeros((num_query, num - num_query))
    for q in range(num_query):
        for g in range(num_query, num):
            shared = np.minimum(encoding[q], encoding[g]).sum()
            final[q, g - num_query] = (1 - weight) * (1 - shared / (2 - shared)) + weight * distance[q, g]
    return final


def assert_ranks(ranks, final, query, gallery):
    """Every positive has its re-ranked distance, and its rank by counting."""
    assert ranks.num_gallery == len(gallery.person)
    for q in range(len(query.person)):
        seen = query.drop[q] != gallery.drop
        same = gallery.person == query.person[q]
        span = slice(ranks.start[q], ranks.start[q + 1])
        assert sorted(ranks.positive[span]) == sorted(np.flatnonzero(seen & same))
        np.testing.assert_allclose(ranks.distance[span], final[q, ranks.positive[span]], atol=1e-6)
        assert (np.diff(ranks.distance[span]) >= 0).all()
        others = final[q, seen & ~same]
        for place in range(span.start, span.stop):
            mine = final[q, ranks.positive[place]]
            assert (others < mine - 1e-9).sum() <= ranks.others_ahead[place] <= (others < mine + 1e-9).sum()
        assert ranks.num_valid[q] == seen.sum()


# Not tied by cosine: equal angles between different rows are equal up to rounding only, which then decides ties.
@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("euclidean", "random"),
        ("euclidean", "duplicated"),
        ("euclidean", "tied"),
        ("cosine", "random"),
        ("cosine", "duplicated"),
    ],
)
@pytest.mark.parametrize("k", [(7, 3), (20, 6), (5, 1), (1, 2)])
def test_equals_the_dense_algorithm(metric, kind, k):
    rng = np.random.default_rng(sum(k))
    query, gallery = side(rng, 15, kind=kind), side(rng, 40, kind=kind)
    settings = {"k1": k[0], "k2": k[1], "weight": 0.3}
    final = dense_reranking(query, gallery, **settings, metric=metric)
    query = Side(query.embedding, query.person, -1 - query.drop)  # codes of its own: all is visible
    assert_ranks(reranked_ranks(query, gallery, metric=metric, **settings), final, query, gallery)


@pytest.mark.parametrize("hide", [True, False])
def test_hidden_items_are_no_neighbours(hide):
    rng = np.random.default_rng(1)
    query, gallery = side(rng, 15, drops=6), side(rng, 40, drops=6)
    final = dense_reranking(query, gallery, **_SMALL, hide=hide)
    assert_ranks(reranked_ranks(query, gallery, hide=hide, **_SMALL), final, query, gallery)


def test_a_hidden_twin_has_no_say():
    """The twin lies on its query, among images of another person whom it would recommend."""
    rng = np.random.default_rng(2)
    wrong, right = rng.normal(size=(2, 12, 4)) * 0.2 + np.array([0.0, 3.0])[:, None, None]
    query = Side(np.full((1, 4), 1.4, np.float32), np.array([1]), np.array([99]))
    embedding = np.concatenate([wrong, right, query.embedding]).astype(np.float32)
    gallery = Side(embedding, np.repeat([0, 1, 1], [12, 12, 1]), np.append(np.arange(24), 99))
    without = Side(gallery.embedding[:24], gallery.person[:24], gallery.drop[:24])
    hidden = reranked_ranks(query, gallery, k1=3, k2=1)
    assert len(hidden.positive) == 12
    # Its absence changes the gallery's own lists at most, and they do not show it here.
    expected = reranked_ranks(query, without, k1=3, k2=1)
    np.testing.assert_array_equal(hidden.others_ahead, expected.others_ahead)
    np.testing.assert_allclose(hidden.distance, expected.distance, atol=1e-12)


@pytest.mark.parametrize("kind", ["random", "duplicated", "collapsed"])
def test_block_size_changes_nothing(kind):
    rng = np.random.default_rng(3)
    query, gallery = side(rng, 40, kind=kind), side(rng, 90, kind=kind)
    expected = reranked_ranks(query, gallery, **_SMALL)
    for block in (1, 500, 4000):
        ranks = reranked_ranks(query, gallery, block=block, **_SMALL)
        np.testing.assert_array_equal(ranks.positive, expected.positive)
        np.testing.assert_array_equal(ranks.rank, expected.rank)
        np.testing.assert_allclose(ranks.distance, expected.distance, atol=1e-12)


def test_weight_one_is_the_original_order():
    rng = np.random.default_rng(4)
    query, gallery = side(rng, 20, drops=8), side(rng, 50, drops=8)
    ranks, plain = reranked_ranks(query, gallery, weight=1.0), positive_ranks(query, gallery)
    np.testing.assert_array_equal(ranks.positive, plain.positive)
    np.testing.assert_array_equal(ranks.rank, plain.rank)


def test_it_helps_where_persons_are_clusters():
    rng = np.random.default_rng(5)
    person = np.repeat(np.arange(30), 8)
    centre = rng.normal(size=(30, 16))
    sides = [
        Side((centre[person] + 0.9 * rng.normal(size=(240, 16))).astype(np.float32), person, np.full(240, code))
        for code in range(2)
    ]
    plain = np.nanmean(scores.average_precision(positive_ranks(*sides)))
    again = np.nanmean(scores.average_precision(reranked_ranks(*sides, k1=10, k2=3)))
    assert again > plain + 0.02


def test_memory_grows_with_the_lists_alone():
    peaks = []
    for num in (1000, 4000):
        rng = np.random.default_rng(6)
        sides = [side(rng, n, persons=num // 10, width=8) for n in (num // 6, num - num // 6)]
        tracemalloc.start()
        reranked_ranks(*sides, block=1 << 17)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4000**2 * 8 / 4  # one dense N x N matrix is four times that; the authors' code holds several
    assert peaks[1] < 6 * peaks[0]  # 16 times if it grew with N^2


def test_expanded_queries_are_means_of_visible_neighbours():
    query = Side(np.array([[0.0], [10.0]], np.float32), np.array([1, 2]), np.array([5, 6]))
    gallery = Side(
        np.array([[0.1], [1.0], [2.0], [12.0], [2.0]], np.float32), np.zeros(5, int), np.array([5, 0, 1, 2, 3])
    )
    # The first query does not see the item at 0.1; of the two at 2 the first one counts.
    np.testing.assert_allclose(expand_queries(query, gallery, 2), [[(0 + 1 + 2) / 3], [(10 + 12 + 2) / 3]], rtol=1e-6)
    np.testing.assert_allclose(expand_queries(query, gallery, 9)[0], (0 + 1 + 2 + 12 + 2) / 5, rtol=1e-6)


@pytest.mark.parametrize("k", [30, 10**9])
def test_more_neighbours_than_there_are_is_all_of_them(k):
    rng = np.random.default_rng(8)
    query, gallery = side(rng, 6), side(rng, 9)
    ranks, expected = reranked_ranks(query, gallery, k1=k, k2=k), reranked_ranks(query, gallery, k1=28, k2=15)
    np.testing.assert_array_equal(ranks.rank, expected.rank)
    np.testing.assert_array_equal(ranks.distance, expected.distance)
    np.testing.assert_array_equal(expand_queries(query, gallery, k), expand_queries(query, gallery, 9))


def test_expanded_queries_of_cosine_are_means_of_directions():
    query = Side(np.array([[3.0, 0.0]], np.float32), np.array([1]), np.array([0]))
    gallery = Side(np.array([[0.0, 1.0], [8.0, 6.0]], np.float32), np.array([1, 1]), np.array([1, 2]))
    np.testing.assert_allclose(expand_queries(query, gallery, 1, metric="cosine"), [[0.9, 0.3]], rtol=1e-6)


def test_expansion_does_not_depend_on_blocks():
    rng = np.random.default_rng(7)
    query, gallery = side(rng, 30, kind="duplicated", drops=9), side(rng, 70, kind="duplicated", drops=9)
    expected = expand_queries(query, gallery, 4)
    np.testing.assert_array_equal(expand_queries(query, gallery, 4, block=1), expected)
    for q in range(30):
        distance = ((query.embedding[q] - gallery.embedding) ** 2).sum(1).astype(np.float64)
        distance[gallery.drop == query.drop[q]] = np.inf
        rows = np.argsort(np.round(distance, 6), kind="stable")[:4]
        mean = np.concatenate([query.embedding[q : q + 1], gallery.embedding[rows]]).mean(0)
        np.testing.assert_allclose(expected[q], mean, rtol=1e-5, atol=1e-6)


def test_progress_is_shown(capsys):
    rng = np.random.default_rng(8)
    reranked_ranks(side(rng, 5), side(rng, 9), stage="rerank", **_SMALL)
    words = capsys.readouterr().out
    assert "[rerank] neighbours: item 14/14" in words
    assert "[rerank] re-ranking: item 5/5" in words


def test_mistakes_are_named():
    rng = np.random.default_rng(9)
    query, gallery = side(rng, 5), side(rng, 9)
    with pytest.raises(InputError, match="metric 'gated' has no re-ranking"):
        reranked_ranks(query, gallery, metric="gated")
    with pytest.raises(InputError, match="k1=0 must be at least 1"):
        reranked_ranks(query, gallery, k1=0)
    with pytest.raises(InputError, match=r"weight=1\.5 must be within 0 and 1"):
        reranked_ranks(query, gallery, weight=1.5)
    with pytest.raises(InputError, match="k=0 must be at least 1"):
        expand_queries(query, gallery, 0)
    with pytest.raises(InputError, match="width 6, gallery embeddings 3"):
        reranked_ranks(query, Side(gallery.embedding[:, :3], gallery.person, gallery.drop))
