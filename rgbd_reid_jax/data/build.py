"""Builds a dataset: `python -m rgbd_reid_jax.data.build NAME[/CONFIG] --manual_dir=DIR`.

One that is there already is verified and left as it is. `--list` shows all datasets with their configs and knobs,
`NAME --list` those of one. docs/datasets.md says what each needs.

Exit status: 0 when the dataset is there, 2 for input that cannot be used (one line says what and how to mend it), 130
when interrupted (the same command goes on).
"""

import argparse
import collections
import sys
from collections.abc import Sequence
from typing import Any

from rgbd_reid_jax.core.progress import say
from rgbd_reid_jax.data import command, dataset
from tfds_builders.knobs import knob_fields

_STAGE = "dataset"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command.status_of(lambda: _run(arguments), "finished parts are kept, run the same command to go on")


def _run(arguments: Sequence[str] | None) -> int:
    parser = command.DatasetParser("python -m rgbd_reid_jax.data.build", "Builds a dataset; docs/datasets.md.")
    parser.add_argument("--list", action="store_true", help="show datasets, their configs and their knobs")
    options = command.arguments_of(parser, arguments)
    if options.list:
        names = [options.dataset.partition("/")[0]] if options.dataset else dataset.DATASETS
        print("\n\n".join(_described(name) for name in names))
        return 0
    builder = command.opened(options)
    _summarise(builder, options)
    return 0


def _summarise(builder: Any, options: argparse.Namespace) -> None:
    """Says what there is now, what its files were remarkable for, and what to do next."""
    counts = ", ".join(f"{split.num_examples} {name}" for name, split in builder.info.splits.items())
    say(_STAGE, f"{builder.info.full_name}: {counts} frames in {builder.data_path}")
    findings = (builder.info.metadata or {}).get("findings", [])
    for kind, count in collections.Counter(finding["kind"] for finding in findings).items():
        first = next(finding for finding in findings if finding["kind"] == kind)
        say(_STAGE, f"found {count} x {kind}, such as {first['file']}: {first['words']}")
    say(_STAGE, f"next, look at it: {command.command_line('check', options, '--sheet=sheet.png')}")


def _described(name: str) -> str:
    """A dataset with its configs and knobs, for a reader."""
    configs = {config.name: config for config in dataset.builder_module(name).Builder.BUILDER_CONFIGS}
    first, *_ = names = dataset.config_names(name)
    lines = [name, "  configs"]
    lines += [f"    {one:<16}{configs[one].description}{' Default.' if one == first else ''}" for one in names]
    lines.append(f"  knobs, with the values of {first}")
    for knob, field in knob_fields(configs[first]).items():
        about, value = field.metadata, getattr(configs[first], knob)
        span = ", ".join(map(str, about.get("choices", ())))
        span = f"{about['low']:g} .. {about['high']:g}" if "low" in about else span
        lines.append(f"    {knob}={about.get('shown', repr(value))}  {span + ': ' if span else ''}{about['doc']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
