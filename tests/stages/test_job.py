"""The main job as a user starts it: complete, resumable bit for bit, and free of TensorFlow."""

import json
import os
import pathlib
import signal
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
STEPS, EVERY = 48, 16

SMALL = [
    "--config.dataset.config=tiny",
    "--config.model.backbone=tiny",  # compilation would take most of the time
    "--config.training.student.hints=(1,2)",  # the tiny network has two stages
    "--config.export.platforms=('cpu',)",
    *(
        f"--config.training.{stage}.{name}={value}"
        for stage in ("teacher", "student")
        for name, value in (
            *(("steps", STEPS), ("batch_size", 16), ("log_every", 1), ("evaluate_every", EVERY)),
            *(("sampling.people", 4), ("sampling.frames", 4)),
        )
    ),
]


def command(workdir: pathlib.Path, *arguments: str) -> list[str]:
    """The README's command, sized down."""
    config = "--config=configs/distill.py"
    return [sys.executable, "-m", "rgbd_reid_jax.main", config, f"--workdir={workdir}", *SMALL, *arguments]


def run(workdir: pathlib.Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end; standard error is kept apart."""
    return subprocess.run(
        command(workdir, *arguments), cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300, check=False
    )


DIRECTIONS = ("rgb_to_depth", "depth_to_rgb", "rgb_to_rgb", "depth_to_depth")


@pytest.fixture(scope="module")
def env(job_env, tmp_path_factory):
    """The environment of all runs; importing TensorFlow in it is an error."""
    trap = tmp_path_factory.mktemp("no_tensorflow")
    (trap / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')\n")
    return job_env | {"PYTHONPATH": os.pathsep.join([str(trap), job_env["PYTHONPATH"]])}


@pytest.fixture(scope="module")
def finished(env, tmp_path_factory):
    """(workdir, process) of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    done = run(workdir, env)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir, done


def final_state(workdir: pathlib.Path, stage: str) -> dict:
    with Checkpoints(workdir / "checkpoints" / stage) as checkpoints:
        assert checkpoints.latest_step() == STEPS
        return checkpoints.restore_parts(STEPS)


def assert_same(one: dict, other: dict) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_leaves_what_is_documented(finished):
    workdir, done = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["schema"] == 1
    assert results["protocol"] == "cross_camera"
    dataset = json.loads((workdir / "dataset.json").read_text())
    assert (results["dataset"], results["dataset_fingerprint"]) == (dataset["name"], dataset["fingerprint"])
    assert len(results["dataset_fingerprint"]) == 16
    for stage in ("teacher", "student"):
        chosen = json.loads((workdir / "stages" / f"{stage}.json").read_text())["step"]
        assert (workdir / "checkpoints" / stage / str(chosen)).is_dir()
    assert set(results["results"]) == set(DIRECTIONS) == set(results["chance"])
    for direction in DIRECTIONS:
        scores = results["results"][direction]
        assert set(scores) == {"mAP", "mAP_trapezoid", "mINP", "rank1", "rank5", "rank10"}
        assert all(0.0 <= score <= 1.0 for score in scores.values())
        assert scores["rank1"] <= scores["rank5"] <= scores["rank10"]
        assert f"{100 * scores['mAP']:.1f}" in done.stdout
    assert results["environment"]["packages"]["jax"] == jax.__version__
    for split in ("validation", "test"):
        pair = {name: Embeddings.load(workdir / "embeddings" / f"{split}_{name}.npz") for name in ("rgb", "depth")}
        assert pair["rgb"].embedding.dtype == np.float32
        np.testing.assert_array_equal(pair["rgb"].frame_id, pair["depth"].frame_id)
        np.testing.assert_array_equal(pair["rgb"].recording_id, pair["depth"].recording_id)
        np.testing.assert_allclose(np.linalg.norm(pair["depth"].embedding, axis=1), 1.0, atol=1e-4)
    assert list((workdir / "tensorboard" / "teacher").glob("events.*"))
    last_lines = done.stdout.strip().splitlines()
    assert last_lines[-1] == f"report: {workdir / 'report' / 'index.html'}"
    assert "chance" in done.stdout


def test_metrics_have_each_step_once_and_validations(finished):
    workdir, _ = finished
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    for stage, score in (("teacher", "eval/depth_to_depth/mAP"), ("student", "eval/rgb_to_depth/mAP")):
        mine = [line for line in lines if line["stage"] == stage]
        assert [line["step"] for line in mine if "loss" in line] == list(range(1, STEPS + 1))
        assert [line["step"] for line in mine if score in line] == [EVERY, 2 * EVERY, STEPS]


def test_progress_names_stage_step_rate_loss_and_time_left(finished):
    _, done = finished
    line = next(line for line in done.stdout.splitlines() if line.startswith(f"[student] step {STEPS}/{STEPS}"))
    for word in ("images/s", "loss", "ETA"):
        assert word in line


def test_exported_cards_tell_of_the_check(finished):
    workdir, _ = finished
    for modality, inputs in (("rgb", {"rgb"}), ("depth", {"depth", "mask"})):
        card = json.loads((workdir / "export" / f"{modality}.json").read_text())
        assert set(card["inputs"]) == inputs
        assert card["inputs"][modality]["shape"][0] == "batch"
        assert card["check"]["max_abs_difference"] <= 1e-4
        assert card["check"]["batch_sizes"] == [7, 3, 1]


def test_the_same_command_again_does_no_work(finished, env):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    again = run(workdir, env)
    assert again.returncode == 0, again.stderr
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
    assert before == after
    assert again.stdout.count("already done") == 5
    assert "RGB -> depth" in again.stdout


def test_a_deleted_stage_is_done_again(finished, env):
    workdir, _ = finished
    report = workdir / "report" / "index.html"
    report.unlink()
    (workdir / "stages" / "report.json").unlink()
    again = run(workdir, env)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already done") == 4
    assert report.exists()


def wait_for_step(workdir: pathlib.Path, stage: str, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    wanted = f'"stage": "{stage}", "step": {step},'
    while time.monotonic() < deadline and process.poll() is None:
        metrics = workdir / "metrics.jsonl"
        if metrics.exists() and wanted in metrics.read_text():
            return
        time.sleep(0.002)
    raise AssertionError(f"stage {stage} never logged step {step}; exit status {process.poll()}")


@pytest.mark.parametrize(
    ("kill", "stage", "step", "status"),
    [
        (signal.SIGKILL, "teacher", 3, -signal.SIGKILL),  # before the first checkpoint
        (signal.SIGKILL, "teacher", EVERY, -signal.SIGKILL),  # while one is being written
        (signal.SIGKILL, "student", EVERY + 5, -signal.SIGKILL),
        (signal.SIGTERM, "teacher", 11, 130),
        (signal.SIGINT, "student", 5, 130),
    ],
)
def test_killed_and_started_again_ends_with_the_same_bits(finished, env, tmp_path, kill, stage, step, status):
    whole, _ = finished
    workdir, trained = tmp_path / "cut", ("teacher", "student")[: 1 if stage == "teacher" else 2]
    stages = f"--stages={','.join(trained)}"
    process = subprocess.Popen(
        command(workdir, stages),
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_step(workdir, stage, step, process)
        process.send_signal(kill)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == status, errors
    assert not (workdir / "stages" / f"{stage}.json").exists(), "the stage was over before the signal came"
    if status == 130:
        assert len(errors.strip().splitlines()) == 1
        assert "run the same command to go on" in errors
    again = run(workdir, env, stages)
    assert again.returncode == 0, again.stderr
    for one in trained:
        assert_same(final_state(whole, one), final_state(workdir, one))
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["stage"] == stage and "loss" in line}
    expected = [json.loads(text) for text in (whole / "metrics.jsonl").read_text().splitlines()]
    assert losses == {line["step"]: line["loss"] for line in expected if line["stage"] == stage and "loss" in line}
    assert len([line for line in lines if line["stage"] == stage and "loss" in line]) == STEPS


@pytest.mark.parametrize("delay", [0.8, 2.0, 5.0])
def test_ctrl_c_at_any_moment_is_one_line(env, tmp_path, delay):
    process = subprocess.Popen(
        command(tmp_path / "run"), cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert len(errors.strip().splitlines()) == 1, errors
