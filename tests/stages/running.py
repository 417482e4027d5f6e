"""Runs the command line on the tiny dataset, in processes of its own."""

import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).parents[2]
STEPS = 24

SMALL = [
    "--config.dataset.config=tiny",
    "--config.export.platforms=('cpu',)",
    *(
        f"--config.training.{stage}.{name}={value}"
        for stage in ("teacher", "student")
        for name, value in (("steps", STEPS), ("batch_size", 16), ("log_every", 1), ("evaluate_every", 8))
    ),
]


def environment(data_dir: pathlib.Path, cache: pathlib.Path) -> dict[str, str]:
    """One CPU device, the shared tiny dataset, a compile cache shared by the processes of a test."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {
        "TFDS_DATA_DIR": str(data_dir),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
    }


def command(workdir: pathlib.Path, *arguments: str) -> list[str]:
    """The README's command, sized down."""
    config = "--config=configs/distill.py"
    return [sys.executable, "-m", "rgbd_reid_jax.main", config, f"--workdir={workdir}", *SMALL, *arguments]


def run(workdir: pathlib.Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end; standard error is kept apart."""
    return subprocess.run(
        command(workdir, *arguments), cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False
    )
