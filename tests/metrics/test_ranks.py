"""The ranking engine against float64 brute force: ties, order, blocks, devices, bounds and memory."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics import distances, ranks
from rgbd_reid_jax.metrics.ranks import METRICS, Side, positive_ranks

KINDS = ("random", "tied", "collapsed", "duplicated", "near", "bfloat16", "zeros", "clusters", "huge", "tiny")
FIELDS = ("start", "positive", "others_ahead", "tied", "num_valid")


def embeddings(rng, n, width, kind):
    values = rng.normal(size=(n, width))
    if kind == "tied":
        values = rng.integers(-1, 2, size=(n, width))
    elif kind == "collapsed":
        values = np.full((n, width), 0.3)
    elif kind == "duplicated":
        values = values[rng.integers(0, max(1, n // 3), n)]
    elif kind == "near":  # a few units in the last place apart, far from the origin
        values = 1e3 + rng.integers(-1, 2, size=(n, width)) * 2.0**-14
    elif kind == "zeros":
        values = np.where(rng.random((n, 1)) < 0.5, 0.0, values)
    elif kind == "clusters":  # two points with noise near float32's resolution: no common vector brings them together
        values = np.where(rng.random((n, 1)) < 0.5, -50.0, 50.0) + 1e-5 * values
    elif kind == "huge":
        values = values * 10.0 ** rng.integers(-30, 38, size=(n, 1))
    elif kind == "tiny":
        values = values * 1e-39
    values = values.astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32) if kind == "bfloat16" else values


def side(rng, n, kind="random", *, persons=6, width=24):
    gate = 1 / (1 + np.exp(-rng.normal(size=(n, width))))
    if kind in ("tied", "collapsed", "duplicated"):
        gate = np.round(4 * gate) / 4
    drop = rng.integers(0, 5, n)
    return Side(embeddings(rng, n, width, kind), rng.integers(0, persons, n), drop, gate.astype(np.float32))


def squared(query, gallery, metric):
    """float64 [Q, G], from all differences; one sum per pair."""
    q, g = query.embedding.astype(np.float64)[:, None], gallery.embedding.astype(np.float64)[None]
    if metric == "gated":
        difference = q * gallery.gate.astype(np.float64)[None] - g * query.gate.astype(np.float64)[:, None]
        return np.vecdot(difference, difference)
    if metric == "euclidean":
        return np.vecdot(q - g, q - g)
    norms = [np.sqrt(np.vecdot(x, x))[..., None] for x in (q, g)]
    q, g = (x / np.where(norm > 0, norm, 1) for x, norm in zip((q, g), norms, strict=True))
    return np.where((norms[0] == 0) | (norms[1] == 0), 2.0, np.vecdot(q - g, q - g)[..., None])[..., 0]


def oracle(query, gallery, metric):
    """Sorts the visible items of every query."""
    entries = {name: [] for name in (*FIELDS, "distance")}
    entries["start"].append([0])
    for i, row in enumerate(squared(query, gallery, metric)):
        visible, same = gallery.drop != query.drop[i], gallery.person == query.person[i]
        positive = np.flatnonzero(visible & same)
        positive = positive[np.argsort(row[positive], kind="stable")]
        other = np.sort(row[visible & ~same])
        ahead = np.searchsorted(other, row[positive], "right")
        entries["positive"].append(positive)
        entries["others_ahead"].append(ahead)
        entries["tied"].append(ahead > np.searchsorted(other, row[positive], "left"))
        entries["distance"].append(row[positive] / 2 if metric == "cosine" else np.sqrt(row[positive]))
        entries["num_valid"].append([visible.sum()])
        entries["start"].append([entries["start"][-1][0] + len(positive)])
    return {name: np.concatenate(values) for name, values in entries.items()}


def check(result, expected):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(result, name), expected[name], err_msg=name)
    np.testing.assert_allclose(result.distance, expected["distance"], rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_brute_force(metric, kind, monkeypatch):
    """30 kinds and metrics x 20 draws x 12 queries: 7200 rankings."""

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), few=st.sampled_from([0.0, 1.0]), many=st.sampled_from([0, 10**9]))
    def run(seed, few, many):
        monkeypatch.setattr(ranks, "_FEW", few)  # either way of counting
        monkeypatch.setattr(ranks, "_MANY", many)  # with and without merging equal rows
        rng = np.random.default_rng(seed)
        query, gallery = side(rng, 12, kind), side(rng, 40, kind)
        check(positive_ranks(query, gallery, metric=metric), oracle(query, gallery, metric))

    run()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["random", "tied", "collapsed", "bfloat16"])
def test_order_blocks_padding_and_devices_change_nothing(metric, kind, mesh_of):
    rng = np.random.default_rng(0)
    query, gallery = side(rng, 37, kind), side(rng, 203, kind)
    expected = positive_ranks(query, gallery, metric=metric)
    order = rng.permutation(203)
    permuted = Side(*(getattr(gallery, field.name)[order] for field in dataclasses.fields(Side)))
    for query_block, gallery_block in ((16, None), (None, 24), (16, 96)):
        result = positive_ranks(query, gallery, metric=metric, query_block=query_block, gallery_block=gallery_block)
        check(result, vars(expected))
    for devices in (1, 8):
        check(positive_ranks(query, gallery, metric=metric, mesh=mesh_of(devices)), vars(expected))
        check(positive_ranks(query, gallery, metric=metric, mesh=mesh_of(devices), gallery_block=64), vars(expected))
    result = positive_ranks(query, permuted, metric=metric, gallery_block=64)
    for name in (
        "start",
        "others_ahead",
        "tied",
        "num_valid",
        "distance",
    ):  # `positive`: tied ones are in gallery order
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)


def test_wide_embeddings_equal_brute_force(mesh_of):
    rng = np.random.default_rng(1)
    for metric in METRICS:
        query, gallery = side(rng, 24, width=1500), side(rng, 120, width=1500)
        for mesh in (None, mesh_of(8)):
            check(positive_ranks(query, gallery, metric=metric, mesh=mesh), oracle(query, gallery, metric))


def test_near_duplicates_where_the_expanded_square_is_negative():
    point = np.full((1, 2048), 1e3, np.float32)
    step = np.nextafter(point, np.float32(2e3))
    other = point.copy()
    other[0, :3] = step[0, :3]
    gallery = np.concatenate([other, step, point, step])
    expanded = (point**2).sum(1) + (gallery**2).sum(1) - 2 * (point @ gallery.T)[0]
    assert (expanded != np.square(gallery - point).sum(1)).any()  # float32 cannot do it so
    result = positive_ranks(
        Side(point, np.zeros(1, np.int64), np.full(1, -1)), Side(gallery, np.array([1, 0, 2, 3]), np.zeros(4, np.int64))
    )
    assert result.others_ahead.tolist() == [3]
    assert result.tied.tolist() == [True]
    assert result.distance[0] == pytest.approx(np.sqrt(2048) * float(step[0, 0] - point[0, 0]), rel=1e-12)


def test_metrics_by_hand():
    query = Side(np.array([[3, 4]], np.float32), np.array([0]), np.array([-1]), np.array([[0.5, 0.25]], np.float32))
    gate = np.array([[0.5, 0.5], [1, 1], [0, 1]], np.float32)
    gallery = Side(np.array([[0, 5], [3, 4], [0, 0]], np.float32), np.zeros(3, np.int64), np.zeros(3, np.int64), gate)

    def values(metric):
        result = positive_ranks(query, gallery, metric=metric)
        return dict(zip(result.positive.tolist(), result.distance.tolist(), strict=True))

    assert values("euclidean") == pytest.approx({1: 0.0, 0: np.sqrt(10), 2: 5.0})
    assert values("cosine") == pytest.approx({1: 0.0, 0: 1 - 0.8, 2: 1.0})  # no direction: cosine 0
    # |q a(g) - g b(q)|: (1.5, 2 - 1.25), (3 - 1.5, 4 - 1), (0, 4)
    assert values("gated") == pytest.approx({0: np.hypot(1.5, 0.75), 1: np.hypot(1.5, 3), 2: 4.0})


def test_keep_equals_a_gallery_without_these_items():
    rng = np.random.default_rng(2)
    query, gallery = side(rng, 1, "tied", persons=2), side(rng, 60, "tied", persons=2)
    result = positive_ranks(query, gallery)
    wanted = rng.random(len(result.positive)) < 0.5
    gone = np.isin(np.arange(60), result.positive[~wanted])
    without = Side(gallery.embedding[~gone], gallery.person[~gone], gallery.drop[~gone])
    expected = oracle(query, without, "euclidean")
    expected["positive"] = np.flatnonzero(~gone)[expected["positive"]]
    check(result.keep(wanted), expected)
    assert result.keep(wanted).num_gallery == 60


def test_rank_counts_from_one():
    gallery = Side(np.arange(1, 8, dtype=np.float32)[:, None], np.array([7, 7, 3, 7, 3, 3, 7]), np.zeros(7, np.int64))
    query = Side(np.zeros((3, 1), np.float32), np.array([7, 1, 3]), np.array([-1, -1, -1]))
    result = positive_ranks(query, gallery)
    assert result.rank.tolist() == [1, 2, 4, 7, 3, 5, 6]
    assert result.order.tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert result.query.tolist() == [0, 0, 0, 0, 2, 2, 2]
    assert result.num_positive.tolist() == [4, 0, 3]


def test_without_any_positive():
    query = Side(np.zeros((2, 3), np.float32), np.array([1, 2]), np.array([0, 1]))
    gallery = Side(np.zeros((4, 3), np.float32), np.array([1, 3, 3, 4]), np.zeros(4, np.int64))
    result = positive_ranks(query, gallery)
    assert result.start.tolist() == [0, 0, 0]
    assert result.num_valid.tolist() == [0, 4]
    assert not len(result.rank)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), metric=st.sampled_from(METRICS))
def test_the_error_bound_holds_in_any_order_of_summation(seed, kind, metric):
    rng = np.random.default_rng(seed)
    query, gallery = side(rng, 7, kind), side(rng, 9, kind)
    factors = distances.Factors(query, gallery, metric)
    q, g = factors.query(np.arange(7), 8), factors.gallery(0, 9, 16)
    assert not q.factor[7:].any()
    assert not g.factor[9:].any()
    exact = factors.half(squared(query, gallery, metric)) - q.offset[:, None]
    bound = distances.error_bound(q, g, factors.width, 2.0**-24)
    for order in (np.arange(factors.width), rng.permutation(factors.width)):
        product = np.zeros((7, 9), np.float32)
        for i in order:  # the longest chain there is
            product += q.factor[:7, i, None] * g.factor[None, :9, i]
        error = np.abs(g.offset.astype(np.float32)[None] - product - exact)
        assert (error <= bound[:, None] + 1e-12 * np.abs(exact)).all()
    usual = bound < distances._UNDECIDED / 2  # what is too large for float32 is left to float64
    scale = np.vecdot(q.norm, q.norm) + np.vecdot(g.norm, g.norm).max() + np.abs(q.offset) + np.abs(g.offset).max()
    assert (bound[usual] <= 1e-4 * scale[usual] + 1e-30).all()


@pytest.mark.parametrize("metric", METRICS)
def test_a_distance_depends_on_the_two_rows_alone(metric):
    rng = np.random.default_rng(3)
    for width in (1, 3, 24, 1000):
        query, gallery = side(rng, 40, width=width), side(rng, 90, width=width)
        rows, items = np.divmod(np.arange(40 * 90), 90)
        pairs = distances.squared_pairs(query, gallery, rows, items, metric)
        groups = [(np.arange(40)[part], np.arange(90)) for part in (slice(0, 7), slice(7, 40))]
        np.testing.assert_array_equal(distances.squared_groups(query, gallery, groups, metric), pairs)
        np.testing.assert_array_equal(squared(query, gallery, metric).ravel(), pairs)
        chosen = rng.integers(0, len(pairs), 33)
        again = distances.squared_pairs(query, gallery, rows[chosen], items[chosen], metric)
        np.testing.assert_array_equal(again, pairs[chosen])


def test_equal_rows_are_decided_once(monkeypatch):
    decided = []

    def counted(query, gallery, query_rows, gallery_rows, metric):
        decided.append(len(query_rows))
        return distances.squared_pairs(query, gallery, query_rows, gallery_rows, metric)

    monkeypatch.setattr(ranks, "squared_pairs", counted)
    rng = np.random.default_rng(4)
    query, gallery = side(rng, 100, "collapsed", persons=50), side(rng, 5000, "collapsed", persons=50)
    result = positive_ranks(query, gallery)
    assert result.tied.all()
    assert (result.others_ahead == (result.num_valid - result.num_positive)[result.query]).all()
    assert sum(decided) <= 200  # one distance for each query, not 500 000


def test_memory_is_bounded_and_a_memmap_is_not_copied(tmp_path):
    rng = np.random.default_rng(5)
    rows, width = 60_000, 64
    path = tmp_path / "gallery.npy"
    np.save(path, rng.normal(size=(rows, width)).astype(np.float32))
    gallery = Side(np.load(path, mmap_mode="r"), rng.integers(0, 6000, rows), np.zeros(rows, np.int64))
    query = Side(rng.normal(size=(64, width)).astype(np.float32), rng.integers(0, 6000, 64), np.full(64, -1))
    tracemalloc.start()
    result = positive_ranks(query, gallery, gallery_block=4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(result.rank) > 300
    assert peak < gallery.embedding.nbytes / 2


def test_progress_has_a_rate_and_time_left(capsys):
    rng = np.random.default_rng(6)
    positive_ranks(side(rng, 12), side(rng, 40), gallery_block=16, stage="rank")
    assert "[rank] tile 3/3  100 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"metric": "manhattan"}, "unknown metric 'manhattan'"),
        ({}, {"query_block": -1}, "must be at least 1"),
        ({"embedding": np.zeros((40, 23), np.float32)}, {}, "width 24, gallery embeddings 23"),
        ({"embedding": np.zeros((0, 24), np.float32)}, {}, "at least one row"),
        ({"embedding": np.zeros((40, 24))}, {}, "float64"),
        ({"person": np.zeros(39, np.int64)}, {}, "39 persons"),
        ({"gate": None}, {"metric": "gated"}, "gallery lacks gates"),
    ],
)
def test_what_cannot_be_compared_is_named(change, options, message):
    rng = np.random.default_rng(7)
    with pytest.raises(InputError, match=message) as caught:
        positive_ranks(side(rng, 12), dataclasses.replace(side(rng, 40), **change), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(value):
    rng = np.random.default_rng(8)
    gallery = side(rng, 3000)
    gallery.embedding[1234, 5] = value
    query = dataclasses.replace(side(rng, 5), person=np.zeros(5, np.int64))
    with pytest.raises(InputError, match="gallery embedding row 1234"):
        positive_ranks(query, gallery)
