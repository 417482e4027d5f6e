"""What the launcher refuses, and its help."""

import re

import pytest

from tests.launch.launching import CONFIG, GKE, LAUNCH, ON_TPU, SLURM, TPU, launch


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fly"], "unknown command 'fly' (valid commands: local, slurm, tpu, gke)"),
        (["--fast"], "unknown option '--fast' (valid options before the command: --dry-run, --help)"),
        (["--dry-run"], "no command given"),
        (["local", "two"], "'two' is no number of processes"),
        (["local", "0", CONFIG], "'0' is no number of processes"),
        (["local", "2", CONFIG], "local 2 needs --workdir=DIR, or --logs=DIR"),
        (["local", "2", "--devices=none"], "--devices=none must be a number, at least 1"),
        (
            ["local", "--nodes=2"],
            "unknown option '--nodes=2' of local (valid: --devices, --port, --logs, and the run's",
        ),
        (["local", "2", "--port=0"], "--port=0 must be a number, at least 1 and at most 65535"),
        (["local", "2", "--port=65536"], "--port=65536 must be a number, at least 1 and at most 65535"),
        (["local", "--config"], "--config needs a value, as in --config=VALUE"),
        (["local", "--config", "--workdir=x"], "--config needs a value"),
        (["local", "configs/distill.py"], "'configs/distill.py' is no number of processes"),
        (["local", CONFIG, "stray"], "argument 'stray' is not an option"),
        (["slurm", CONFIG, "--workdir=x"], "slurm needs --time"),
        ([*SLURM, "--workdir=x"], "slurm needs --config=FILE"),
        ([*SLURM, CONFIG], "slurm needs --workdir=DIR"),
        ([*SLURM, "--config=configs/no.py:biwi", "--workdir=x"], "config file configs/no.py does not exist"),
        ([*SLURM, CONFIG, "--workdir=x", "--time=soon"], "--time='soon' must be a time limit of sbatch"),
        ([*SLURM, CONFIG, "--workdir=x", "--time=1-2-3"], "--time='1-2-3' must be a time limit of sbatch"),
        ([*SLURM, CONFIG, "--workdir=x", "--time=1:75"], "--time='1:75' must be a time limit of sbatch"),
        ([*SLURM, CONFIG, "--workdir=x", "--time"], "--time needs a value, as in --time=VALUE"),
        ([*SLURM, CONFIG, "--workdir=x", "--nodes=0"], "--nodes=0 must be a number, at least 1"),
        ([*SLURM, CONFIG, "--workdir=x", "--partition=a b"], "--partition='a b' must be names of partitions"),
        ([*SLURM, CONFIG, "--workdir=a b"], "--logs='a b.logs' must hold no spaces"),
        ([*SLURM, CONFIG, "--workdir=x", "--name=Me"], "--name='Me' must be lower-case letters"),
        (["tpu", CONFIG, "--workdir=x", "--name=a", "--zone=us-west4-a"], "tpu needs --type"),
        ([*TPU, "--config=configs/no.py", "--workdir=x"], "config file configs/no.py does not exist; look in configs/"),
        ([*TPU, f"--config={LAUNCH}", "--workdir=x"], f"config file {LAUNCH} would not reach the workers"),
        ([*TPU, CONFIG, "--workdir=runs/x", "--type=v4-16"], "--workdir=runs/x would lie on each worker's own disk"),
        (
            [*TPU, CONFIG, "--workdir=runs/x", "--type=v5litepod-16"],
            "v5litepod-16 has several workers; give an absolute path on storage that all of them mount, such as "
            "--workdir=/mnt/reid/runs/x with --setup=mount.sh",
        ),
        ([*TPU, CONFIG, "--workdir=x", "--zone=here"], "--zone='here' must be a zone, such as us-west4-a"),
        ([*TPU, CONFIG, "--workdir=x", "--type=v5e"], "--type='v5e' must be an accelerator type"),
        ([*TPU, CONFIG, "--workdir=x", "--name=a;rm"], "--name='a;rm' must be lower-case letters"),
        ([*TPU, CONFIG, "--workdir=x", "--setup=absent"], "--setup=absent is no file"),
        ([*TPU, CONFIG, "--workdir=x", "--spot=yes"], "unknown option '--spot=yes' of tpu"),
        ([*ON_TPU, CONFIG, "--workdir=runs/x"], "--workdir=runs/x must lie below /shared"),
        ([*GKE, CONFIG, "--workdir=/shared/x"], "gke needs one of --tpu and --gpu"),
        ([*ON_TPU, CONFIG, "--workdir=/shared/x", "--gpu=a"], "gke needs one of --tpu and --gpu"),
        ([*GKE, CONFIG, "--workdir=/shared/x", "--tpu=a"], "gke needs --topology"),
        ([*GKE, CONFIG, "--workdir=/shared/x", "--gpu=a"], "gke needs --nodes"),
        ([*ON_TPU, CONFIG, "--workdir=/shared/x", "--topology=16"], "--topology='16' must be chips along each axis"),
        ([*ON_TPU, CONFIG, "--workdir=/shared/x", "--chips=3"], "--topology=4x4 has no multiple of --chips=3 chips"),
        ([*ON_TPU, CONFIG, "--workdir=/shared/x", "--config.a=1\n2"], "holds a line break"),
        (
            [*ON_TPU, CONFIG, "--workdir=/shared/x", "--image=a b"],
            "--image='a b' must be the name of a container image",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(arguments, text, tmp_path):
    done = launch(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("launch.sh: ")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["configs", "distill.py"]


@pytest.mark.parametrize("arguments", [["--help"], ["local", "-h"], ["tpu", "--name=a", "--help"]])
def test_help_names_every_command(arguments, tmp_path):
    done = launch(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert all(re.search(rf"^  {name}\b", done.stdout, re.MULTILINE) for name in ("local", "slurm", "tpu", "gke"))


@pytest.mark.parametrize("arguments", [["local", "--dry-run"], ["--dry-run", "local"]])
def test_a_dry_run_may_be_asked_for_before_and_after(arguments, tmp_path):
    assert launch(*arguments, CONFIG, cwd=tmp_path).stdout == f"python -m rgbd_reid_jax.main {CONFIG}\n"
