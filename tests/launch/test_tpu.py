"""Slices of Cloud TPU: made, used and deleted, whatever happens between."""

import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.launching import CONFIG, LAUNCH, ODD, TPU, calls, fakes, launch, printed

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
    for name in ("a gone file", "zone"):
        (folder / name).write_text("")
        subprocess.run(["git", "add", name], cwd=folder, check=True)
        (folder / name).unlink()  # tracked, and deleted
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
