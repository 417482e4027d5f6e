"""SLURM: the job's script, run with stand-ins."""

import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.launching import CONFIG, ODD, SLURM, calls, fakes, launch, printed


def test_the_slurm_script(tmp_path):
    options = ["--nodes=2", "--gpus=8", "--cpus=12", "--partition=a100", "--account=me", "--name=reid"]
    text = printed(*SLURM, *options, CONFIG, "--workdir=runs/x", *ODD, cwd=tmp_path, PYTHON="/env/bin/python")
    head, script = text.split("<<'END_OF_SCRIPT'\n")
    script, tail = script.split("END_OF_SCRIPT\n")
    assert head == "mkdir -p runs/x.logs\ncat >runs/x.logs/job.sbatch "
    assert tail == "sbatch runs/x.logs/job.sbatch\n"
    assert [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")] == [
        *["job-name=reid", "nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=12", "time=12:00:00"],
        *["partition=a100", "account=me", "output=runs/x.logs/slurm-%j.log", "open-mode=append", "requeue"],
        "signal=B:USR1@300",
    ]
    (run,) = (line for line in script.splitlines() if line.startswith("srun"))
    words = ["/env/bin/python", "-m", "rgbd_reid_jax.main", CONFIG, "--workdir=runs/x", *ODD, "--distributed=slurm"]
    assert shlex.split(run) == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=12", *words, "&"]
    plain = printed(*SLURM, CONFIG, "--workdir=x", cwd=tmp_path)
    assert "ntasks-per-node=1\n" in plain
    assert "gpus" not in plain


@pytest.mark.parametrize(("status", "queued"), [(130, True), (0, False), (2, False)])
def test_before_the_time_limit_the_slurm_job_saves_and_is_queued_again(tmp_path, status, queued):
    programs = fakes(
        tmp_path,
        sbatch="",
        scontrol="",
        scancel=f"touch {tmp_path}/stop",
        srun=f"while [[ ! -e {tmp_path}/stop ]]; do sleep 0.05; done; sleep 0.2; exit {status}",
    )
    done = launch(*SLURM, CONFIG, "--workdir=x", cwd=tmp_path, **programs)
    assert (done.returncode, calls(tmp_path)) == (0, [["sbatch", "x.logs/job.sbatch"]])
    job = subprocess.Popen(
        ["bash", "x.logs/job.sbatch"], cwd=tmp_path, env={**os.environ, **programs, "SLURM_JOB_ID": "7"}
    )
    while ["srun"] not in [call[:1] for call in calls(tmp_path)]:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == status
    assert ["scancel", "--signal=TERM", "7"] in calls(tmp_path)
    assert (["scontrol", "requeue", "7"] in calls(tmp_path)) == queued


def test_a_slurm_job_that_ends_by_itself_is_not_queued_again(tmp_path):
    programs = fakes(tmp_path, sbatch="", scontrol="", srun="exit 5")
    launch(*SLURM, CONFIG, "--workdir=x", cwd=tmp_path, **programs)
    job = subprocess.run(["bash", "x.logs/job.sbatch"], cwd=tmp_path, env={**os.environ, **programs}, check=False)
    assert job.returncode == 5
    assert "scontrol" not in [call[0] for call in calls(tmp_path)]


def test_a_tool_that_is_missing_is_named(tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("bash", "sed", "dirname"):
        (tmp_path / "bin" / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    done = launch(*SLURM, CONFIG, "--workdir=x", cwd=tmp_path, PATH=str(tmp_path / "bin"))
    assert done.returncode == 2
    assert done.stderr == "launch.sh: sbatch is not installed here; --dry-run prints what it would be asked\n"
