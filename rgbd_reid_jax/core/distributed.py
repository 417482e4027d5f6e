"""Several processes as one run: `jax.distributed`, and what the processes say to each other on the host.

Every process runs the same program on its own devices; a step on the mesh is work of all of them. All else belongs
to process 0: files, lines on the console, decisions that depend on either. `on_first` hands its results, and its
errors, to the others, so that all of them go the same way. The words travel through the service that
`jax.distributed` keeps anyway; no device takes part, so a wait may last as long as a dataset takes to build.

With one process (no `start`) every function here is a plain call.
"""

import functools
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # the service's client has no public name

from rgbd_reid_jax.core.errors import InputError, Interrupted
from rgbd_reid_jax.core.mesh import batch_sharding, replicated

ENVIRONMENT = ("RGBD_REID_COORDINATOR", "RGBD_REID_PROCESSES", "RGBD_REID_PROCESS")
JOIN_SECONDS = "RGBD_REID_JOIN_SECONDS"
_DEFAULT_JOIN_SECONDS = 300
_LEAVE_MS = 10_000  # where all processes fail, the last one does so no later than this after the first
_MARGIN_S = 60  # JAX aborts with a stack trace at its own limit; ours comes first and says what to do
_POLL_MS = 1000  # a wait is cut into pieces, between which Python can take a signal
_PREFIX = "rgbd_reid_jax"

_Result = TypeVar("_Result")
_Self = TypeVar("_Self")
_Arguments = ParamSpec("_Arguments")


def start(method: str) -> None:
    """Joins this process to the others of its run. Must precede the first use of a device.

    Args:
        method: a key of `METHODS`: where address, number of processes and this one's index come from.

    Raises:
        InputError: the environment does not say what `method` needs.

    A process that the others do not join in time prints one line and ends with status 2: JAX itself would abort.
    """
    parameters = METHODS[method](os.environ)
    seconds = _join_seconds(os.environ)
    timer = threading.Timer(seconds, _give_up, (method, seconds))
    timer.daemon = True
    timer.start()
    before = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(**parameters, initialization_timeout=seconds + _MARGIN_S)
    except (ValueError, RuntimeError) as error:
        timer.cancel()
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--distributed={method} failed ({reason}); start the processes with ./launch.sh (docs/scaling.md)"
        ) from error
    timer.cancel()
    signal.signal(signal.SIGTERM, before)  # JAX's handler would swallow it outside of training


def finish() -> None:
    """Takes leave of the other processes once all of them are done; waits for them."""
    if jax_distributed.global_state.client is not None:
        jax.distributed.shutdown()


def leave(tell: Callable[[], None]) -> None:
    """Ends this process's part of a run that failed, as it may have in several processes at once or in this one alone.

    Where all fail they leave together: the end of process 0 alone would abort the others, with a stack trace.

    Args:
        tell: tells the user why; one process calls it, process 0 where it is among them.
    """
    client: Any = jax_distributed.global_state.client
    if client is None:
        tell()
        return
    if is_first() and _first_to_set(client, f"{_PREFIX}/told"):
        tell()
    if all_come("leave", _LEAVE_MS):
        finish()
    elif not is_first() and _first_to_set(client, f"{_PREFIX}/told"):
        tell()  # others go on, and wait for this one: its end, not `finish`, will end them


def all_come(name: str, milliseconds: int) -> bool:
    """Whether all processes call this, with the same name and once a run, within so long of each other."""
    client: Any = jax_distributed.global_state.client
    if client is None:
        return True
    try:
        client.wait_at_barrier(f"{_PREFIX}/{name}", milliseconds)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _first_to_set(client: Any, key: str) -> bool:
    try:
        client.key_value_set(key, "")
    except jax.errors.JaxRuntimeError:
        return False
    return True


def count() -> int:
    """Number of processes; unlike JAX's own function it starts no devices."""
    return jax_distributed.global_state.num_processes


def is_first() -> bool:
    """Whether this is process 0, which writes files and talks to the user."""
    return jax_distributed.global_state.process_id == 0


def sign() -> str:
    """How a process other than 0 begins its messages: "process 3: "."""
    return "" if is_first() else f"process {jax_distributed.global_state.process_id}: "


def _join_seconds(environment: Mapping[str, str]) -> int:
    text = environment.get(JOIN_SECONDS) or str(_DEFAULT_JOIN_SECONDS)
    if not text.isdecimal() or not int(text):
        raise InputError(f"{JOIN_SECONDS}={text!r} is no number of seconds; leave it unset for {_DEFAULT_JOIN_SECONDS}")
    return int(text)


def _give_up(method: str, seconds: int) -> NoReturn:
    state = jax_distributed.global_state
    print(
        f"error: process {state.process_id} of {state.num_processes} waited {seconds} s for the others at coordinator "
        f"{state.coordinator_address} (--distributed={method}); check that all processes were started and that this "
        f"address can be reached from each, or set {JOIN_SECONDS} higher",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)  # the main thread is inside JAX and cannot be interrupted


def _from_variables(environment: Mapping[str, str]) -> dict[str, Any]:
    """Our own three variables, as `./launch.sh local N` and `./launch.sh gke` set them."""
    missing = [name for name in ENVIRONMENT if not environment.get(name)]
    if missing:
        raise InputError(
            f"--distributed=env needs {', '.join(ENVIRONMENT)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; ./launch.sh local N sets them"
        )
    address, processes, index = (environment[name] for name in ENVIRONMENT)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"{ENVIRONMENT[0]}={address!r} is not of the form HOST:PORT")
    if not processes.isdecimal() or int(processes) < 1:
        raise InputError(f"{ENVIRONMENT[1]}={processes!r} is no number of processes; it must be at least 1")
    if not index.isdecimal() or int(index) >= int(processes):
        last = int(processes) - 1
        raise InputError(f"{ENVIRONMENT[2]}={index!r} must be from 0 to {last} ({ENVIRONMENT[1]}={processes})")
    return {
        "coordinator_address": address,
        "num_processes": int(processes),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",  # nothing is guessed from a cluster that happens to be there
    }


_OF_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # JAX reads them


def _slurm(environment: Mapping[str, str]) -> dict[str, Any]:
    """A task of a SLURM step: one for each GPU of a node, or one for a node without."""
    missing = [name for name in _OF_SLURM if not environment.get(name)]
    if missing:
        raise InputError(
            f"--distributed=slurm, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: start each "
            "process with srun; ./launch.sh slurm does"
        )
    return {"cluster_detection_method": "slurm"}


def _kubernetes(environment: Mapping[str, str]) -> dict[str, Any]:
    """A pod of an indexed Job or a JobSet, which must be allowed to read its own Job."""
    if not environment.get("KUBERNETES_SERVICE_HOST"):
        raise InputError(
            "--distributed=kubernetes, but KUBERNETES_SERVICE_HOST is not set: this process is in no pod; "
            "./launch.sh gke starts some"
        )
    if importlib.util.find_spec("kubernetes") is None:
        raise InputError("--distributed=kubernetes needs a package of JAX's; pip install 'jax[k8s]'")
    return {}  # the only cluster without a name in JAX: it is found because no other is there


def _tpu(environment: Mapping[str, str]) -> dict[str, Any]:
    """Cloud TPU: on Kubernetes by environment, else by the machine's metadata server."""
    on_kubernetes = "TPU_PROCESS_ADDRESSES" in environment or "TPU_WORKER_HOSTNAMES" in environment
    return {"cluster_detection_method": "gketpu" if on_kubernetes else "gcetpu"}


METHODS: Mapping[str, Callable[[Mapping[str, str]], dict[str, Any]]] = {
    "env": _from_variables,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
    "tpu": _tpu,
}

_numbers = itertools.count()
_alone = False  # process 0 is inside `on_first`: the others wait, and nothing there may wait for them


def on_first(work: Callable[[], _Result], name: str = "") -> _Result:
    """What `work` returns in process 0, which alone calls it; the others wait.

    All processes must call this, in the same order. `work` must not use the mesh. Within it, another `on_first` is
    a plain call.

    Args:
        work: returns something small that JSON can hold.
        name: of this call, where processes may not have made the same calls before; once a run.

    Raises:
        InputError, Interrupted, RuntimeError: what `work` raised, in every process.
    """
    global _alone
    if _alone or count() == 1:
        return work()
    key = f"{_PREFIX}/result/{name or next(_numbers)}"
    if not is_first():
        return _unpacked(json.loads(_wait_for(key)))
    _alone = True
    try:
        result = work()
    except Exception as error:
        kind = next((name for name, one in _KINDS.items() if isinstance(error, one)), "")
        _say(key, {"kind": kind, "text": str(error) if kind else f"process 0: {type(error).__name__}: {error}"})
        raise
    finally:
        _alone = False
    _say(key, {"result": result})
    return result


_KINDS = {"InputError": InputError, "Interrupted": Interrupted}


def _unpacked(message: dict[str, Any]) -> Any:
    if "result" in message:
        return message["result"]
    raise _KINDS.get(message["kind"], RuntimeError)(message["text"])


def by_first(
    method: Callable[Concatenate[_Self, _Arguments], _Result],
) -> Callable[Concatenate[_Self, _Arguments], _Result]:
    """A method that process 0 does `on_first`."""

    @functools.wraps(method)
    def call(self: _Self, *args: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        return on_first(lambda: method(self, *args, **options))

    return call


def only_first(
    method: Callable[Concatenate[_Self, _Arguments], None],
) -> Callable[Concatenate[_Self, _Arguments], None]:
    """A method that process 0 does while the others go on."""

    @functools.wraps(method)
    def call(self: _Self, *args: _Arguments.args, **options: _Arguments.kwargs) -> None:
        if is_first():
            method(self, *args, **options)

    return call


def first_then_others(work: Callable[[], _Result]) -> _Result:
    """`work` in every process, in process 0 before the others: what it builds, they find built."""
    done: list[_Result] = []
    on_first(lambda: done.append(work()))
    return done[0] if done else work()


_SAME = "give all processes the same command, code, data and kind of machine"


def check_same(facts: Mapping[str, str], mend: str = _SAME) -> None:
    """Raises InputError in every process unless all hold the same facts.

    Args:
        facts: what must be equal, such as {"configuration": digest}; all processes have the same names.
        mend: what the user can do, for the message.
    """
    if count() == 1:
        return
    prefix = f"{_PREFIX}/facts/{next(_numbers)}"
    mine = {"host": socket.gethostname(), **facts}
    if not is_first():
        _say(f"{prefix}/{jax_distributed.global_state.process_id}", mine)

    def compare() -> None:
        for index in range(1, count()):
            theirs = json.loads(_wait_for(f"{prefix}/{index}"))
            for name in facts:
                if theirs[name] != mine[name]:
                    raise InputError(
                        f"process {index} on {theirs['host']} has another {name} ({theirs[name]}) than process 0 on "
                        f"{mine['host']} ({mine[name]}); {mend}"
                    )

    on_first(compare)


def place(tree: Any, shardings: Any, name: str) -> Any:
    """A pytree on the devices of all processes.

    Args:
        tree: arrays that are the same in every process, or lie on the devices of all of them already.
        shardings: where each leaf is to lie; a pytree of shardings, or one for all leaves.
        name: what they are, for the message.

    Raises:
        InputError: another process holds other values, as machines of different kinds may compute them.
    """
    if count() == 1:
        return jax.device_put(tree, shardings)
    digest = hashlib.sha256()

    def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        values = np.asarray(leaf)
        digest.update(values.tobytes())
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    placed = jax.tree.map(put, tree, shardings)
    check_same({name: digest.hexdigest()[:12]})
    return placed


def replicate(tree: Any, mesh: jax.sharding.Mesh, name: str) -> Any:
    """`place` with a copy on each device of the mesh."""
    return place(tree, replicated(mesh), name)


def source_digest() -> str:
    """What tells this code apart from another version of it: 12 hexadecimal digits over all source files."""
    package = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in (package, package.with_name("tfds_builders")):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(package.parent).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _say(key: str, message: Any) -> None:
    jax_distributed.global_state.client.key_value_set(key, json.dumps(message))  # pyright: ignore[reportOptionalMemberAccess]


def _wait_for(key: str) -> str:
    """The message under `key`, however long it takes: JAX ends this process if the one that owes it is gone."""
    client: Any = jax_distributed.global_state.client
    while True:
        try:
            return client.blocking_key_value_get(key, _POLL_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


class StopVote:
    """Whether any process was asked to stop, learned by all at the same step.

    A signal may reach one process alone, or each at another step, and all must stop after the same one. Each step
    is followed by one all-reduce of a number per device, which is read when the next one is under way: it delays
    the stop by a step and makes no step wait for the host.

    Args:
        mesh: all devices.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._sharding = batch_sharding(mesh)
        self._any = jax.jit(lambda votes: votes.max(), out_shardings=replicated(mesh))
        self._before: jax.Array | None = None

    def __call__(self, requested: bool) -> bool:
        """Casts this process's vote; whether any process had voted to stop one call before (with one process: now)."""
        if count() == 1:
            return requested
        votes = np.full(jax.local_device_count(), requested, np.int32)
        before, self._before = self._before, self._any(jax.make_array_from_process_local_data(self._sharding, votes))
        return before is not None and bool(before)

    def last(self, requested: bool) -> bool:
        """As a call, but waits for the votes of all: there is no step after this one."""
        self(requested)
        return self(requested)
