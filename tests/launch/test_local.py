"""One machine, one process or several: what is printed is what is run; none is left behind."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.launching import CONFIG, LAUNCH, ODD, fakes, launch, printed


def test_one_process_is_a_plain_command(tmp_path):
    words = shlex.split(printed("local", CONFIG, "--workdir", "a b", *ODD, cwd=tmp_path, PYTHON="my python"))
    assert words == ["my python", "-m", "rgbd_reid_jax.main", CONFIG, "--workdir=a b", *ODD]
    text = printed("local", "1", "--devices=4", CONFIG, cwd=tmp_path, XLA_FLAGS="--a")
    flags = "XLA_FLAGS=--a --xla_force_host_platform_device_count=4"
    assert shlex.split(text) == ["env", "JAX_PLATFORMS=cpu", flags, "python", "-m", "rgbd_reid_jax.main", CONFIG]


def test_logs_lie_beside_the_workdir_however_it_is_written(tmp_path):
    arguments = ["local", "2", "--port=1", "--devices=1", "--reuse=runs/a", CONFIG]
    make, *_ = printed(*arguments, "--workdir=runs/x//", cwd=tmp_path).splitlines()
    assert make == "mkdir -p runs/x.logs"
    make, first, *_ = printed(*arguments, "--workdir=~/x", cwd=tmp_path, HOME="/home/me").splitlines()
    assert make == "mkdir -p /home/me/x.logs"
    words = ["--reuse=runs/a", CONFIG, "--workdir=~/x", "--distributed=env", "&"]
    assert shlex.split(first)[-5:] == words


def test_what_follows_two_dashes_is_handed_on(tmp_path):
    words = shlex.split(printed("local", "--", "--nodes=3", "x", cwd=tmp_path))
    assert words == ["python", "-m", "rgbd_reid_jax.main", "--nodes=3", "x"]


def test_several_processes_share_the_machine(tmp_path):
    arguments = ["local", "2", "--port=4567", CONFIG, "--workdir=w", *ODD]
    variables = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    make, first, second, last = printed(*arguments, cwd=tmp_path, **variables).splitlines()
    assert (make, last) == ("mkdir -p w.logs", "wait")
    run = ["python", "-m", "rgbd_reid_jax.main", CONFIG, "--workdir=w", *ODD, "--distributed=env"]
    meet = ["RGBD_REID_COORDINATOR=127.0.0.1:4567", "RGBD_REID_PROCESSES=2"]
    assert shlex.split(first) == ["env", "CUDA_VISIBLE_DEVICES=4,5", *meet, "RGBD_REID_PROCESS=0", *run, "&"]
    assert shlex.split(second) == [
        *["env", "CUDA_VISIBLE_DEVICES=6,7", *meet, "RGBD_REID_PROCESS=1", *run],
        *[">w.logs/process-1.log", "2>&1", "&"],
    ]


def test_gpus_are_counted_by_the_driver(tmp_path):
    path = fakes(tmp_path, **{"nvidia-smi": "printf '0\\n1\\n'"})
    folder = tmp_path / "here"
    folder.mkdir()
    text = printed("local", "2", "--logs=l", "--port=1", CONFIG, cwd=folder, **path, JAX_PLATFORMS="")
    assert [re.findall(r"CUDA_VISIBLE_DEVICES=(\S+)", line) for line in text.splitlines()[1:3]] == [["0"], ["1"]]
    assert printed("local", "2", "--logs=l", "--port=1", CONFIG, cwd=folder, **path, JAX_PLATFORMS="gpu") == text
    done = launch("local", "4", "--logs=l", "--port=1", CONFIG, cwd=folder, **path, JAX_PLATFORMS="")
    assert done.returncode == 2
    assert "4 processes do not divide the 2 GPUs; choose another number, or --devices=K" in done.stderr
    assert "CUDA" not in printed("local", "4", "--devices=1", "--logs=l", "--port=1", cwd=folder, **path)


def stand_in(folder: pathlib.Path, text: str) -> str:
    """A `PYTHON` that does `text` in place of a run; $RGBD_REID_PROCESS is its index."""
    path = folder / "stand_in"
    path.write_text(f'#!/usr/bin/env bash\necho "$RGBD_REID_PROCESS $*" >>{folder}/started\n{text}\n')
    path.chmod(0o755)
    return str(path)


def test_each_process_is_started_with_its_words(tmp_path):
    python = stand_in(tmp_path, 'printf "%s|" "$@"; echo "from $RGBD_REID_PROCESS"')
    done = launch("local", "3", "--port=1", "--workdir=w x", *ODD, cwd=tmp_path, PYTHON=python)
    assert (done.returncode, done.stderr) == (0, "")
    words = "|".join(["-m", "rgbd_reid_jax.main", "--workdir=w x", *ODD, "--distributed=env"])
    assert done.stdout == f"{words}|from 0\n"
    for index in (1, 2):
        assert (tmp_path / "w x.logs" / f"process-{index}.log").read_text() == f"{words}|from {index}\n"
    assert not (tmp_path / "x").exists()


def test_when_one_fails_the_others_are_ended(tmp_path):
    text = 'if ((RGBD_REID_PROCESS == 1)); then echo "error: no disk"; exit 3; fi; exec sleep 60'
    python = stand_in(tmp_path, text)
    script = LAUNCH.read_text().replace("GRACE_S=15", "GRACE_S=1")
    assert script != LAUNCH.read_text()
    (tmp_path / "launch.sh").write_text(script)
    command = ["bash", "launch.sh", "local", "3", "--port=1", "--logs=l"]
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": python, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert "process 1 ended with status 3; the end of l/process-1.log:\nerror: no disk\n" in done.stderr
    assert time.monotonic() - began < 30  # not the sixty seconds of the others
    assert not _alive(tmp_path)


def _alive(folder: pathlib.Path) -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if str(folder / "stand_in") in line]


@pytest.mark.parametrize(
    ("number", "send"), [(signal.SIGINT, os.kill), (signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)]
)
def test_a_signal_reaches_every_process(tmp_path, number, send):
    """Also a terminal's, which goes to all that the launcher has started as well; it waits until they have saved."""
    saved = f"sleep 0.7; echo stopped >>{tmp_path}/stopped; exit 130"
    python = stand_in(tmp_path, f'trap "{saved}" TERM; while :; do sleep 0.1; done')
    process = subprocess.Popen(
        ["bash", str(LAUNCH), "local", "2", "--port=1", "--logs=l"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": python, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "started").exists() or len((tmp_path / "started").read_text().splitlines()) < 2:
        time.sleep(0.02)
    time.sleep(0.2)  # for the traps
    send(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "is passed on; a second one ends all processes at once" in errors
    assert (tmp_path / "stopped").read_text() == "stopped\n" * 2
