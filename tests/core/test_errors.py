"""What counts as a full disk, and as too little memory of a device."""

import errno
import os
import subprocess
import sys

import pytest

from rgbd_reid_jax import main
from rgbd_reid_jax.core.errors import InputError, disk_full, memory_for


def no_space(path: str | None = None) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def test_an_os_error_names_the_path():
    assert disk_full(no_space("/data/x")) == " at /data/x"


@pytest.mark.parametrize("text", ["No space left on device", "Disk quota exceeded"])
def test_a_library_s_error_is_known_by_its_text(text):
    assert disk_full(ValueError(f"RESOURCE_EXHAUSTED: cannot write: {text}")) == ""


def test_a_cause_counts():
    error = RuntimeError("saving failed")
    error.__cause__ = no_space("/data/y")
    assert disk_full(error) == " at /data/y"


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    """As `ulimit -f` sets it: Python ignores the signal, and writing fails."""
    code = (
        "import resource, sys; from rgbd_reid_jax.core.errors import disk_full\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: open(sys.argv[1], 'wb', 0).write(bytes(2000)); open(sys.argv[1], 'ab', 0).write(b'x')\n"
        "except OSError as error: print(disk_full(error))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "file"], capture_output=True, text=True, check=True)
    assert done.stdout == ", or files may not be as large (ulimit -f)\n"


def test_other_errors_do_not():
    assert disk_full(PermissionError(errno.EACCES, "denied", "/data/x")) is None
    assert disk_full(ValueError("RESOURCE_EXHAUSTED: out of memory")) is None


def test_too_little_memory_is_one_line_that_says_what_needs_it(too_large):
    text = r"^stage x needs more memory than its devices have; take less$"
    with pytest.raises(InputError, match=text), memory_for("stage x", "take less"):
        too_large()


@pytest.mark.parametrize("text", ["INVALID_ARGUMENT: shapes", "RESOURCE_EXHAUSTED: No space left on device"])
def test_other_errors_are_no_lack_of_memory(text):
    with pytest.raises(RuntimeError, match=text), memory_for("stage x"):
        raise RuntimeError(text)


def test_main_says_it_in_one_line(monkeypatch, capsys):
    from rgbd_reid_jax import cli

    def fill(_):
        raise no_space("/runs/a")

    monkeypatch.setattr(cli, "run", fill)
    assert main.main(["main"]) == 2
    assert capsys.readouterr().err == (
        "error: the disk is full at /runs/a; free space and run the same command again\n"
    )


def test_main_lets_unknown_errors_through(monkeypatch):
    from rgbd_reid_jax import cli

    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "run", fail)
    with pytest.raises(ZeroDivisionError):
        main.main(["main"])
