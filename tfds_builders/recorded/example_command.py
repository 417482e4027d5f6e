"""The command of the example trees: `python -m tfds_builders.NAME.example_tree --output=DIR [--layout=...]`."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rgbd_reid_jax.core.errors import InputError


def run(
    name: str,
    layouts: Mapping[str, Callable[[pathlib.Path], Sequence[Any]]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Writes the tree that the arguments ask for; returns the exit status.

    Args:
        name: of the dataset.
        layouts: by the name of a layout what writes it below a folder and returns its frames; the default first.
        arguments: the command line without the command; that of the process when None.
    """
    module = f"python -m tfds_builders.{name}.example_tree"
    parser = argparse.ArgumentParser(module, description=f"Writes a tiny tree of drawn figures, as {name} reads it.")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to write to; new or empty")
    if len(layouts) > 1:
        parser.add_argument("--layout", choices=list(layouts), help=f"default: {next(iter(layouts))}")
    parser.set_defaults(layout=next(iter(layouts)))
    given = parser.parse_args(arguments)
    try:
        if given.output.exists() and (not given.output.is_dir() or any(given.output.iterdir())):
            raise InputError(f"--output={given.output} is no empty folder; give a new one")
        frames = layouts[given.layout](given.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --output={given.output} cannot be written ({error.strerror}); give another", file=sys.stderr)
        return 2
    print(f"{len(frames)} frames in {given.output}")
    return 0
