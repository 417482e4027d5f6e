"""How the main command starts anew with glibc's settings."""

import os
import pathlib
import subprocess
import sys

import pytest

from rgbd_reid_jax.core import allocator

SCRIPT = """
import os, sys
from rgbd_reid_jax.core import allocator
print("started", os.getpid(), flush=True)
allocator.keep_memory()
print(sys.argv[1:], os.environ.get(allocator.VARIABLE), sys.flags.dev_mode)
"""


def started(script: pathlib.Path, tunables: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != allocator.VARIABLE}
    if tunables is not None:
        environment[allocator.VARIABLE] = tunables
    command = [sys.executable, "-X", "dev", script, "--a=ein Baum, grün", ""]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def script(tmp_path) -> pathlib.Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_a_process_starts_anew_once_with_its_own_arguments(script):
    first, second, ended = started(script, None)
    assert first == second, "the same process"
    assert ended == f"['--a=ein Baum, grün', ''] {allocator.TUNABLES} True"


@pytest.mark.parametrize("tunables", ["", "glibc.malloc.check=0"])
def test_settings_of_the_user_s_stay(script, tunables):
    first, ended = started(script, tunables)
    assert first.startswith("started ")
    assert ended == f"['--a=ein Baum, grün', ''] {tunables} True"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_glibc_takes_them():
    """A block that is larger than the default threshold for mappings of their own (at most 32 MiB) is in the heap."""
    code = (
        "import ctypes; libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "place = libc.malloc(ctypes.c_size_t(64 << 20))\n"
        "heap = next(line for line in open('/proc/self/maps') if '[heap]' in line).split()[0]\n"
        "low, high = (int(edge, 16) for edge in heap.split('-')); print(low <= place < high)"
    )
    answers = []
    for tunables in ("", allocator.TUNABLES):
        environment = os.environ | {allocator.VARIABLE: tunables}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        answers.append(done.stdout.strip())
    assert answers == ["False", "True"]
