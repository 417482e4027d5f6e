"""Re-ranking of the nearest against brute force: ties, the order of the gallery, exclusion, equal calls, progress."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.evaluation import top_k
from rgbd_reid_jax.evaluation.top_k import rerank_top
from rgbd_reid_jax.metrics import dense, ranking
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.metrics.pairwise import Pairwise

_KINDS = ("random", "tied", "collapsed", "duplicated")


def make(embedding, person, **ids):
    """A set of its own camera and recording per item, unless `ids` says otherwise."""
    n = len(embedding)
    columns: dict[str, Any] = {"camera_id": np.arange(n), "recording_id": np.arange(n), "frame_id": np.arange(n)}
    columns |= {f"{name}_id": np.asarray(values) for name, values in ids.items()}
    return Embeddings(np.asarray(embedding, np.float32), np.asarray(person), **columns)


def random_set(rng, n, kind, width=5):
    embedding = rng.normal(size=(n, width))
    if kind == "tied":
        embedding = rng.integers(-1, 2, size=(n, width))
    elif kind == "collapsed":
        embedding[:] = 0.5
    elif kind == "duplicated":
        embedding = embedding[rng.integers(0, max(1, n // 3), n)]
    ids = {name: rng.integers(0, 4, n) for name in ("camera", "recording", "frame")}
    items = make(embedding, rng.integers(0, 4, n), **ids)
    gate = rng.integers(0, 3, size=(n, width)) / 2  # few values: ties stay ties
    object.__setattr__(items, "gate", gate.astype(np.float32))
    return items


class Table:
    """Pair distances from a table, and the pairs that were asked for, call by call."""

    def __init__(self, values):
        self.values, self.calls = np.asarray(values, np.float64), []

    def __call__(self, rows, columns):
        assert rows.dtype == columns.dtype == np.int32
        self.calls.append(list(zip(rows.tolist(), columns.tolist(), strict=True)))
        return self.values[rows, columns]

    @property
    def pairs(self):
        return {pair for call in self.calls for pair in call}


def hidden(query, q, gallery, g, protocol):
    def same(field):
        return getattr(query, field)[q] == getattr(gallery, field)[g]

    return {
        "cross_camera": same("camera_id"),
        "market": same("person_id") and same("camera_id"),
        "twin_excluded": same("recording_id") and same("frame_id"),
        "recording_excluded": same("recording_id"),
    }[protocol]


def base_squared(query, q, gallery, g):
    return ((query.embedding[q].astype(np.float64) - gallery.embedding[g].astype(np.float64)) ** 2).sum()


def oracle(query, gallery, protocol, k, table):
    """Item by item: AP and first hit of each query, the rate of ties, and the pairs that have to be compared."""
    aps, firsts, tied, positives, compared = [], [], 0, 0, set()
    for q in range(len(query)):
        items = []
        for g in range(len(gallery)):
            if not hidden(query, q, gallery, g, protocol):
                items.append((base_squared(query, q, gallery, g), g, query.person_id[q] == gallery.person_id[g]))
        items.sort()
        farthest = items[min(k, len(items)) - 1][0] if k and items else -1.0
        near = [g for squared, g, _ in items if squared <= farthest]
        if any(query.person_id[q] == gallery.person_id[g] for g in near):
            compared |= {(q, g) for g in near}
        keys = sorted(((0, table[q, g]) if g in near else (1, squared), positive) for squared, g, positive in items)
        ranks = [i + 1 for i, (_, positive) in enumerate(keys) if positive]
        others = {key for key, positive in keys if not positive}
        tied += sum(key in others for key, positive in keys if positive)
        positives += len(ranks)
        aps.append(np.mean([(i + 1) / rank for i, rank in enumerate(ranks)]) if ranks else np.nan)
        firsts.append(ranks[0] if ranks else 0)
    return np.array(aps), np.array(firsts), tied / max(positives, 1), compared


def assert_equal_scores(one, other):
    for name in ("ap", "cmc", "first_hit_rank", "skipped", "chance_cmc"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    numbers = ("mean_ap", "mean_ap_trapezoid", "mean_inp", "tie_rate", "chance_mean_ap", "protocol")
    numbers += ("num_query", "num_query_skipped", "num_query_absent", "num_gallery")
    for name in numbers:
        assert getattr(one, name) == getattr(other, name)
    for name in ("start", "others_ahead", "tied", "num_valid"):
        np.testing.assert_array_equal(getattr(one.ranks, name), getattr(other.ranks, name))


def test_by_hand():
    # Items at 1 .. 5 of persons 2 1 2 1 2. The three nearest are turned around: 2 1 2, then 1 and 2 as they were.
    query, gallery = make([[0.0]], [1], camera=[9]), make([[1.0], [2], [3], [4], [5]], [2, 1, 2, 1, 2])
    costly = Table([[30.0, 10.0, 20.0, 1.0, 2.0]])
    result = rerank_top(query, gallery, "cross_camera", 3, costly)
    assert result.ranks.positive.tolist() == [1, 3]
    assert result.ranks.rank.tolist() == [1, 4]
    assert result.ranks.distance.tolist() == [10.0, 4.0]
    assert result.mean_ap == pytest.approx((1 + 2 / 4) / 2)
    assert ranking.rank(query, gallery, "cross_camera").mean_ap == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert costly.pairs == {(0, 0), (0, 1), (0, 2)}


def test_every_item_that_ties_with_the_kth_is_one_of_the_k():
    query, gallery = make([[0.0]], [1], camera=[9]), make([[1.0], [2], [-2], [2], [3]], [2, 2, 1, 2, 1])
    costly = Table([[3.0, 2.0, 1.0, 4.0, 0.0]])
    result = rerank_top(query, gallery, "cross_camera", 2, costly)
    assert costly.pairs == {(0, 0), (0, 1), (0, 2), (0, 3)}
    assert result.ranks.rank.tolist() == [1, 5]


def test_costly_ties_count_against_the_positive():
    query, gallery = make([[0.0]], [1], camera=[9]), make([[1.0], [2], [3]], [1, 2, 1])
    result = rerank_top(query, gallery, "cross_camera", 2, Table(np.zeros((1, 3))))
    assert result.ranks.rank.tolist() == [2, 3]
    assert result.tie_rate == 0.5


@pytest.mark.parametrize("protocol", ranking.RULES)
@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), num_query=st.integers(1, 8), num_gallery=st.integers(1, 25), k=st.integers(0, 27)
)
def test_equals_brute_force(protocol, kind, seed, num_query, num_gallery, k):
    rng = np.random.default_rng(seed)
    query, gallery = random_set(rng, num_query, kind), random_set(rng, num_gallery, kind)
    costly = Table(rng.integers(0, 6, (num_query, num_gallery)) / 4)
    ap, first, tie_rate, compared = oracle(query, gallery, protocol, k, costly.values)
    if np.isnan(ap).all():
        with pytest.raises(InputError, match=r"protocol|none of the"):
            rerank_top(query, gallery, protocol, k, costly, batch=4)
        return
    result = rerank_top(query, gallery, protocol, k, costly, batch=4)
    np.testing.assert_allclose(result.ap, ap, rtol=1e-12)
    np.testing.assert_array_equal(result.first_hit_rank, first)
    assert result.tie_rate == pytest.approx(tie_rate)
    assert result.mean_ap == pytest.approx(np.nanmean(ap))
    assert costly.pairs == compared  # a twin that the rule drops is none of them
    hits = [(first[first > 0] <= rank).mean() for rank in range(1, 21)]
    np.testing.assert_allclose(result.cmc, hits)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "gated"])
@pytest.mark.parametrize("kind", _KINDS)
def test_no_k_and_the_cheap_distance_itself_give_the_plain_ranking(kind, metric):
    rng = np.random.default_rng(1)
    query, gallery = random_set(rng, 40, kind), random_set(rng, 90, kind)
    expected = ranking.rank(query, gallery, "twin_excluded", metric=metric)
    assert_equal_scores(
        rerank_top(query, gallery, "twin_excluded", 0, Table(np.zeros((0, 0))), metric=metric), expected
    )
    cheap = dense.pairwise(query, gallery, metric)
    for k in (1, 2, 7, 30, 89, 90, 1000):
        assert_equal_scores(rerank_top(query, gallery, "twin_excluded", k, cheap.of, metric=metric), expected)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("k", [30, 31, 500])
def test_k_of_the_gallery_ranks_all_pairs(kind, k):
    rng = np.random.default_rng(2)
    query, gallery = random_set(rng, 20, kind), random_set(rng, 30, kind)
    costly = Table(rng.integers(0, 40, (20, 30)))
    result = rerank_top(query, gallery, "recording_excluded", k, costly)
    visible = ranking.valid_items(query, gallery, "recording_excluded")
    found = dense.dense_ranks([(np.arange(20), costly.values, visible)], query.person_id, gallery.person_id)
    assert_equal_scores(result, ranking.score(found, query, gallery, "recording_excluded"))
    np.testing.assert_array_equal(result.ranks.distance, found.distance)
    np.testing.assert_array_equal(result.ranks.positive, found.positive)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(_KINDS), k=st.integers(1, 40))
def test_gallery_order_never_changes_a_score(seed, kind, k):
    rng = np.random.default_rng(seed)
    query, gallery = random_set(rng, 11, kind, 37), random_set(rng, 40, kind, 37)
    table = rng.integers(0, 20, (11, 40))
    for metric in ("euclidean", "cosine", "gated"):
        expected = rerank_top(query, gallery, "twin_excluded", k, Table(table), metric=metric)
        order = rng.permutation(40)
        found = rerank_top(query, gallery.take(order), "twin_excluded", k, Table(table[:, order]), metric=metric)
        assert_equal_scores(found, expected)


@pytest.mark.parametrize("entries", [1, 60, 100, 1 << 20])
@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_neither_batches_nor_blocks_change_a_score(entries, batch, monkeypatch):
    rng = np.random.default_rng(3)
    query, gallery = random_set(rng, 25, "random"), random_set(rng, 30, "random")
    table = rng.normal(size=(25, 30))
    expected = rerank_top(query, gallery, "cross_camera", 9, Table(table))
    monkeypatch.setattr(top_k, "_BLOCK", entries)
    costly, whole = Table(table), Table(table)
    found = rerank_top(query, gallery, "cross_camera", 9, costly, batch=batch)
    assert_equal_scores(found, expected)
    assert {len(call) for call in costly.calls} == {batch}  # always full
    rerank_top(query, gallery, "cross_camera", 9, whole, batch=1)
    assert costly.pairs == whole.pairs
    assert len(whole.calls) == len(whole.pairs)  # none twice


def test_a_jitted_distance_is_compiled_once():
    rng = np.random.default_rng(4)
    query, gallery = random_set(rng, 25, "random"), random_set(rng, 30, "random")
    maps, traces = jnp.asarray(rng.normal(size=(2, 30, 6)), jnp.float32), []

    @jax.jit
    def costly(rows, columns):
        traces.append(rows.shape)
        return jnp.abs(maps[0][rows] - maps[1][columns]).sum(axis=1)

    result = rerank_top(query, gallery, "market", 5, costly, batch=16)
    assert traces == [(16,)]
    table = np.abs(np.asarray(maps[0])[:, None] - np.asarray(maps[1])[None]).sum(axis=2)
    np.testing.assert_allclose(result.ap, oracle(query, gallery, "market", 5, table)[0])


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "gated"])
def test_estimates_wrong_in_the_eighth_digit_choose_the_same_items(metric, monkeypatch):
    rng = np.random.default_rng(5)
    query, gallery = random_set(rng, 20, "tied"), random_set(rng, 60, "tied")
    table = rng.normal(size=(20, 60))
    expected = [(k, Table(table)) for k in (1, 3, 10, 59)]
    scores = [rerank_top(query, gallery, "market", k, costly, metric=metric) for k, costly in expected]
    exact = Pairwise.row_blocks

    def rounded(self, entries):
        for rows, distance in exact(self, entries):
            yield rows, distance * (1 + 1e-8 * rng.uniform(-1, 1, distance.shape))

    monkeypatch.setattr(Pairwise, "row_blocks", rounded)
    for (k, before), score in zip(expected, scores, strict=True):
        costly = Table(table)
        assert_equal_scores(rerank_top(query, gallery, "market", k, costly, metric=metric), score)
        assert costly.pairs == before.pairs


def test_a_twin_that_the_rule_drops_is_never_compared():
    rows = np.repeat(np.random.default_rng(6).normal(size=(6, 4)), 2, axis=0)
    items = make(rows, np.repeat(np.arange(3), 4), recording=np.repeat(np.arange(3), 4), frame=np.arange(12) % 4)
    costly = Table(np.where(np.eye(12, dtype=bool), -1.0, 1.0))  # the twin would be first
    result = rerank_top(items, items, "twin_excluded", 12, costly)
    assert costly.pairs == {(q, g) for q in range(12) for g in range(12) if q != g}
    assert result.ranks.tied.all()


def test_queries_without_a_positive_among_the_nearest_are_not_compared():
    query = make([[0.0], [10.0], [0.0]], [1, 2, 7], camera=[90, 91, 92])
    gallery = make([[1.0], [2], [3], [9]], [3, 3, 1, 2])
    costly = Table(np.zeros((3, 4)))
    result = rerank_top(query, gallery, "cross_camera", 2, costly)
    assert {q for q, _ in costly.pairs} == {1}
    assert result.first_hit_rank.tolist() == [3, 2, 0]
    assert result.num_query_absent == 1


def test_progress_has_a_rate_and_the_time_left(capsys, monkeypatch):
    rng = np.random.default_rng(7)
    query, gallery = random_set(rng, 25, "random"), random_set(rng, 30, "random")
    rerank_top(query, gallery, "cross_camera", 5, Table(rng.normal(size=(25, 30))))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(top_k, "_BLOCK", 300)
    monkeypatch.setattr("rgbd_reid_jax.core.progress.Progress.update", _always(top_k.Progress.update))
    rerank_top(query, gallery, "cross_camera", 5, Table(rng.normal(size=(25, 30))), batch=8, stage="top 5")
    lines = [line for line in capsys.readouterr().out.splitlines() if "re-ranking" in line]
    assert lines[-1].startswith("[top 5] re-ranking: query 25/25  100 %")
    done = [int(line.split("query ")[1].split("/")[0]) for line in lines]
    assert done == sorted(done)
    assert len(set(done)) > 5
    assert all("pairs/s" in line and "ETA" in line for line in lines if "query 0/" not in line)


def _always(update):
    return lambda self, done, **figures: update(self, done, force=True, **figures)


def test_bad_input_is_named():
    items = make([[0.0], [1], [2]], [1, 1, 2])
    for options, message in (
        ({"k": -1}, "k=-1 must be at least 0"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"max_rank": 9}, "max_rank=9 must be at least 10"),
        ({"protocol": "paper"}, "unknown protocol 'paper'"),
        ({"metric": "manhattan"}, "unknown metric 'manhattan'"),
        ({"metric": "gated"}, "lacks gate, which metric gated needs"),
        ({"gallery": make([[0.0, 1.0]], [1])}, "width 1, gallery embeddings 2"),
    ):
        arguments: dict[str, Any] = {"query": items, "gallery": items, "protocol": "twin_excluded", "k": 2, **options}
        with pytest.raises(InputError, match=message):
            rerank_top(**arguments, pair_distance=Table(np.zeros((3, 3))))
    with pytest.raises(InputError, match="leaves none of the 3 queries"):
        rerank_top(items, items.take(np.array([2])), "recording_excluded", 2, Table(np.zeros((3, 1))))
    one_camera = make([[0.0], [1]], [1, 1], camera=[4, 4])
    with pytest.raises(InputError, match="leaves none of the 2 queries"):
        rerank_top(one_camera, one_camera, "cross_camera", 2, Table(np.zeros((2, 2))), stage="top 2")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_distance_that_is_not_finite_is_named(value):
    query, gallery = make([[0.0]], [1], camera=[9]), make([[1.0], [2], [3]], [2, 1, 2])
    with pytest.raises(InputError, match=r"query row 0 and gallery row 2 is (nan|inf); the model has diverged"):
        rerank_top(query, gallery, "cross_camera", 3, Table([[1.0, 2.0, value]]))
