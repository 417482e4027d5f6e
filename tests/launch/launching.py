"""The launcher run as its users do, with stand-ins for the tools that it calls."""

import json
import os
import pathlib
import shlex
import subprocess
import textwrap

LAUNCH = pathlib.Path(__file__).parents[2] / "launch.sh"
ODD = [
    "--config.a=it's",
    '--config.b="q" \\',
    "--config.c=a b",
    "--config.d=$(touch x) `touch x` $HOME",
    "--config.e=(",
]
CONFIG = "--config=configs/distill.py"
SLURM = ["slurm", "--time=12:00:00"]
TPU = ["tpu", "--name=reid", "--zone=us-west4-a", "--type=v5litepod-8", "--runtime=v2-alpha-tpuv5-lite"]
GKE = ["gke", "--name=reid", "--image=repo/image:1", "--claim=disk"]
ON_TPU = [*GKE, "--tpu=tpu-v5-lite-podslice", "--topology=4x4"]
ON_GPU = [*GKE, "--gpu=nvidia-h100-80gb", "--nodes=2"]


def launch(*arguments: str, cwd: pathlib.Path, **variables: str) -> subprocess.CompletedProcess[str]:
    names = ("PYTHON", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    command = ["bash", str(LAUNCH), *arguments]
    env = kept | {"JAX_PLATFORMS": "cpu"} | variables
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def printed(*arguments: str, cwd: pathlib.Path, **variables: str) -> str:
    """What a dry run prints; it does nothing, and bash can read it."""
    before = set(cwd.rglob("*"))
    done = launch(arguments[0], "--dry-run", *arguments[1:], cwd=cwd, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(cwd.rglob("*")) == before
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
    return done.stdout


def fakes(folder: pathlib.Path, **programs: str) -> dict[str, str]:
    """Programs that note their arguments in `folder/calls`, one JSON list a line; `programs` hold what else they do."""
    (folder / "bin").mkdir()
    for name, text in programs.items():
        note = f"import json, sys; print(json.dumps(['{name}', *sys.argv[1:]]), file=open('{folder}/calls', 'a'))"
        script = f'#!/usr/bin/env bash\npython3 -c {shlex.quote(note)} "$@"\n{textwrap.dedent(text)}\n'
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def calls(folder: pathlib.Path) -> list[list[str]]:
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
