"""What a sweep file says: methods, runs, and in which order they are run.

A sweep is every method on every run; a run is a pair of a network seed and a data seed. The order is run-major, so that
a sweep that is cut off early has compared all methods on some runs rather than some methods on all.
"""

import dataclasses
import difflib
import hashlib
import json
import pathlib
import re
import runpy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rgbd_reid_jax import cli
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS
from rgbd_reid_jax.stages.workdir import computed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # names become folders, and stand in comma-separated lists
_OWN_STAGES = "stages"
_LEFT_OUT = ("export", "report")  # a sweep trains and evaluates, unless a method's overrides give `stages`
_SEEDS = ("seed", "dataset.knobs")


@dataclasses.dataclass(frozen=True)
class Run:
    """One pair of seeds.

    Attributes:
        seed: of the network, config.seed.
        knobs: of the data, config.dataset.knobs, such as "seed=1".
    """

    seed: int
    knobs: str = ""

    @property
    def label(self) -> str:
        """The name of its folders."""
        words = re.sub(r"[^A-Za-z0-9.+-]+", "_", self.knobs).strip("_")
        return f"seed{self.seed}" + (f"-{words}" if words else "")


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        name: in rows, tables and folders.
        config: configuration file, with its argument.
        overrides: values by dotted name, without "config.".
        reuse: methods whose trained stages it takes, in the same run, where they are the same.
        note: one line for the reader of the tables.
        digest: 12 hexadecimal digits of all that its configuration says, but for seeds and places.
        stages: those that are run.
    """

    name: str
    config: str
    overrides: Mapping[str, Any]
    reuse: tuple[str, ...]
    note: str
    digest: str = ""
    stages: tuple[str, ...] = ()

    def arguments(self, run: Run) -> list[str]:
        """The flags of `rgbd_reid_jax.main` that say what is computed."""
        values = {"seed": run.seed, "dataset.knobs": run.knobs, **self.overrides}
        return [f"--config={self.config}", *(f"--config.{name}={_text(value)}" for name, value in values.items())]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file's content, checked.

    Attributes:
        name: in rows and markers.
        title: the heading of its tables.
        methods: in the order of the file, which is that of the tables.
        runs: in the order in which they are run.
        directions: those that are told of.
        baselines: methods among which the reference of the differences is chosen.
        figure: file name of its figure.
        data: name and config of the dataset.
        protocol: by which test people are ranked, and whether recordings are.
        split: of the test people.
    """

    name: str
    title: str
    methods: tuple[Method, ...]
    runs: tuple[Run, ...]
    directions: tuple[str, ...]
    baselines: tuple[str, ...]
    figure: str
    data: str = ""
    protocol: str = ""
    split: str = ""

    @property
    def cross(self) -> tuple[str, ...]:
        """The directions from one modality to the other."""
        return tuple(name for name in self.directions if len(set(DIRECTIONS[name])) == 2)


@dataclasses.dataclass(frozen=True)
class Task:
    """One method on one run."""

    method: Method
    run: Run

    @property
    def label(self) -> str:
        """Both names."""
        return f"{self.method.name} {self.run.label}"

    def workdir(self, base: pathlib.Path) -> pathlib.Path:
        """Its workdir in the sweep's."""
        return base / self.method.name / self.run.label

    def log(self, base: pathlib.Path) -> pathlib.Path:
        """What its command printed."""
        return base / self.method.name / f"{self.run.label}.log"


def read_sweeps(paths: Sequence[str]) -> list[Sweep]:
    """`read_sweep` of each.

    Raises:
        InputError: one cannot be used, or two would write to one place.
    """
    sweeps = [read_sweep(path) for path in paths]
    for what, names in (("name", [one.name for one in sweeps]), ("figure", [one.figure for one in sweeps])):
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"--sweep: {names.count(name)} sweeps have the {what} {name!r}; give each its own")
    return sweeps


def read_sweep(path: str) -> Sweep:
    """The sweep of `FILE` or `FILE:ARGUMENT`, which defines `get_sweep()`; all configurations are read and checked.

    Raises:
        InputError: no such file, or something in it cannot be used; the message names it.
    """
    file, *argument = path.split(":", 1)
    if not pathlib.Path(file).is_file():
        raise InputError(f"--sweep={path}: {file} is no file; give a Python file that defines get_sweep()")
    try:
        get_sweep = runpy.run_path(file).get("get_sweep")
        content = get_sweep(*argument) if get_sweep else None
    except Exception as error:  # the file is Python: it can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--sweep={path}: {reason}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"--sweep={path} must define get_sweep() that returns a dict; docs/sweep.md describes it")
    try:
        return _resolved(_sweep(content))
    except InputError as error:
        raise InputError(f"--sweep={path}: {error}") from error


def tasks_of(sweep: Sweep, only: Collection[str] = ()) -> list[Task]:
    """All methods of the first run, then of the next; within a run a method comes after those that it reuses.

    Args:
        sweep: what to run.
        only: names of methods; empty for all.

    Raises:
        InputError: one of the names is unknown.
    """
    names = [method.name for method in sweep.methods]
    for name in only:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"--only: method {name!r} is not in the sweep; {hint}it has: {', '.join(names)}")
    methods = [method for method in _in_order(sweep.methods) if not only or method.name in only]
    return [Task(method, run) for run in sweep.runs for method in methods]


def _sweep(content: Mapping[str, Any]) -> Sweep:
    needed = {"name": str, "title": str, "methods": Sequence, "runs": Sequence, "directions": Sequence}
    optional = {"baselines": (Sequence, ()), "figure": (str, "results.png")}
    values = _fields(content, "the sweep", needed, optional)
    _check_name(values["name"], "the sweep's name")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+\.png", values["figure"]):
        raise InputError(f"figure={values['figure']!r} must be a file name that ends with .png")
    methods = tuple(_method(one) for one in values["methods"])
    runs = tuple(_run(one) for one in values["runs"])
    for what, names in (("methods", [one.name for one in methods]), ("runs", [one.label for one in runs])):
        if not names:
            raise InputError(f"{what} is empty; give at least one")
        _check_each_once(names, what)
    names = [one.name for one in methods]
    _check_known(values["directions"], list(DIRECTIONS), "directions")
    _check_known(values["baselines"], names, "baselines")
    for method in methods:
        _check_known(method.reuse, names, f"reuse of method {method.name!r}")
    _in_order(methods)
    if not values["directions"]:
        raise InputError(f"directions is empty; give some of: {', '.join(DIRECTIONS)}")
    directions, baselines = tuple(values["directions"]), tuple(values["baselines"])
    return Sweep(values["name"], values["title"], methods, runs, directions, baselines, values["figure"])


def _method(content: Any) -> Method:
    optional = {"overrides": (Mapping, {}), "reuse": (Sequence, ()), "note": (str, "")}
    values = _fields(content, "a method", {"name": str, "config": str}, optional)
    name = values["name"]
    _check_name(name, "a method's name")
    for field in _SEEDS:
        if field in values["overrides"]:
            raise InputError(f"method {name!r} overrides {field}, which the runs give; leave it out")
    return Method(name, values["config"], dict(values["overrides"]), tuple(values["reuse"]), values["note"])


def _run(content: Any) -> Run:
    return Run(**_fields(content, "a run", {"seed": int}, {"knobs": (str, "")}))


def _fields(content: Any, what: str, needed: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a dict whose keys and kinds are known; `optional` gives (kind, default)."""
    names = ", ".join([*needed, *optional])
    if not isinstance(content, Mapping):
        raise InputError(f"{what} must be a dict with {names}, not {content!r}")
    for name in content:
        if name not in needed and name not in optional:
            raise InputError(f"{what} has an unknown key {name!r}; known are: {names}")
    found = {}
    for name, kind in {**needed, **{name: kind for name, (kind, _) in optional.items()}}.items():
        if name not in content and name in needed:
            raise InputError(f"{what} lacks {name!r}: {dict(content)!r}")
        value = content[name] if name in content else optional[name][1]
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is Sequence and isinstance(value, str)):
            raise InputError(f"{name}={value!r} of {what} is no {kind.__name__.lower()}; docs/sweep.md has an example")
        found[name] = value
    return found


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{what} {name!r} must be letters, digits and _ . + - alone, as it becomes a folder's name")


def _check_each_once(names: Sequence[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{what} has {name!r} {names.count(name)} times; each must have a name of its own")


def _check_known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{what}: {name!r} is unknown; choose from: {', '.join(known)}")
    _check_each_once(names, what)


def _in_order(methods: Sequence[Method]) -> list[Method]:
    """The methods in their order, but each after those that it reuses.

    Raises:
        InputError: some reuse each other.
    """
    waiting, placed = list(methods), []
    while waiting:
        names = {one.name for one in placed}
        free = next((one for one in waiting if names.issuperset(one.reuse)), None)
        if free is None:
            raise InputError(f"methods {', '.join(one.name for one in waiting)} reuse each other in a circle; cut it")
        waiting.remove(free)
        placed.append(free)
    return placed


def _resolved(sweep: Sweep) -> Sweep:
    """The sweep with digests and stages, every configuration read and every run's seeds tried once.

    Raises:
        InputError: a configuration cannot be used, has no evaluation, or is ranked otherwise than the first one's.
    """
    methods, first = [], {}
    for method in sweep.methods:
        content = _content(method, sweep.runs[0])
        stages = tuple(content["stages"])
        if "evaluation" not in stages:
            raise InputError(f"method {method.name!r} has no evaluation among its stages ({', '.join(stages)}); add it")
        dataset, evaluation = content["dataset"], content["evaluation"]
        data = "/".join(word for word in (dataset["name"], dataset["config"]) if word)
        protocol = evaluation["protocol"] + " of recordings" * evaluation.get("multi_frame", False)
        told = {"data": data, "protocol": protocol, "split": evaluation["splits"][-1]}
        for name, value in (first := first or told).items():
            if told[name] != value:
                other = sweep.methods[0].name
                raise InputError(
                    f"method {method.name!r} has another {name} ({told[name]}) than {other!r} ({value}), so their "
                    "scores cannot be compared; give it a sweep of its own"
                )
        if _OWN_STAGES not in method.overrides:
            stages = tuple(stage for stage in stages if stage not in _LEFT_OUT)
        methods.append(dataclasses.replace(method, digest=digest(content), stages=stages))
    for run in sweep.runs[1:]:
        _content(sweep.methods[0], run)
    return dataclasses.replace(sweep, methods=tuple(methods), **first)


def _content(method: Method, run: Run) -> dict[str, Any]:
    try:
        return cli.configuration(method.arguments(run))
    except InputError as error:
        raise InputError(f"method {method.name!r}, run {run.label}: {error}") from error


def digest(content: Mapping[str, Any]) -> str:
    """What a method computes, in 12 hexadecimal digits.

    Args:
        content: a configuration's plain content. Seeds of network and data, where data are kept, and what changes
            rounding alone do not count.
    """
    kept = {name: value for name, value in computed(content).items() if name != "seed"}
    kept["dataset"] = {name: value for name, value in kept["dataset"].items() if name != "knobs"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, str):
        return value
    return repr(tuple(value)) if isinstance(value, list) else repr(value)
