"""Capacity planning without the hardware.

    python -m rgbd_reid_jax.plan --config=configs/distill.py:biwi --topology=v5e:16x16 --batch_per_chip=64

Compiles the training step that a run would take on a TPU slice (extra `tpu`; no TPU is needed) or on this machine's
devices, and prints what it needs: memory, FLOPs, collectives, and how long a step takes at least (docs/planning.md).
Plans go to standard output, all else to standard error.

Exit status: 0, 2 for input that cannot be used (one line says what and how to mend it), 130 when interrupted, 141 when
the reader of its output has left.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rgbd_reid_jax.core import compile_cache
from rgbd_reid_jax.core.command import Parser, print_result
from rgbd_reid_jax.core.errors import InputError

SCHEMA = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return print_result(lambda: _run(*_options(arguments)), "nothing was printed")


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it overrides the configuration.

    Raises:
        InputError: a flag is missing, unknown, or has a value that it cannot take.
    """
    parser = Parser(
        "python -m rgbd_reid_jax.plan",
        description="Capacity planning without the hardware; docs/planning.md.",
        epilog="--config.x.y=z changes the configuration as in rgbd_reid_jax.main.",
    )
    add = parser.add_argument
    add("--config", metavar="FILE[:ARGUMENT]", help="configuration of the run")
    add("--topology", default="attached", metavar="NAME,...", help="v5e:16x16, v4:4x4x4, ..., or attached (default)")
    add("--stage", default="", metavar="NAME,...", help="training stages (default: all of the configuration's)")
    add("--batch_per_chip", type=_positive, default=0, metavar="N", help="rows a chip in place of the batch_size")
    add("--identities", type=_positive, default=0, metavar="N", help="training people (default: the dataset's)")
    add("--frames", type=_positive, default=0, metavar="N", help="training frames (default: the dataset's)")
    text = "look for the largest batch that fits, by some more compilations (default true)"
    add("--largest_batch", type=_truth, default=True, metavar="BOOL", help=text)
    text = "give up a try of that search after N minutes, for slices that are not there (default 20)"
    add("--try_minutes", type=_positive, default=20, metavar="N", help=text)
    add("--json", action="store_true", help="one JSON object in place of the text")
    options, rest = parser.parse_known_args(arguments)
    for index, word in enumerate(rest):
        value = index > 0 and not word.startswith("-") and "=" not in rest[index - 1]
        if not (word.startswith("--config.") or value):
            parser.error(f"unrecognized argument {word}")
    if not options.config:
        parser.error("--config is missing")
    return options, rest


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")


def _run(options: argparse.Namespace, overrides: Sequence[str]) -> str:
    """The plans as text."""
    topologies = options.topology.split(",")
    if topologies == ["attached"]:
        compile_cache.use(os.environ)
    else:
        os.environ[compile_cache.VARIABLE] = ""  # programs for devices that are not there cannot be read again
    if "attached" not in topologies:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is run: leave this machine's accelerators alone
    from rgbd_reid_jax import cli
    from rgbd_reid_jax.planning.plan import Planner, as_json, make_plans
    from rgbd_reid_jax.planning.report import readable
    from rgbd_reid_jax.stages.settings import parse_settings

    settings = parse_settings(cli.configuration([f"--config={options.config}", *overrides]))
    known = [stage for stage in settings.stages if stage in settings.training]
    stages = options.stage.split(",") if options.stage else known
    for stage in stages:
        if stage not in known:
            raise InputError(f"--stage={stage} is no training stage of this config; it has: {', '.join(known)}")
    planner = Planner(
        settings,
        identities=options.identities,
        frames=options.frames,
        batch_per_chip=options.batch_per_chip,
        look_for_largest=options.largest_batch,
        minutes=options.try_minutes,
    )
    plans = make_plans(planner, stages, topologies)
    if options.json:
        return json.dumps({"schema": SCHEMA, "plans": [as_json(plan) for plan in plans]}, indent=2)
    return readable(plans)


if __name__ == "__main__":
    sys.exit(main())
