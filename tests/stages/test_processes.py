"""Two processes with four devices each are one run: the same results as one process, the same end after a signal.

One device is the reference; eight devices, those of one process as those of two, are a mesh of 4 x 2 (data x fsdp), so
they share the parameters out. `pytest -n0 -s tests/stages/test_processes.py -k equal` prints how far apart they are.
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
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

from rgbd_reid_jax import cli
from rgbd_reid_jax.checkpoint.manager import Checkpoints
from rgbd_reid_jax.metrics.embeddings import Embeddings
from rgbd_reid_jax.stages import training
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.table import STAGES
from rgbd_reid_jax.stages.workdir import Workdir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the first test waits for three whole runs
REPOSITORY = pathlib.Path(__file__).parents[2]
MAIN = ("-m", "rgbd_reid_jax.main")
STEPS = 20
TRAINED = ("teacher", "student", "pair")
# Rounding has to stay rounding. A unit that switches on in one run and not in the other changes the gradient, and each
# later step enlarges that. With 8 images gradient norms came out 1e-4 apart, at ten times this rate 3e-3 and more; with
# these 24, 1.1e-5 at three times this rate. And Adam would divide by the square root of second moments, of which some
# are rounding and nothing else.
SMALL = [
    "--config=configs/attention.py",
    "--config.dataset.config=tiny",
    "--config.seed=9",  # of 1 to 10 one of those with which no unit that matters switches (docs/scaling.md)
    "--config.model.backbone=tiny",  # compilation would take most of the time
    "--config.training.student.hints=(1,2)",  # the tiny network has two stages
    "--config.training.student.losses.maps=0.1",  # of few channels, whose directions turn fast: 30 multiplies rounding
    "--config.export.platforms=('cpu',)",
    *(
        f"--config.training.{stage}.{name}={value}"
        for stage in TRAINED
        for name, value in (
            *(("steps", STEPS), ("batch_size", 24), ("log_every", 1), ("evaluate_every", 10)),
            *(("sampling.people", 6), ("sampling.frames", 4)),
            *(("optimizer.name", "sgd"), ("optimizer.learning_rate", 1e-4), ("optimizer.schedule", "constant")),
            ("loss_options.temperature", 1.0),  # 0.1 would multiply rounding by ten
        )
    ),
]
LAYOUTS = {"1 device": (1, 1, 1), "8 devices": (1, 8, 2), "2 processes x 4 devices": (2, 4, 2)}
"""(processes, devices of each, fsdp)."""


@pytest.fixture(scope="module")
def env(job_env):
    """The environment of all runs."""
    kept = {name: value for name, value in job_env.items() if "PROXY" not in name.upper()}
    return kept | {"PYTHON": sys.executable}


def words(workdir: pathlib.Path, layout: str, *arguments: str) -> list[str]:
    """The launcher's command."""
    processes, devices, fsdp = LAYOUTS[layout]
    launch = ["bash", "launch.sh", "local", str(processes), f"--devices={devices}"]
    return [*launch, *SMALL, f"--config.mesh.fsdp={fsdp}", f"--workdir={workdir}", *arguments]


def run(workdir: pathlib.Path, env: dict[str, str], layout: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = words(workdir, layout, *arguments)
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def alone(env, tmp_path_factory):
    """The workdir of the stages up to the evaluation, on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "1"
    done = run(workdir, env, "1 device", f"--stages={','.join(TRAINED)},evaluation")
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir


@pytest.fixture(scope="module")
def runs(env, tmp_path_factory):
    """The workdirs of all stages by one process and by two, of eight devices."""
    folder = tmp_path_factory.mktemp("runs")
    for processes, layout in enumerate(list(LAYOUTS)[1:], 1):
        done = run(folder / str(processes), env, layout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("[evaluation] wrote") == 1
        if processes == 2:
            assert "[teacher]" not in (folder / "2.logs" / "process-1.log").read_text()  # process 0 alone talks
    return folder / "1", folder / "2"


@pytest.fixture(scope="module")
def starts(alone, tiny_data_dir):
    """The weights that each stage on one device began with: what the stage would train in its workdir."""
    found = {}

    class Begun(Exception):
        pass

    def train(plan, state, *_):
        found[plan.stage] = flat(jax.device_get(state.trainable))
        raise Begun

    content = cli.configuration([*SMALL, f"--config.dataset.data_dir={tiny_data_dir}"])
    settings = read_settings(content, tuple(STAGES))
    with pytest.MonkeyPatch.context() as patch, Workdir(alone) as workdir:
        job = Job(settings, workdir, content)
        targets = np.zeros((len(job.frames("train")), settings.model.embedding_dim), np.float32)
        patch.setattr(job, "embedder", lambda *_, **__: lambda *_: {"embedding": targets})
        patch.setattr(training, "_Validation", lambda *_: None)
        patch.setattr(training, "train", train)
        for stage in TRAINED:
            with pytest.raises(Begun):
                getattr(training, f"run_{stage}")(job)
    return found


def flat(tree: Any) -> Any:
    """Arrays by path."""
    return traverse_util.flatten_dict(tree, sep="/")


def figures(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def state(workdir: pathlib.Path, stage: str = "teacher") -> dict:
    with Checkpoints(workdir / "checkpoints" / stage) as checkpoints:
        assert checkpoints.latest_step() == STEPS
        return checkpoints.restore_parts(STEPS)


def logged(workdir: pathlib.Path, stage: str) -> dict[str, np.ndarray]:
    """All figures of a stage by name, but for those of time."""
    lines = [line for line in figures(workdir) if line["stage"] == stage]
    names = {name for line in lines for name in line} - {"stage", "images_per_s", "data_wait"}
    return {name: np.array([line[name] for line in lines if name in line]) for name in sorted(names)}


def relative(values: np.ndarray, wanted: np.ndarray, scale: float = 0.0) -> float:
    """The largest difference, in parts of the value or of `scale` where that is larger."""
    return float(np.max(np.abs(values - wanted) / np.maximum(np.abs(wanted), max(scale, 1e-30))))


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
@pytest.mark.parametrize("stage", TRAINED)
def test_layouts_are_equal(alone, runs, starts, stage, layout):
    """To 1e-5 each logged figure but gradient norms, and each array of weights and of batch statistics, in parts of its
    largest entry.

    To 5e-5 gradient norms, and what all steps changed the weights by, array by array and all in all. 1e-5 of that
    change would be less than float32 can hold: a weight near 0.5 is stored to 6e-8, and twenty steps at this rate
    change it by a thousandth. So an array's change may be apart by two places of its largest weight, too.
    """
    workdir = runs[LAYOUTS[layout][0] - 1]
    one, other = logged(alone, stage), logged(workdir, stage)
    assert one.keys() == other.keys()
    assert len(one["loss"]) == len(one["gradient_norm"]) == STEPS
    assert len([name for name in one if name.startswith("eval/")]) >= 4
    apart = {"losses": 0.0, "gradient norm": 0.0, "eval": 0.0}
    for name, values in one.items():
        kind = {"gradient_norm": "gradient norm", "eval": "eval"}.get(name.split("/")[0], "losses")
        scale = 1.0 if "cosine" in name else 0.0  # a mean of what has either sign, so near 0 that nothing is left
        apart[kind] = max(apart[kind], relative(other[name], values, scale))
    start = starts[stage]
    states = [state(folder, stage) for folder in (alone, workdir)]
    for kind, name in (("weights", "trainable"), ("batch statistics", "batch_stats")):
        leaves = list(zip(*(jax.tree.leaves(one[name]) for one in states), strict=True))
        least = 1e-3 * max(np.abs(leaf).max() for leaf, _ in leaves)  # a bias before a batch norm is all rounding
        apart[kind] = max(np.abs(leaf - other).max() / max(np.abs(leaf).max(), least) for leaf, other in leaves)
    ends = [flat(one["trainable"]) for one in states]
    assert ends[0].keys() == ends[1].keys() == start.keys()
    changes = {path: np.abs(ends[0][path] - leaf).max() for path, leaf in start.items()}
    least = 1e-2 * max(changes.values())  # a bias before a batch norm has no gradient but rounding: 1e-10
    differences = {path: np.abs(ends[1][path] - leaf).max() for path, leaf in ends[0].items()}
    apart["an array's change"] = max(differences[path] / max(change, least) for path, change in changes.items())
    change, difference = (
        np.sqrt(sum(np.sum((ends[0][path] - leaf) ** 2) for path, leaf in tree.items())) for tree in (start, ends[1])
    )
    apart["all weights' change"] = difference / change
    print(f"\n{stage}, {layout}: {', '.join(f'{name} {value:.1e}' for name, value in apart.items())}")
    for path, found in differences.items():
        places = 2 * np.spacing(np.abs(ends[0][path]).max())
        assert found <= 5e-5 * max(changes[path], least) + places, path
    assert max(apart["all weights' change"], apart["gradient norm"]) <= 5e-5
    kinds = ("losses", "eval", "weights", "batch statistics")
    assert max(apart[name] for name in kinds) <= 1e-5


def test_the_embeddings_and_the_results_are_the_same(alone, runs):
    workdirs = (alone, *runs)
    for split in ("validation", "test"):
        for modality in ("rgb", "depth"):
            one, *others = (Embeddings.load(folder / "embeddings" / f"{split}_{modality}.npz") for folder in workdirs)
            for other in others:
                np.testing.assert_array_equal(other.frame_id, one.frame_id)
                np.testing.assert_allclose(other.embedding, one.embedding, rtol=1e-4, atol=3e-5)
    contents = [json.loads((folder / "results.json").read_text()) for folder in workdirs]
    found = [(content["environment"]["processes"], content["environment"]["devices"]) for content in contents]
    assert found == [(1, "1 x cpu"), (1, "8 x cpu"), (2, "8 x cpu")]
    for name in ("results", "other_splits", "people", "queries", "chance"):
        one, *others = (np.array(jax.tree.leaves(content[name])) for content in contents)
        for other in others:
            np.testing.assert_allclose(other, one, atol=1e-5)


def test_two_processes_leave_the_same_files(runs):
    # A compile cache of its own for each process would be the only thing that may differ.
    found = [{path.relative_to(one) for path in one.rglob("*") if path.suffix in (".json", ".npz")} for one in runs]
    assert {path for path in found[0] if path.parts[0] != "checkpoints"} == {
        path for path in found[1] if path.parts[0] != "checkpoints"
    }
    assert not list(runs[1].rglob("*.tmp"))


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
        words(workdir, list(LAYOUTS)[-1], "--stages=teacher"),
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
    again = run(workdir, env, list(LAYOUTS)[-1], "--stages=teacher")
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
        (["--workdir=a"], ["--workdir=a"], "has another flax (0.0.1)"),
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
    if "flax" in text:
        (tmp_path / "older" / "flax-0.0.1.dist-info").mkdir(parents=True)
        (tmp_path / "older" / "flax-0.0.1.dist-info" / "METADATA").write_text("Name: flax\nVersion: 0.0.1\n")
        other = env | {"PYTHONPATH": f"{tmp_path / 'older'}:{env.get('PYTHONPATH', '')}"}
    first, second = pair_of(tmp_path, [(ours, env), (theirs, other)])
    assert (first[0], second[0]) == (2, 2)
    assert text in first[1]
    told = [line for _, errors in (first, second) for line in errors.splitlines() if "error: " in line]
    assert len(told) == 1  # process 0 speaks for both
    assert not list(tmp_path.glob("*/metrics.jsonl"))
    assert not list(tmp_path.glob("*/checkpoints"))


PEOPLE = "--config.training.teacher.sampling.people"


def test_too_little_memory_in_all_processes_is_one_line_of_one_of_them_with_the_batch_that_fits(env, tmp_path):
    (tmp_path / "large.py").write_text(
        "import runpy, jax, jax.numpy as jnp\n"
        "from rgbd_reid_jax.stages import training\n"
        "training.train = lambda *_, **__: jax.block_until_ready(jnp.zeros(1 << 47, jnp.uint8))\n"
        "runpy.run_module('rgbd_reid_jax.main', run_name='__main__', alter_sys=True)\n"
    )
    commands = [(["--workdir=a", "--stages=teacher"], env | {"GLIBC_TUNABLES": ""})] * 2  # set: no second start
    (status, first), (other, second) = pair_of(tmp_path, commands, ("large.py",))
    assert (status, other) == (2, 2)
    assert first.startswith("error: stage teacher with training.teacher.batch_size=24 needs more memory than its de")
    assert first.endswith("a batch of 20 fits: --config.training.teacher.batch_size=20 " + PEOPLE + "=5\n")
    assert "error:" not in second
