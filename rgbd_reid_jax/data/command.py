"""What the commands on datasets share: how a dataset is named, one-line errors, exit statuses."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rgbd_reid_jax.core.command import Parser, nobody_reads
from rgbd_reid_jax.core.errors import InputError, disk_full
from rgbd_reid_jax.core.signals import interrupts_kept
from rgbd_reid_jax.data import dataset

if TYPE_CHECKING:
    from rgbd_reid_jax.data import recipe

_INTERRUPTED, _UNUSABLE = 130, 2


class DatasetParser(Parser):
    """Takes the arguments that name a dataset.

    Args:
        command: as it is typed, "python -m ...".
        description: one line.
    """

    def __init__(self, command: str, description: str):
        super().__init__(command, description=description)
        add = self.add_argument
        add("dataset", nargs="?", metavar="NAME[/CONFIG]", help=f"one of {', '.join(dataset.DATASETS)}, and its config")
        add("--manual_dir", default="", metavar="DIR", help="your own files of the dataset; needed to build it")
        add("--data_dir", default="", metavar="DIR", help="where datasets lie: $TFDS_DATA_DIR or ~/tensorflow_datasets")
        add("--knobs", default="", metavar="A=1,B=2", help="changes to the config; a dataset of its own")
        add("--workers", type=int, default=0, metavar="N", help="processes that build (default: chosen by size)")


def opened(options: argparse.Namespace) -> Any:
    """The TFDS builder of the dataset that the arguments name, built where it was not.

    Raises:
        InputError: there is no such dataset, config or knob, or it cannot be built.
    """
    if not options.dataset:
        raise InputError(f"NAME[/CONFIG] is missing; datasets are: {', '.join(dataset.DATASETS)}")
    if options.workers < 0:
        raise InputError(f"--workers={options.workers} must be at least 0")
    name, _, config = options.dataset.partition("/")
    config = config or dataset.config_names(name)[0]
    options.dataset = f"{name}/{config}"  # so that the next command says which config this was
    knobs = dataset.parse_knobs(options.knobs)
    return dataset.open_dataset(name, config, knobs, options.data_dir, options.manual_dir, workers=options.workers)


def command_line(module: str, options: argparse.Namespace, *more: str) -> str:
    """The command line of another command of these on the same dataset."""
    given = [f"--{name}={getattr(options, name)}" for name in ("data_dir", "knobs") if getattr(options, name)]
    return shlex.join(["python", "-m", f"rgbd_reid_jax.data.{module}", options.dataset, *given, *more])


def training_command_line(
    options: argparse.Namespace, labels: Mapping[str, np.ndarray], rules: "recipe.Rules", *, paired: bool
) -> str:
    """The command line that trains on the dataset; distillation, which needs pairs, or one network for both images.

    Args:
        options: name the dataset.
        labels: of its training split, int [N] by name.
        rules: as `problems.rule_counts` gives them.
        paired: each training frame has both images.
    """
    from rgbd_reid_jax.data import recipe  # it loads JAX, which a build does without

    given = [f"--config.dataset.{name}={getattr(options, name)}" for name in ("data_dir", "knobs")]
    given = [one for one in given if not one.endswith("=")]
    file = f"configs/{'distill' if paired else 'one_stream'}.py"
    wanted = recipe.content(file, options.dataset)
    if not paired:
        given.append("--config.training.baseline.sampling.name=pk_cross_modal")
        if wanted:
            wanted["training"]["baseline"]["sampling"]["name"] = "pk_cross_modal"
    if wanted:
        given += recipe.fitting_flags(wanted, labels, rules)
    workdir = f"--workdir=runs/{options.dataset.partition('/')[0]}"
    return shlex.join(["python", "-m", "rgbd_reid_jax.main", f"--config={file}:{options.dataset}", *given, workdir])


def status_of(command: Callable[[], int], when_interrupted: str) -> int:
    """The exit status of a command: its own, 2 for input that cannot be used, 130 or 141 as `print_result` has them.

    Args:
        command: gives its exit status.
        when_interrupted: what to tell the user then.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with interrupts_kept():
            status = command()
        sys.stdout.flush()
        return status
    except InputError as error:
        return _complain(f"error: {error}", _UNUSABLE)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {when_interrupted}", _INTERRUPTED)
    except BrokenPipeError:
        return nobody_reads()
    except OSError as error:
        where = disk_full(error)
        if where is not None:
            return _complain(f"error: the disk is full{where}; free space and run the same command again", _UNUSABLE)
        if not error.filename:
            raise
        return _complain(f"error: {error.filename}: {error.strerror}; mend it or name another place", _UNUSABLE)


def _complain(text: str, status: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return status


def arguments_of(parser: DatasetParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; a slash at its end or a version do no harm to the dataset's name."""
    options = parser.parse_args(arguments)
    if options.dataset:
        options.dataset = "/".join(options.dataset.strip("/").split("/")[:2])
    return options
