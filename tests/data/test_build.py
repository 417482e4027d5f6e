"""The build command: what it says, builds, refuses, and how it ends."""

import os
import signal
import subprocess
import sys

import pytest

from rgbd_reid_jax.data import build
from tfds_builders.recorded.frames import Finding


def refused(capsys, *arguments: str) -> str:
    """The one line on standard error before the command exits with 2."""
    assert build.main(list(arguments)) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1, errors
    return errors


def test_it_says_what_was_built_where_and_what_to_do_next(registry, drawn_tree, tmp_path, capsys):
    registry.give(
        registry.people(),
        findings=[Finding("corrupt", "7.png", "it does not decode"), Finding("corrupt", "9.png", "nor this")],
    )
    assert build.main(["people", f"--manual_dir={drawn_tree}", f"--data_dir={tmp_path}", "--knobs=bad_share=0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = next(tmp_path.glob("people/all-*/1.0.0"))
    name = f"people/{folder.parent.name}/1.0.0"
    assert f"[dataset] {name}: 12 train, 12 validation, 12 test frames in {folder}" in lines
    assert "[dataset] found 2 x corrupt, such as 7.png: it does not decode" in lines
    check = f"python -m rgbd_reid_jax.data.check people/all --data_dir={tmp_path} --knobs=bad_share=0.5"
    assert lines[-1] == f"[dataset] next, look at it: {check} --sheet=sheet.png"


def test_what_is_there_is_not_built_again_and_needs_no_files(registry, drawn_tree, tmp_path, capsys):
    arguments = ["people/few", f"--data_dir={tmp_path}"]
    assert build.main([*arguments, f"--manual_dir={drawn_tree}"]) == 0
    manifest = tmp_path / "people" / "few" / "1.0.0" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    registry.give({})  # would be refused
    assert build.main([*arguments, f"--manual_dir={drawn_tree}"]) == 0
    assert build.main(arguments) == 0
    assert manifest.stat().st_mtime_ns == before
    assert "examples in" not in capsys.readouterr().out.splitlines()[-1]


def test_files_that_changed_since_are_refused_with_the_mend(registry, drawn_tree, tmp_path, capsys):
    arguments = ["people", f"--data_dir={tmp_path}", f"--manual_dir={drawn_tree}"]
    assert build.main(arguments) == 0
    (drawn_tree / "1.png").write_bytes(b"new")
    line = refused(capsys, *arguments)
    folder = tmp_path / "people" / "all" / "1.0.0"
    assert f"{folder} was built from other files than {drawn_tree} holds now" in line
    assert f"delete {folder} and run again" in line
    (drawn_tree / "1.png").unlink()
    assert build.main(arguments) == 0


def test_a_tree_that_is_gone_leaves_the_dataset_usable(registry, drawn_tree, tmp_path, capsys):
    arguments = ["people", f"--data_dir={tmp_path}", f"--manual_dir={drawn_tree}"]
    assert build.main(arguments) == 0
    (drawn_tree / "0.png").unlink()
    drawn_tree.rmdir()
    assert build.main(arguments) == 0
    assert f"{drawn_tree} is not there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["NAME[/CONFIG] is missing", "synthetic_rgbd"]),
        (["market1501"], ["'market1501' has no builder", "rgbd_folder"]),
        (["people/nope"], ["no people config 'nope'", "all, few"]),
        (["people", "--knobs=heigt=3"], ["no knob heigt=3", "height"]),
        (["people", "--knobs=height=3"], ["height=3", "16 to 1024"]),
        (["people", "--knobs=height"], ["'height' is not of the form name=value"]),
        (["people", "--manual=x"], ["unrecognized arguments: --manual=x", "--help"]),
        (["people", "--workers=two"], ["--workers", "two"]),
        (["people", "--workers=-1"], ["--workers=-1 must be at least 0"]),
        (["people"], ["people needs files of yours", "--manual_dir"]),
        (["people", "--manual_dir=/nowhere/at/all"], ["/nowhere/at/all", "does not exist"]),
    ],
)
def test_mistakes_are_one_line(registry, capsys, tmp_path, arguments, words):
    line = refused(capsys, *arguments, f"--data_dir={tmp_path}")
    for word in words:
        assert word in line
    assert not list(tmp_path.glob("*/*/1.0.0"))


def test_the_list_shows_configs_and_knobs(registry, capsys):
    assert build.main(["people", "--list"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("people\n")
    assert "    all             All people. Default.\n" in text
    assert "    few             Few people.\n" in text
    assert "    height=256  16 .. 1024: rows of the stored crops\n" in text
    assert "    bad_frames='skip'  skip, fail: what becomes of" in text


def test_an_interrupt_ends_with_130(registry, capsys, tmp_path, drawn_tree, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfds_builders.recorded.builder._read_chunk", interrupted)
    arguments = ["people", f"--data_dir={tmp_path}", f"--manual_dir={drawn_tree}"]
    assert build.main(arguments) == 130
    assert capsys.readouterr().err == "interrupted; finished parts are kept, run the same command to go on\n"
    monkeypatch.undo()
    assert not list(tmp_path.glob("people/all/1.0.0"))


def test_the_command_starts_without_jax_and_stops_politely(tmp_path):
    program = (
        "import os, signal, sys; from rgbd_reid_jax.data import build, command, dataset; "
        "assert not {'jax', 'tensorflow', 'matplotlib'} & set(sys.modules); "
        "command.opened = lambda _: os.kill(os.getpid(), signal.SIGTERM); sys.exit(build.main(['people']))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "interrupted; finished parts are kept, run the same command to go on\n"


@pytest.fixture(autouse=True)
def signals():
    """The commands set what SIGTERM does; tests leave it as it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
