"""Knobs, names and fingerprints of the synthetic dataset's configs."""

import dataclasses

import pytest

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.synthetic_rgbd import config as config_lib
from tfds_builders.synthetic_rgbd.config import CAMERAS, custom_config, fingerprint, named_config


def test_named_configs_pass_their_own_check_and_differ():
    for config in config_lib.CONFIGS:
        config_lib.check(config)
    assert len({fingerprint(config) for config in config_lib.CONFIGS}) == len(config_lib.CONFIGS) == 4


def test_no_change_gives_the_base_itself():
    assert custom_config("quick") is named_config("quick")
    assert custom_config("quick", seed=1, body_spread=1.6) is named_config("quick")


def test_names_tell_different_data_apart_and_equal_data_together():
    assert custom_config("quick", seed=2).name == "quick-seed2"
    wide, wider = custom_config("quick", body_spread=1.5), custom_config("quick", body_spread=1.7)
    assert len({"quick", wide.name, wider.name}) == 3
    assert custom_config("quick", seed=2, body_spread=1.5).name != wide.name
    assert custom_config("quick", body_spread=1.5, seed=1).name == wide.name
    assert fingerprint(custom_config("quick", body_spread=1.5)) == fingerprint(wide)


@pytest.mark.parametrize("name", sorted(set(config_lib.knob_fields()) - {"cameras"}))
def test_every_knob_changes_the_fingerprint_and_the_name(name):
    field = config_lib.knob_fields()[name]
    base = named_config("quick")
    low, high = field.metadata["low"], field.metadata["high"]
    value = low if getattr(base, name) != low else high
    changed = custom_config("quick", **{name: value})
    assert getattr(changed, name) == value
    assert fingerprint(changed) != fingerprint(base)
    assert changed.name != "quick"


def test_cameras_are_a_knob():
    higher = (dataclasses.replace(CAMERAS[0], height_m=3.0), *CAMERAS[1:])
    changed = custom_config("tiny", cameras=higher)
    assert changed.used_cameras[0].height_m == 3.0
    assert fingerprint(changed) != fingerprint(named_config("tiny"))


def test_the_renderer_version_is_part_of_the_fingerprint(monkeypatch):
    before = fingerprint(named_config("quick"))
    monkeypatch.setattr(config_lib, "RENDERER_VERSION", config_lib.RENDERER_VERSION + 1)
    assert fingerprint(named_config("quick")) != before


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"bodyspread": 2.0}, ["bodyspread=2.0", "body_spread", "clothes_change_share"]),
        ({"clothes_change_share": 1.5}, ["clothes_change_share=1.5", "0 to 1"]),
        ({"height": 0}, ["height=0", "16 to 1024"]),
        ({"seed": 1.5}, ["seed=1.5", "whole number"]),
        ({"seed": "x"}, ["seed='x'", "whole number"]),
        ({"train_people": True}, ["train_people=True"]),
        ({"body_spread": float("nan")}, ["body_spread=nan"]),
        ({"num_cameras": 9}, ["num_cameras=9"]),
        ({"num_cameras": 3, "cameras": CAMERAS[:2]}, ["num_cameras=3", "only 2"]),
        ({"cameras": ()}, ["cameras=()"]),
        ({"cameras": (dataclasses.replace(CAMERAS[0], distance_m=(3.0, 2.0)),)}, ["distance_m=(3.0, 2.0)"]),
        ({"cameras": (dataclasses.replace(CAMERAS[0], height_m=-1.0),)}, ["height_m=-1.0", "above 0"]),
    ],
)
def test_bad_knobs_are_named_in_one_line(knobs, words):
    with pytest.raises(InputError) as caught:
        custom_config("quick", **knobs)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_config_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'quik'.*quick, medium_128x64, large_256x128, tiny"):
        named_config("quik")


def test_knob_table_of_the_datasheet_is_current():
    import pathlib

    text = (pathlib.Path(__file__).parents[2] / "docs" / "synthetic_rgbd.md").read_text(encoding="utf-8")
    assert config_lib.knob_docs() in text
