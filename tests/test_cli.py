"""What all processes of a run compare before the first step."""

import jax
import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core import distributed

_CONFIG = {"seed": 0, "training": {"teacher": {"steps": 20, "freeze": (("backbone/.*", "train"),)}}}
_COMMAND = [_CONFIG, ["teacher", "student"], ["runs/a"]]


def test_the_same_command_has_the_same_facts():
    again = [{"training": _CONFIG["training"], "seed": 0}, ["teacher", "student"], ["runs/a"]]
    assert cli._facts(again) == cli._facts(_COMMAND)


@pytest.mark.parametrize(
    "command",
    [
        [{**_CONFIG, "seed": 1}, *_COMMAND[1:]],
        [{**_CONFIG, "training": {"teacher": {"steps": 21, "freeze": (("backbone/.*", "train"),)}}}, *_COMMAND[1:]],
        [{**_CONFIG, "training": {"teacher": {"steps": 20, "freeze": (("backbone/.*", "freeze"),)}}}, *_COMMAND[1:]],
        [_CONFIG, ["teacher"], ["runs/a"]],
        [_CONFIG, ["student", "teacher"], ["runs/a"]],
        [_CONFIG, ["teacher", "student"], []],
        [_CONFIG, ["teacher", "student"], ["runs/b"]],
        [_CONFIG, ["teacher", "student", "runs/a"], []],
    ],
)
def test_another_command_is_another_configuration(command):
    here, there = cli._facts(_COMMAND), cli._facts(command)
    assert {name for name in here if here[name] != there[name]} == {"configuration"}


def test_other_code_and_another_jax_are_told_apart(monkeypatch):
    here = cli._facts(_COMMAND)
    monkeypatch.setattr(distributed, "source_digest", lambda: "other")
    assert cli._facts(_COMMAND) == here | {"code": "other"}
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    assert cli._facts(_COMMAND) == here | {"code": "other", "jax": "0.0.1"}
