"""The launcher: what it prints is what it runs, whatever the arguments hold, and it leaves nothing behind."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import textwrap
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch.sh"
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


@pytest.fixture(autouse=True)
def config_file(tmp_path):
    """The file that CONFIG names: what starts a run elsewhere looks for it."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "distill.py").write_text("")


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


# ---- what may be said ----


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


# ---- local ----


def test_one_process_is_a_plain_command(tmp_path):
    words = shlex.split(printed("local", CONFIG, "--workdir", "a b", *ODD, cwd=tmp_path, PYTHON="my python"))
    assert words == ["my python", "-m", "rgbd_reid_jax.main", CONFIG, "--workdir=a b", *ODD]
    text = printed("local", "1", "--devices=4", CONFIG, cwd=tmp_path, XLA_FLAGS="--a")
    flags = "XLA_FLAGS=--a --xla_force_host_platform_device_count=4"
    assert shlex.split(text) == ["env", "JAX_PLATFORMS=cpu", flags, "python", "-m", "rgbd_reid_jax.main", CONFIG]


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process(tmp_path, number):
    python = stand_in(tmp_path, f'trap "echo stopped >>{tmp_path}/stopped; exit 130" TERM; while :; do sleep 0.1; done')
    process = subprocess.Popen(
        ["bash", str(LAUNCH), "local", "2", "--port=1", "--logs=l"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": python, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "started").exists() or len((tmp_path / "started").read_text().splitlines()) < 2:
        time.sleep(0.02)
    time.sleep(0.2)  # for the traps
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "is passed on; a second one ends all processes at once" in errors
    assert (tmp_path / "stopped").read_text() == "stopped\n" * 2


# ---- slurm ----


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
    assert shlex.split(run) == ["srun", "--kill-on-bad-exit=1", *words, "&"]
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


# ---- tpu ----

GCLOUD = """
case "$*" in
  *"queued-resources create"*) exit "${CREATE:-0}" ;;
  *describe*) echo "${STATE:-ACTIVE}" ;;
  *exec*) if [[ -n ${WAIT:-} ]]; then touch running; sleep 60; fi; exit "${RUN:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder under git with fake tools; (folder, PATH)."""
    (tmp_path / "code.py").write_text("1")
    (tmp_path / ".gitignore").write_text("bin\ncalls\nruns\n")
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    return tmp_path, fakes(tmp_path, gcloud=GCLOUD)


def did(folder: pathlib.Path) -> list[str]:
    """What gcloud was asked for, in short."""
    names = {"create": "create", "describe": "describe", "delete": "delete", "scp": "scp", "ssh": "ssh"}
    return [next(name for word, name in names.items() if word in call) for call in calls(folder)]


def test_a_slice_is_made_used_and_deleted(checkout):
    folder, path = checkout
    done = launch(*TPU, "--project=mine", "--spot", CONFIG, "--workdir=runs/x", *ODD, cwd=folder, **path)
    assert done.returncode == 0, done.stderr
    assert did(folder) == ["create", "describe", "scp", "ssh", "ssh", "scp", "delete"]
    found = calls(folder)
    assert all("--zone=us-west4-a" in call and "--project=mine" in call for call in found)
    assert {"--node-id=reid", "--accelerator-type=v5litepod-8", "--spot", "--async"} < set(found[0])
    install, run = (next(word for word in found[at] if word.startswith("--command=")) for at in (3, 4))
    assert all("--worker=all" in call for call in found[2:5])
    assert "-e '.[tpu]'" in install
    words = [
        "exec",
        ".venv/bin/python",
        "-m",
        "rgbd_reid_jax.main",
        CONFIG,
        "--workdir=runs/x",
        *ODD,
        "--distributed=tpu",
    ]
    assert shlex.split(run)[-len(words) :] == words
    assert found[5][5:8] == ["--recurse", "reid:rgbd_reid_jax/runs/x", "runs/"]
    assert {"--force", "--quiet"} < set(found[6])
    assert not (folder / "x").exists()


def test_the_code_that_travels_is_what_git_would_see(checkout):
    folder, path = checkout
    (folder / "runs").mkdir()
    (folder / "runs" / "secret").write_text("")
    keep = 'case "$*" in *"tpu-vm scp /"*) cp "$5" copied.tgz ;; esac\n' + GCLOUD
    (folder / "bin" / "gcloud").write_text(f"#!/usr/bin/env bash\n{keep}")
    assert launch(*TPU, CONFIG, "--workdir=/mnt/x", cwd=folder, **path).returncode == 0
    names = subprocess.check_output(["tar", "-tzf", "copied.tgz"], cwd=folder, text=True).split()
    assert sorted(names) == [".gitignore", "code.py", "configs/distill.py"]


def test_a_config_file_that_git_ignores_is_refused_before_anything_is_made(checkout):
    folder, path = checkout
    (folder / "runs").mkdir()
    (folder / "runs" / "own.py").write_text("")
    done = launch(*TPU, "--config=runs/own.py:biwi", "--workdir=/mnt/x", cwd=folder, **path)
    assert done.returncode == 2
    assert "config file runs/own.py would not reach the workers, which get what git would see" in done.stderr
    assert not calls(folder)


@pytest.mark.parametrize(
    ("kind", "workdir"),
    [*((kind, "runs/x") for kind in ("v5litepod-8", "v6e-4", "v5p-8", "v3-8")), ("v5litepod-16", "/mnt/x")],
)
def test_a_worker_keeps_the_workdir_on_its_own_disk_only_where_it_is_the_only_one(checkout, kind, workdir):
    folder, _ = checkout
    text = printed(*TPU, f"--type={kind}", CONFIG, f"--workdir={workdir}", cwd=folder)
    assert ("scp --recurse reid:rgbd_reid_jax/runs/x runs/" in text) == (workdir == "runs/x")


def test_gcloud_gets_what_the_dry_run_prints(checkout):
    folder, path = checkout
    (folder / "mount.sh").write_text("")
    arguments = [*TPU, "--project=mine", "--setup=mount.sh", CONFIG, "--workdir=runs/x", *ODD]
    text = printed(*arguments, cwd=folder, **path)
    assert not calls(folder)
    code = f"{folder}/bin/code.tgz"  # in place of a name that is new each time
    (folder / "bin" / "mktemp").write_text(f"#!/usr/bin/env bash\necho {code}\n")
    (folder / "bin" / "mktemp").chmod(0o755)
    assert launch(*arguments, cwd=folder, **path).returncode == 0
    ran = calls(folder)
    (folder / "calls").unlink()
    assert subprocess.run(["bash", "-c", text], cwd=folder, env={**os.environ, **path}, check=False).returncode == 0
    assert calls(folder) == ran
    assert len(ran) == 8


@pytest.mark.parametrize(
    ("variables", "status", "expected"),
    [
        ({"CREATE": "1"}, 1, ["create"]),  # a slice of that name may be somebody else's: it stays
        ({"STATE": "FAILED"}, 1, ["create", "describe", "delete"]),
        ({"RUN": "3"}, 3, ["create", "describe", "scp", "ssh", "ssh", "scp", "delete"]),
    ],
)
def test_a_slice_is_deleted_when_something_fails(checkout, variables, status, expected):
    folder, path = checkout
    done = launch(*TPU, CONFIG, "--workdir=runs/x", cwd=folder, **path, **variables)
    assert done.returncode == status
    assert did(folder) == expected


def test_an_interrupt_lets_training_save_and_deletes_the_slice(checkout):
    folder, path = checkout
    process = subprocess.Popen(
        ["bash", str(LAUNCH), *TPU, CONFIG, "--workdir=runs/x"], cwd=folder, env={**os.environ, **path, "WAIT": "1"}
    )
    while not (folder / "running").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert did(folder)[-3:] == ["ssh", "scp", "delete"]
    assert "kill -TERM" in " ".join(calls(folder)[-3])


def test_a_slice_that_is_to_be_kept_is_kept(checkout):
    folder, path = checkout
    done = launch(*TPU, "--keep", CONFIG, "--workdir=/mnt/x", cwd=folder, **path)
    assert done.returncode == 0
    assert did(folder) == ["create", "describe", "scp", "ssh", "ssh"]
    assert "the slice is kept; delete it with: gcloud compute tpus queued-resources delete reid" in done.stderr


def test_setup_runs_on_every_worker_first(checkout):
    folder, path = checkout
    (folder / "mount.sh").write_text("")
    assert launch(*TPU, "--setup=mount.sh", CONFIG, "--workdir=/mnt/x", cwd=folder, **path).returncode == 0
    assert calls(folder)[3][5:7] == ["mount.sh", "reid:rgbd_reid_jax.setup"]
    install = next(word for word in calls(folder)[4] if word.startswith("--command="))
    assert install.index("bash ../rgbd_reid_jax.setup") < install.index("uv")


# ---- gke ----


def manifest(*arguments: str, cwd: pathlib.Path) -> tuple[str, dict]:
    """The command and the manifest of a dry run."""
    yaml = pytest.importorskip("yaml")
    text = printed(*arguments, cwd=cwd)
    command, rest = text.split(" <<'END_OF_MANIFEST'\n")
    body, rest = rest.split("END_OF_MANIFEST\n")
    assert rest == ""
    return command, yaml.safe_load(body)


def pod_of(found: dict) -> tuple[dict, dict]:
    (group,) = found["spec"]["replicatedJobs"]
    assert group["replicas"] == 1
    job = group["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    return job, job["template"]["spec"]


def test_the_manifest_of_a_tpu_slice(tmp_path):
    arguments = [*ON_TPU, "--spot", "--namespace=team", CONFIG, "--workdir=/shared/x", *ODD]
    command, found = manifest(*arguments, cwd=tmp_path)
    assert command == "kubectl --namespace=team apply -f -"
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job, pod = pod_of(found)
    assert job["parallelism"] == 4  # 16 chips, 4 of each node
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    words = ["python", "-m", "rgbd_reid_jax.main", CONFIG, "--workdir=/shared/x", *ODD, "--distributed=tpu"]
    assert [word.replace("$$(", "$(") for word in container["command"]] == words
    assert not [word for word in container["command"] if re.search(r"(?<!\$)\$\(", word)]  # Kubernetes expands nothing


def test_the_manifest_of_gpu_nodes(tmp_path):
    command, found = manifest(*ON_GPU, "--gpus=4", CONFIG, "--workdir=/shared/x", cwd=tmp_path)
    assert command == "kubectl apply -f -"
    job, pod = pod_of(found)
    assert job["parallelism"] == 2
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    assert container["command"][-1] == "--distributed=env"
    variables = {one["name"]: one.get("value") or one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"]}
    # The name that JobSet gives the first pod of the first job of the group `workers`.
    assert variables["RGBD_REID_COORDINATOR"] == "reid-workers-0-0.reid:12355"
    assert found["spec"]["replicatedJobs"][0]["name"] == "workers"
    assert variables["RGBD_REID_PROCESSES"] == "2"
    assert variables["RGBD_REID_PROCESS"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2]  # refused input: starting again would not help


def test_kubectl_gets_what_the_dry_run_prints(tmp_path):
    path = fakes(tmp_path, kubectl="cat >manifest")
    arguments = [*ON_GPU, CONFIG, "--workdir=/shared/x", *ODD]
    text = printed(*arguments, cwd=tmp_path, **path)
    assert launch(*arguments, cwd=tmp_path, **path).returncode == 0
    assert calls(tmp_path) == [["kubectl", "apply", "-f", "-"]]
    assert (tmp_path / "manifest").read_text() == text.split("\n", 1)[1].removesuffix("END_OF_MANIFEST\n")
