"""Flags and configuration files: the only place that reads them."""

import contextlib
import difflib
import hashlib
import json
import os
import pathlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from rgbd_reid_jax.core import distributed
from rgbd_reid_jax.core.errors import InputError, Interrupted, OutOfMemory
from rgbd_reid_jax.evaluation.results import PACKAGES
from rgbd_reid_jax.planning import fitting
from rgbd_reid_jax.reporting.table import results_table
from rgbd_reid_jax.stages.checks import read_settings
from rgbd_reid_jax.stages.job import Job
from rgbd_reid_jax.stages.reuse import reuse_stages
from rgbd_reid_jax.stages.table import STAGES, check_devices, run_stages
from rgbd_reid_jax.stages.workdir import Workdir

INTERRUPTED, UNUSABLE = 130, 2


def _named_flags() -> flags.FlagValues:
    """The flags beside the configuration's overrides."""
    values = flags.FlagValues()
    for name, text in (
        ("config", "Configuration file, such as configs/distill.py or configs/distill.py:biwi."),
        ("workdir", "Folder of this run; the same command goes on in it."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_list("stages", None, f"Only these stages, of: {', '.join(STAGES)}.", flag_values=values)
    text = "Workdirs of other runs: training stages that are finished there, and are the same, are taken from them."
    flags.DEFINE_list("reuse", [], text, flag_values=values)
    text = "This process is one of several (docs/scaling.md); where it learns of the others."
    flags.DEFINE_enum("distributed", None, list(distributed.METHODS), text, flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=values)
    return values


def _parse(arguments: Sequence[str]) -> tuple[flags.FlagValues, ml_collections.ConfigDict]:
    """The flags, and the configuration with its overrides (empty when help is asked for).

    Raises:
        InputError: an unknown flag, configuration, override or value.
    """
    values = _named_flags()
    try:
        rest = values(list(arguments), known_only=True)[1:]
    except flags.Error as error:
        raise InputError(_one_line(error)) from error
    if values.help:
        return values, ml_collections.ConfigDict()
    for argument in rest:
        _check_flag(argument, list(values))
    if not values.config:
        raise InputError("--config is missing; say, for example, --config=configs/distill.py")
    if not values.workdir:
        raise InputError("--workdir is missing; say, for example, --workdir=runs/distill")
    config = _load(values.config)
    for argument in rest:
        _check_override(argument, config)
    argv = [arguments[0], *rest]
    overrides = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=overrides, sys_argv=argv)
    try:
        surplus = overrides(argv)[1:]
    except Exception as error:  # ml_collections raises many kinds for values that do not fit
        raise InputError(_one_line(error)) from error
    if surplus:
        raise InputError(f"argument {surplus[0]!r} is not a flag; flags look like --workdir=runs/distill")
    return values, config


def configuration(arguments: Sequence[str]) -> dict[str, Any]:
    """The plain content of a configuration with its overrides, checked as a run would check it.

    Args:
        arguments: `--config=FILE` and `--config.x.y=z`, without a program's name.

    Raises:
        InputError: as for a run.
    """
    _, config = _parse(["main", "--workdir=unused", *arguments])
    content = config.to_dict()
    read_settings(content, tuple(STAGES))
    return content


def _load(path: str) -> ml_collections.ConfigDict:
    """The configuration of `path` or `path:argument`.

    Raises:
        InputError: no such file, it gives no configuration, or it does not accept its argument.
    """
    file = path.partition(":")[0]
    if not pathlib.Path(file).is_file():
        raise InputError(f"config file {file} does not exist; look in configs/")
    try:
        get_config = runpy.run_path(file).get("get_config")
        config = get_config(*path.split(":", 1)[1:]) if get_config else None
    except Exception as error:  # the file is Python: it can raise anything
        raise InputError(f"--config={path}: {_last_line(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"config file {file} must define get_config() that returns a ConfigDict; look in configs/")
    return config


def _check_flag(argument: str, names: list[str]) -> None:
    """Raises InputError for a flag that is neither known nor an override."""
    name = argument.lstrip("-").partition("=")[0]
    if argument.startswith("-") and not name.startswith("config."):
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean --{close[0]}? " if close else ""
        raise InputError(f"flag --{name} is unknown; {hint}flags: {', '.join(f'--{one}' for one in names)}")


def _check_override(argument: str, config: ml_collections.ConfigDict) -> None:
    """Raises InputError for an override of a field that the configuration lacks."""
    if not argument.startswith("-"):
        return  # the value of the override before it, or refused by the second parse
    name = argument.lstrip("-").partition("=")[0]
    node: Any = config
    parts = name.split(".")[1:]
    for depth, part in enumerate(parts):
        fields = list(node) if isinstance(node, ml_collections.ConfigDict) else []
        if part not in fields:
            close = difflib.get_close_matches(part, fields, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            where = ".".join(["config", *parts[:depth]])
            raise InputError(f"override --{name}: {where} has no field {part!r}; {hint}it has: {', '.join(fields)}")
        node = node[part]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def run(arguments: Sequence[str]) -> int:
    """Runs what the command line asks for; returns the exit status."""
    try:
        values, config = _parse(arguments)
        if values.help:
            print(values.get_help())
            return 0
        _run(values, config.to_dict())
    except InputError as error:
        line = f"{distributed.sign()}error: {error}"
        distributed.leave(lambda: print(line, file=sys.stderr, flush=True))
        return UNUSABLE
    except Interrupted as stop:
        if distributed.is_first():
            print(stop, file=sys.stderr, flush=True)
        distributed.finish()
        return INTERRUPTED
    distributed.finish()
    return 0


def _run(values: flags.FlagValues, config: dict[str, Any]) -> None:
    """Runs the stages, then prints the results and where the report lies."""
    settings = read_settings(config, tuple(STAGES))
    stages = settings.stages if values.stages is None else values.stages
    for stage in stages or [""]:
        if stage not in settings.stages:
            raise InputError(f"--stages: {stage!r} is no stage of this config; it has: {', '.join(settings.stages)}")
    if values.distributed:
        distributed.start(values.distributed)
        distributed.check_same(_facts([config, list(stages), values.reuse]))
    with _voice(), Workdir(pathlib.Path(os.path.expanduser(values.workdir))) as workdir:
        job = Job(settings, workdir, config)
        check_devices(job, stages)
        workdir.claim(config)  # last, so that a command that was refused leaves the folder free
        if values.reuse:
            reuse_stages(job, [pathlib.Path(os.path.expanduser(folder)) for folder in values.reuse])
        try:
            run_stages(job, stages)
        except OutOfMemory as error:
            raise InputError(fitting.message(job, error)) from error
        distributed.on_first(lambda: _tell(workdir))


def _facts(command: Sequence[Any]) -> dict[str, str]:
    """What must be the same in all processes of a run, in few digits each."""
    plain = json.dumps(command, sort_keys=True, default=str)
    return {
        "configuration": hashlib.sha256(plain.encode()).hexdigest()[:12],
        "code": distributed.source_digest(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


@contextlib.contextmanager
def _voice() -> Iterator[None]:
    """Only process 0 tells how the work goes on."""
    if distributed.is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _tell(workdir: Workdir) -> None:
    if workdir.finished("evaluation"):
        print(results_table(workdir.read_results()))
    if workdir.finished("report"):
        print(f"report: {workdir.report}")
