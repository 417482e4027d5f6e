"""Joining a run of several processes, and what they say to each other there."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from rgbd_reid_jax.core import distributed
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.mesh import make_mesh

REPOSITORY = pathlib.Path(__file__).parents[2]
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
GOOD = {"RGBD_REID_COORDINATOR": "10.0.0.1:1234", "RGBD_REID_PROCESSES": "4", "RGBD_REID_PROCESS": "3"}


def test_the_variables_are_read_and_nothing_is_guessed():
    assert distributed.METHODS["env"](GOOD | {"SLURM_JOB_ID": "7"}) == {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"RGBD_REID_COORDINATOR": ""}, "RGBD_REID_COORDINATOR is not set; ./launch.sh local N sets them"),
        ({"RGBD_REID_PROCESSES": "", "RGBD_REID_PROCESS": ""}, "RGBD_REID_PROCESSES, RGBD_REID_PROCESS are not set"),
        ({"RGBD_REID_COORDINATOR": "host"}, "RGBD_REID_COORDINATOR='host' is not of the form HOST:PORT"),
        ({"RGBD_REID_COORDINATOR": ":80"}, "RGBD_REID_COORDINATOR=':80' is not of the form HOST:PORT"),
        ({"RGBD_REID_COORDINATOR": "host:70000"}, "'host:70000' is not of the form HOST:PORT"),
        ({"RGBD_REID_PROCESSES": "two"}, "RGBD_REID_PROCESSES='two' is no number of processes"),
        ({"RGBD_REID_PROCESSES": "0"}, "RGBD_REID_PROCESSES='0' is no number of processes; it must be at least 1"),
        ({"RGBD_REID_PROCESS": "4"}, "RGBD_REID_PROCESS='4' must be from 0 to 3"),
        ({"RGBD_REID_PROCESS": "-1"}, "RGBD_REID_PROCESS='-1' must be from 0 to 3"),
    ],
)
def test_wrong_variables_are_named(change, text):
    with pytest.raises(InputError) as caught:
        distributed.METHODS["env"](GOOD | change)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("method", "environment", "name"),
    [
        ("slurm", dict.fromkeys(SLURM, "1"), "slurm"),
        ("tpu", {}, "gcetpu"),
        ("tpu", {"TPU_WORKER_HOSTNAMES": "a,b"}, "gketpu"),
    ],
)
def test_clusters_are_those_that_jax_knows(method, environment, name):
    assert distributed.METHODS[method](environment) == {"cluster_detection_method": name}
    from jax._src.clusters import ClusterEnv

    assert name in {one.name for one in ClusterEnv._cluster_types}


@pytest.mark.parametrize(
    ("method", "environment", "text"),
    [
        ("slurm", {}, "--distributed=slurm, but SLURM_JOB_ID, .*, SLURM_LOCALID are not set: start each process with"),
        ("kubernetes", {}, "KUBERNETES_SERVICE_HOST is not set"),
        ("kubernetes", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, r"pip install 'jax\[k8s\]'"),
    ],
)
def test_a_cluster_that_is_not_there_is_not_joined(method, environment, text):
    with pytest.raises(InputError, match=text):
        distributed.METHODS[method](environment)


@pytest.mark.parametrize("missing", SLURM)
def test_what_jax_reads_of_slurm_is_looked_for(monkeypatch, missing):
    from jax._src.clusters.slurm_cluster import SlurmCluster

    kept = {name: "1" for name in SLURM if name != missing}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing, raising=False)
    assert not SlurmCluster.is_env_present()
    with pytest.raises(InputError, match=f"but {missing} is not set: start each process with srun"):
        distributed.METHODS["slurm"](kept)
    monkeypatch.setenv(missing, "1")
    assert SlurmCluster.is_env_present()  # JAX wants no more


@pytest.mark.parametrize("text", ["0", "-3", "soon", "1.5"])
def test_the_time_limit_is_a_number(text):
    with pytest.raises(InputError, match=r"RGBD_REID_JOIN_SECONDS='.*' is no number of seconds"):
        distributed._join_seconds({"RGBD_REID_JOIN_SECONDS": text})


def test_one_process_needs_nobody():
    assert distributed.is_first()
    assert distributed.sign() == ""
    assert distributed.on_first(lambda: object) is object  # handed on as it is
    assert distributed.first_then_others(lambda: 3) == 3
    distributed.check_same({"code": "a"})
    vote = distributed.StopVote(make_mesh())
    assert [vote(False), vote(True), vote.last(False)] == [False, True, False]
    found = distributed.replicate({"a": np.arange(3)}, make_mesh(), "weights")["a"]
    assert len(found.addressable_shards) == 8
    distributed.finish()


def test_the_digest_is_that_of_the_source(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "core").mkdir(parents=True)
    (package / "core" / "a.py").write_text("1")
    monkeypatch.setattr(distributed, "__file__", str(package / "core" / "distributed.py"))
    first = distributed.source_digest()
    (package / "core" / "b.txt").write_text("2")
    assert distributed.source_digest() == first
    (package / "b.py").write_text("2")
    second = distributed.source_digest()
    (tmp_path / "tfds_builders").mkdir()
    (tmp_path / "tfds_builders" / "c.py").write_text("3")
    assert len({first, second, distributed.source_digest()}) == 3


PREAMBLE = """
import sys
from rgbd_reid_jax.core import distributed
from rgbd_reid_jax.core.errors import InputError
try:
    distributed.start(sys.argv[1])
except InputError as error:
    sys.exit(f"error: {error}")
import jax, numpy as np
from rgbd_reid_jax.core import mesh as mesh_lib
index, mesh = jax.process_index(), mesh_lib.make_mesh()
"""


def processes(
    program: str, count: int, method: str = "env", *, started: int | None = None, **variables: str
) -> list[tuple[int, str, str]]:
    """(exit status, output, errors) of the processes of a run, of which only some may be started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    kept |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": "."}
    kept |= {"RGBD_REID_COORDINATOR": f"127.0.0.1:{port}", "RGBD_REID_PROCESSES": str(count), **variables}
    command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(program), method]
    running = [
        subprocess.Popen(
            command,
            env=kept | dict.fromkeys(("RGBD_REID_PROCESS", "SLURM_PROCID", "SLURM_LOCALID"), str(index)),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count if started is None else started)
    ]
    try:
        return [(process.wait(60), *process.communicate()) for process in running]
    finally:
        for process in running:
            process.kill()


def test_two_processes_are_one_run():
    program = """
    import signal
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 1, 1]
    rows = mesh_lib.shard_batch({"a": np.arange(4) + 4 * index}, mesh)["a"]
    assert int(jax.jit(lambda rows: (rows * np.arange(8)).sum())(rows)) == 140  # sum of squares: rows are in order

    done = []
    assert distributed.on_first(lambda: done.append(index) or {"a": [1, 2.5, None]}) == {"a": [1, 2.5, None]}
    assert done == [0] * (1 - index)
    assert distributed.first_then_others(lambda: index) == index
    assert distributed.on_first(lambda: distributed.on_first(lambda: 7)) == 7
    def refuse():
        raise InputError("no good")
    def fall():
        raise OSError("the disk is gone")
    for work, kind in ((refuse, InputError), (fall, (OSError, RuntimeError))):
        try:
            distributed.on_first(work)
            raise AssertionError("must not return")
        except kind as error:
            assert ("no good" in str(error)) == (work is refuse)

    distributed.check_same({"code": "a", "data": "b"})
    try:
        distributed.check_same({"code": "a", "data": str(index)})
    except InputError as error:
        print(error)

    whole = distributed.replicate({"w": np.float32(3)}, mesh, "weights")
    assert float(whole["w"]) == 3 and len(whole["w"].sharding.device_set) == 4
    again = distributed.replicate(whole, mesh, "weights")["w"]
    assert again.sharding == whole["w"].sharding and float(again) == 3
    wide = {"kernel": np.arange(8.0).reshape(2, 4)}
    cut = mesh_lib.make_mesh(4)  # an axis over both processes
    parts = distributed.place(wide, mesh_lib.shardings(wide, cut), "weights")["kernel"]
    assert [shard.data.shape for shard in parts.addressable_shards] == [(2, 1)] * 2
    np.testing.assert_array_equal(distributed.replicate(parts, cut, "weights"), wide["kernel"])
    try:
        distributed.replicate(np.arange(2) + index, mesh, "initial state")
    except InputError as error:
        print(error)

    vote, asked = distributed.StopVote(mesh), []
    for step in range(6):
        asked.append(vote(index == 1 and step >= 2))
    assert asked == [False, False, False, True, True, True], asked
    assert not distributed.StopVote(mesh).last(False) and distributed.StopVote(mesh).last(index == 0)

    told, distributed._LEAVE_MS = [], 200
    assert not (index == 1 and distributed.all_come("one", 200))
    for _ in range(2 * index):  # an error of process 1 alone
        distributed.leave(lambda: told.append("alone"))
    assert told == ["alone"] * index
    distributed._PREFIX, distributed._LEAVE_MS = "again", 20_000
    assert distributed.all_come("one", 20_000)
    for _ in range(1 - index):  # process 0 has made one call more
        next(distributed._numbers)
    assert distributed.on_first(lambda: f"of {index}", "last") == "of 0"
    distributed.leave(lambda: told.append("both"))
    assert told == [["both"], ["alone"]][index]
    assert distributed.jax_distributed.global_state.client is None
    """
    found = processes(program, 2)
    for index, (status, output, errors) in enumerate(found):
        assert status == 0, f"process {index}:\n{output}{errors}"
        told = [line for line in output.splitlines() if line.startswith("process 1 on")]
        assert "has another data (1) than process 0 on" in told[0]
        assert "has another initial state (" in told[1]


def test_two_tasks_of_a_slurm_step_meet():
    first = 2**16 - 2**12  # JAX takes the port from here on, by the job's id
    for job in range(2**12):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", first + job))
            break
    program = """
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    rows = mesh_lib.shard_batch({"a": np.arange(4) + 4 * index}, mesh)["a"]
    print(int(jax.jit(lambda rows: rows.sum())(rows)), distributed.on_first(lambda: f"of process {index}"))
    distributed.finish()
    """
    nodes = "127.0.0.1,node[2-3]"  # the first is where the tasks meet
    found = processes(program, 2, "slurm", SLURM_JOB_ID=str(job), SLURM_STEP_NODELIST=nodes, SLURM_NTASKS="2")
    for status, output, errors in found:
        assert (status, output.splitlines()[-1]) == (0, "28 of process 0"), errors


@pytest.mark.parametrize("index", [0, 1])
def test_one_that_nobody_joins_says_so_in_one_line(index):
    # A count of 2 with one process started; process 1 finds no coordinator, process 0 waits at its own.
    started = {"RGBD_REID_JOIN_SECONDS": "2"}
    if index:
        program = "raise AssertionError('joined')"
        started["RGBD_REID_PROCESSES"] = "3"
        found = processes(program, 3, started=2, **started)[1]
    else:
        found = processes("raise AssertionError('joined')", 2, started=1, **started)[0]
    status, _, errors = found
    assert status == 2, errors
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith(
        f"error: process {index} of {2 + index} waited 2 s for the others at coordinator 127.0.0.1:"
    )
    assert "RGBD_REID_JOIN_SECONDS" in lines[0]


def test_devices_that_were_used_before_are_too_early():
    program = "import jax; jax.devices()"
    command = [sys.executable, "-c", program + PREAMBLE, "env"]
    env = {**os.environ, **GOOD, "RGBD_REID_COORDINATOR": "127.0.0.1:1", "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert "error: --distributed=env failed (jax.distributed.initialize() must be called before" in found.stderr


def test_jax_still_has_what_is_used_of_its_inside():
    from jax._src import distributed as inside

    for name in ("client", "process_id", "num_processes", "coordinator_address"):
        assert hasattr(inside.global_state, name)
    assert jax.process_count() == inside.global_state.num_processes
