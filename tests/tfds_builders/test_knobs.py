"""Knobs: ranges, types, names of changed configs."""

import dataclasses

import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import knobs


def _check_pair(value):
    if not isinstance(value, tuple):
        raise InputError(f"knob pair={value!r}: give a tuple")


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    seed: int = knobs.knob(1, 0, 99, "a seed")
    size: float = knobs.knob(2.0, 0.0, 4.0, "a size")
    kind: str = knobs.choice("a", ("a", "b"), "a kind")
    bits: int = knobs.choice(16, (16, 8), "bits")
    title: str = knobs.text("", "a title")
    pair: tuple = knobs.special((1, 2), "PAIR", "a pair", check=_check_pair, plain=list)
    note: str = "no knob"


CONFIGS = [Config(name="small", description="Small."), Config(name="large", description="Large.", size=3.0)]


def custom(**changes):
    return knobs.custom_config(CONFIGS, "things", "small", changes)


def test_fields_without_a_meaning_are_no_knobs():
    assert list(knobs.knob_fields(Config)) == ["seed", "size", "kind", "bits", "title", "pair"]
    values = {"seed": 1, "size": 3.0, "kind": "a", "bits": 16, "title": "", "pair": [1, 2]}
    assert knobs.knob_values(CONFIGS[1]) == values


def test_nothing_changed_is_the_base_itself():
    assert custom() is CONFIGS[0]
    assert custom(seed=1.0, size=2, title="", pair=(1, 2)) is CONFIGS[0]


def test_changes_name_the_config():
    assert custom(seed=5).name == "small-seed5"
    changed = custom(size=3, kind="b")
    assert type(changed.size) is float
    assert (changed.size, changed.kind, changed.seed) == (3.0, "b", 1)
    assert changed.name == custom(kind="b", size=3.0, seed=1).name
    prefix, _, code = changed.name.partition("-")
    assert prefix == "small"
    assert len(code) == 8
    assert changed.description == "Small. Changed: kind, size."
    assert len({custom(bits=8).name, custom(title="x").name, custom(pair=(3,)).name, changed.name}) == 4
    assert CONFIGS[0].size == 2.0
    assert [custom(seed=0).seed, custom(seed=99).seed, custom(size=4).size] == [0, 99, 4.0], "ranges hold their ends"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": 1}, "no knob sizes=1; knobs are: seed, size, kind, bits, title, pair"),
        ({"note": "x"}, "no knob note='x'; knobs are: "),
        ({"seed": 100}, "knob seed=100: give a whole number from 0 to 99 (a seed)"),
        ({"seed": 1.5}, "knob seed=1.5: give a whole number"),
        ({"seed": True}, "knob seed=True: give a whole number"),
        ({"seed": "1"}, "knob seed='1': give a whole number"),
        ({"seed": float("nan")}, "knob seed=nan: give a whole number"),
        ({"size": float("nan")}, "knob size=nan: give a number from 0 to 4"),
        ({"size": float("inf")}, "knob size=inf: give a number"),
        ({"size": 10**400}, "give a number from 0 to 4"),
        ({"kind": "c"}, "knob kind='c': choose one of a, b (a kind)"),
        ({"kind": 1}, "knob kind=1: choose one of a, b"),
        ({"bits": 12}, "knob bits=12: choose one of 16, 8 (bits)"),
        ({"bits": "8"}, "knob bits='8': choose one of 16, 8"),
        ({"bits": 8.0}, "knob bits=8.0: choose one of 16, 8"),
        ({"title": 3}, "knob title=3: give a quoted text (a title)"),
        ({"pair": 3}, "knob pair=3: give a tuple"),
    ],
)
def test_values_that_do_not_fit_are_one_line(changes, words):
    with pytest.raises(InputError) as caught:
        custom(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_configs_are_named():
    with pytest.raises(InputError, match="no things config 'medium'; there are: small, large"):
        knobs.custom_config(CONFIGS, "things", "medium", {})


@given(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none(), st.booleans(), st.lists(st.integers())))
@settings(deadline=None)
def test_a_value_is_in_range_or_refused(value):
    for name, wanted in (("seed", int), ("size", float)):
        try:
            found = knobs.checked(CONFIGS[0], name, value)
        except InputError:
            continue
        assert type(found) is wanted
        assert found == value
        assert 0 <= found <= 99


def test_the_digest_is_that_of_sorted_json():
    assert knobs.digest({"b": 1, "a": 2}) == knobs.digest({"a": 2, "b": 1}) != knobs.digest({"a": 2, "b": 2})
    assert len(knobs.digest(None)) == 64


def test_the_table_lists_all():
    assert knobs.knob_table(Config).splitlines()[2:] == [
        "| `seed` | 1 | 0 .. 99 | a seed |",
        "| `size` | 2 | 0 .. 4 | a size |",
        "| `kind` | `'a'` | a, b | a kind |",
        "| `bits` | `16` | 16, 8 | bits |",
        "| `title` | `''` | text | a title |",
        "| `pair` | `PAIR` |  | a pair |",
    ]
