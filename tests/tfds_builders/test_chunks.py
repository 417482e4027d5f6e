"""Chunks hold what was put in, and no damage passes for a chunk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from tfds_builders import chunks

EXAMPLES = [
    {"rgb": b"\x89PNG", "person_id": 3, "person_box": np.array([1, 2, 3, 4.5], np.float32), "source": "a/ü.png"},
    {"finding": {"kind": "corrupt", "file": "x", "words": "it does not decode"}},
]
DTYPES = st.sampled_from([np.uint8, np.int32, np.int64, np.float32, np.float64, np.bool_, np.uint16])
VALUES = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=10),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st_numpy.arrays(DTYPES, st_numpy.array_shapes(min_dims=0, max_dims=3, max_side=3)),
)


def assert_same(one, other):
    if isinstance(one, np.ndarray):
        assert other.dtype == one.dtype
        np.testing.assert_array_equal(other, one)
    else:
        assert type(other) is type(one)
        assert other == one


@given(st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=4))
@settings(max_examples=100, deadline=None)
def test_what_was_packed_is_unpacked(examples):
    found = chunks.unpack(chunks.pack(examples))
    assert found is not None
    assert [one.keys() for one in found] == [one.keys() for one in examples]
    for one, example in zip(found, examples, strict=True):
        for name, value in example.items():
            assert_same(value, one[name])


CONTENT = chunks.pack(EXAMPLES)


@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_anywhere_is_noticed(place, change):
    harmed = bytearray(CONTENT)
    harmed[place] ^= change
    assert chunks.unpack(bytes(harmed)) is None


@given(st.integers(0, len(CONTENT) - 1), st.binary(min_size=1, max_size=3))
@settings(deadline=None)
def test_missing_and_additional_bytes_are_noticed(end, tail):
    assert chunks.unpack(CONTENT[:end]) is None
    assert chunks.unpack(CONTENT + tail) is None
    assert chunks.unpack(CONTENT[:end] + bytes(len(CONTENT) - end)) in (None, chunks.unpack(CONTENT))


def test_equal_examples_have_equal_bytes():
    assert chunks.pack([dict(example) for example in EXAMPLES]) == CONTENT


@pytest.mark.parametrize("value", [{1, 2}, np.array(["text"]), np.array([None]), np.datetime64("2020-01-01"), object()])
def test_what_would_not_come_back_is_refused(value):
    with pytest.raises(TypeError, match="a chunk cannot hold"):
        chunks.pack([{"x": value}])


def test_a_store_keeps_chunks_until_it_is_removed(tmp_path):
    store, other = chunks.ChunkStore(tmp_path, "one"), chunks.ChunkStore(tmp_path, "two")
    assert store.get("train-0") is None
    store.put("train-0", CONTENT)
    assert store.get("train-0") is not None
    assert other.get("train-0") is None, "another fingerprint is another store"
    store.path("train-0").write_bytes(CONTENT[:-1])
    assert store.get("train-0") is None
    other.put("x", CONTENT)
    (tmp_path / "1.0.0").mkdir()
    store.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["1.0.0"]


def test_shards_hold_all_examples_in_order_a_few_chunks_at_a_time(monkeypatch):
    monkeypatch.setattr(chunks, "SHARD_BYTES", 25)
    taken = []

    def split():
        for number, examples in enumerate(("ab", "", "cd", "", "")):
            taken.append(number)
            yield [{"name": name} for name in examples]
        taken.append("end")

    shards = chunks.shards(split(), 5, chunk_bytes=10)
    assert len(shards) == 3, "two chunks of 10 bytes fit into 25"
    assert not taken
    assert list(shards[0]()) == [(0, {"name": "a"}), (1, {"name": "b"})]
    assert taken == [0, 1]
    assert list(shards[1]()) == [(2, {"name": "c"}), (3, {"name": "d"})]
    assert list(shards[2]()) == []
    assert taken[-1] == "end", "what the split does after its last chunk is done"


def test_a_chunk_larger_than_a_shard_is_one():
    assert len(chunks.shards(iter([[], [], []]), 3, chunk_bytes=2 * chunks.SHARD_BYTES)) == 3
