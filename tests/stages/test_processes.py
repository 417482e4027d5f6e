"""Two processes with four devices each are one run: the same results as one process, the same end after a signal.

The two share parameters out (`fsdp`), each among two of its devices; the one process keeps all on every device.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.metrics.embeddings import Embeddings

pytestmark = pytest.mark.slow
REPOSITORY = pathlib.Path(__file__).parents[2]
MAIN = ("-m", "rgbd_reid_jax.main")
STEPS = 20
# With this rate rounding stays rounding: larger steps let units switch on in one run and not in the other.
SMALL = [
    "--config=configs/attention.py",
    "--config.dataset.config=tiny",
    "--config.model.backbone=tiny",  # compilation would take most of the time
    "--config.export.platforms=('cpu',)",
    *(
        f"--config.training.{stage}.{name}={value}"
        for stage in ("teacher", "student", "pair")
        for name, value in (
            *(("steps", STEPS), ("batch_size", 8), ("log_every", 1), ("evaluate_every", 10)),
            *(("sampling.people", 4), ("sampling.frames", 2)),
            *(("optimizer.name", "sgd"), ("optimizer.learning_rate", 1e-6), ("optimizer.schedule", "constant")),
            ("loss_options.temperature", 1.0),  # 0.1 would multiply rounding by ten
        )
    ),
]


@pytest.fixture(scope="module")
def env(job_env):
    """The environment of all runs."""
    kept = {name: value for name, value in job_env.items() if "PROXY" not in name.upper()}
    return kept | {"PYTHON": sys.executable}


def words(workdir: pathlib.Path, processes: int, *arguments: str) -> list[str]:
    """The launcher's command: `processes` that have eight devices together."""
    launch = ["bash", "launch.sh", "local", str(processes), f"--devices={8 // processes}"]
    return [*launch, *SMALL, f"--config.mesh.fsdp={processes}", f"--workdir={workdir}", *arguments]


def run(
    workdir: pathlib.Path, env: dict[str, str], processes: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = words(workdir, processes, *arguments)
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def runs(env, tmp_path_factory):
    """The workdirs of all stages by one process and by two."""
    folder = tmp_path_factory.mktemp("runs")
    for processes in (1, 2):
        done = run(folder / str(processes), env, processes)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("[evaluation] wrote") == 1
        if processes == 2:
            assert "[teacher]" not in (folder / "2.logs" / "process-1.log").read_text()  # process 0 alone talks
    return folder / "1", folder / "2"


def figures(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_every_logged_figure_is_the_same(runs):
    one, two = (figures(workdir) for workdir in runs)
    assert [(line["stage"], line["step"]) for line in one] == [(line["stage"], line["step"]) for line in two]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert len(losses[0]) == 3 * STEPS
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_the_embeddings_and_the_results_are_the_same(runs):
    for split in ("validation", "test"):
        for modality in ("rgb", "depth"):
            pair = [Embeddings.load(workdir / "embeddings" / f"{split}_{modality}.npz") for workdir in runs]
            np.testing.assert_array_equal(pair[0].frame_id, pair[1].frame_id)
            np.testing.assert_allclose(pair[0].embedding, pair[1].embedding, rtol=1e-4, atol=3e-5)
    one, two = (json.loads((workdir / "results.json").read_text()) for workdir in runs)
    assert (one["environment"]["processes"], two["environment"]["processes"]) == (1, 2)
    assert one["environment"]["devices"] == two["environment"]["devices"] == "8 x cpu"
    for name in ("results", "other_splits", "people", "queries", "chance"):
        flat = [np.array(jax.tree.leaves(content[name])) for content in (one, two)]
        np.testing.assert_allclose(flat[0], flat[1], atol=1e-5)


def test_two_processes_leave_the_same_files(runs):
    # A compile cache of its own for each process would be the only thing that may differ.
    found = [{path.relative_to(one) for path in one.rglob("*") if path.suffix in (".json", ".npz")} for one in runs]
    assert {path for path in found[0] if path.parts[0] != "checkpoints"} == {
        path for path in found[1] if path.parts[0] != "checkpoints"
    }
    assert not list(runs[1].rglob("*.tmp"))


def state(workdir: pathlib.Path) -> dict:
    with Checkpoints(workdir / "checkpoints" / "teacher") as checkpoints:
        assert checkpoints.latest_step() == STEPS
        return checkpoints.restore_parts(STEPS)


def process_one(parent: int) -> int:
    """The id of process 1 of a launcher."""
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            ancestor = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if ancestor == parent and b"RGBD_REID_PROCESS=1" in (path / "environ").read_bytes():
                return int(path.name)
        except OSError:
            continue
    raise AssertionError("process 1 is not there")


@pytest.mark.parametrize(("kill", "status"), [(signal.SIGTERM, 130), (signal.SIGKILL, 137)])
def test_a_signal_to_one_process_stops_all_and_the_next_run_ends_with_the_same_bits(env, runs, tmp_path, kill, status):
    workdir = tmp_path / "cut"
    process = subprocess.Popen(
        words(workdir, 2, "--stages=teacher"),
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if (workdir / "metrics.jsonl").exists() and len(figures(workdir)) >= 1:
                break
            time.sleep(0.01)
        os.kill(process_one(process.pid), kill)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    if kill == signal.SIGTERM:
        assert process.returncode == 130, errors
        assert "stopped by another process after step" in errors
        assert "which is saved; run the same command to go on" in errors
    else:
        assert process.returncode != 0
    assert not (workdir / "stages" / "teacher.json").exists(), "the stage was over before the signal came"
    again = run(workdir, env, 2, "--stages=teacher")
    assert again.returncode == 0, again.stdout + again.stderr
    jax.tree.map(np.testing.assert_array_equal, state(runs[1]), state(workdir))
    steps = [line["step"] for line in figures(workdir) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


def pair_of(
    cwd: pathlib.Path, commands: list[tuple[list[str], dict[str, str]]], program: tuple[str, ...] = MAIN
) -> list[tuple[int, str]]:
    """(exit status, errors) of two processes of one run, each with arguments and an environment of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = f"--config={REPOSITORY / 'configs' / 'attention.py'}"
    running = []
    for index, (arguments, env) in enumerate(commands):
        own = {"RGBD_REID_COORDINATOR": f"127.0.0.1:{port}", "RGBD_REID_PROCESSES": "2"}
        own |= {"RGBD_REID_PROCESS": str(index)}
        command = [sys.executable, *program, *SMALL[1:], config, *arguments, "--distributed=env"]
        running.append(subprocess.Popen(command, cwd=cwd, env=env | own, stderr=subprocess.PIPE, text=True))
    try:
        return [(process.wait(120), process.communicate()[1]) for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        (["--workdir=a"], ["--workdir=b"], "has another workdir (b, not shared) than process 0"),
        (["--workdir=a"], ["--workdir=a", "--config.seed=5"], "has another configuration ("),
        (["--workdir=a"], ["--workdir=a"], "has another code ("),
    ],
)
def test_processes_that_do_not_fit_together_are_refused(env, tmp_path, ours, theirs, text):
    other = env
    if "code" in text:
        for package in ("rgbd_reid_jax", "tfds_builders"):
            shutil.copytree(REPOSITORY / package, tmp_path / "code" / package)
        with (tmp_path / "code" / "rgbd_reid_jax" / "main.py").open("a") as file:
            file.write("# another version\n")
        other = env | {"PYTHONPATH": str(tmp_path / "code")}
    first, second = pair_of(tmp_path, [(ours, env), (theirs, other)])
    assert (first[0], second[0]) == (2, 2)
    assert text in first[1]
    told = [line for _, errors in (first, second) for line in errors.splitlines() if "error: " in line]
    assert len(told) == 1  # process 0 speaks for both
    assert not list(tmp_path.glob("*/metrics.jsonl"))
    assert not list(tmp_path.glob("*/checkpoints"))


def test_too_little_memory_in_all_processes_is_one_line_of_one_of_them(env, tmp_path):
    (tmp_path / "large.py").write_text(
        "import runpy, jax, jax.numpy as jnp\n"
        "from rgbd_reid_jax.stages import training\n"
        "training.train = lambda *_, **__: jax.block_until_ready(jnp.zeros(1 << 47, jnp.uint8))\n"
        "runpy.run_module('rgbd_reid_jax.main', run_name='__main__', alter_sys=True)\n"
    )
    commands = [(["--workdir=a", "--stages=teacher"], env | {"GLIBC_TUNABLES": ""})] * 2  # set: no second start
    (status, first), (other, second) = pair_of(tmp_path, commands, ("large.py",))
    assert (status, other) == (2, 2)
    assert first.startswith("error: stage teacher with training.teacher.batch_size=8 needs more memory than its dev")
    assert "error:" not in second
