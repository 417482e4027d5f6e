"""What all processes of a run compare before the first step, and what a run tells at its end."""

from importlib import metadata

import pytest

from rgbd_reid_jax import cli
from rgbd_reid_jax.core import distributed, files
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS
from rgbd_reid_jax.stages.workdir import Workdir

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
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "jax" else version(name))
    assert cli._facts(_COMMAND) == here | {"code": "other", "jax": "0.0.1"}


def test_results_of_before_are_not_told_as_this_run_s(tmp_path, capsys):
    """A stage that is trained anew takes the evaluation's mark away and leaves its file."""
    scores = {name: {"mAP": 0.25, "rank1": 0.5, "rank5": 0.5, "rank10": 0.5} for name in DIRECTIONS}
    with Workdir(tmp_path) as workdir:
        files.write_json(workdir.results, {"results": scores})
        cli._tell(workdir)
        assert capsys.readouterr().out == ""
        files.write_json(workdir.mark("evaluation"), {})
        cli._tell(workdir)
        assert "25.0" in capsys.readouterr().out
