"""Several runs side by side: `python -m rgbd_reid_jax.reporting.summary runs/*`.

Prints a Markdown table with a row per method and direction: mean and range of mAP and rank-1 over the
runs, the mAP of people who kept and who changed their clothes, and chance.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.reporting.table import DIRECTION_WORDS

_HEAD = (
    "method",
    "query -> gallery",
    "runs",
    "mAP",
    "rank-1",
    "mAP, same clothes",
    "mAP, changed clothes",
    "chance mAP",
)


def _spread(values: Sequence[float]) -> str:
    """Mean and range of fractions, in percent."""
    mean = 100 * sum(values) / len(values)
    return f"{mean:.1f} ({100 * min(values):.1f} .. {100 * max(values):.1f})"


def _clothes(runs: Sequence[dict[str, Any]], direction: str, group: str) -> str:
    values = [run["clothes"][direction][group]["mAP"] for run in runs if group in run["clothes"][direction]]
    return _spread(values) if values else "-"


def summary(runs: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of runs.

    Args:
        runs: contents of `results.json` files.

    Raises:
        InputError: none, or of several protocols, which cannot be compared.
    """
    protocols = sorted({run["protocol"] for run in runs})
    if len(protocols) != 1:
        raise InputError(f"runs of {len(protocols)} protocols ({', '.join(protocols)}); give runs of one protocol")
    rows = [_HEAD, ("---",) * len(_HEAD)]
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        for direction, words in DIRECTION_WORDS.items():
            scores = [run["results"][direction] for run in mine]
            rows.append(
                (
                    method,
                    words,
                    str(len(mine)),
                    _spread([score["mAP"] for score in scores]),
                    _spread([score["rank1"] for score in scores]),
                    _clothes(mine, direction, "same_clothes"),
                    _clothes(mine, direction, "changed_clothes"),
                    f"{100 * sum(run['chance'][direction]['mAP'] for run in mine) / len(mine):.1f}",
                )
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(folders: Sequence[str]) -> int:
    """The command; returns its exit status."""
    try:
        print(summary([files.read_json(pathlib.Path(folder) / "results.json") for folder in folders]))
    except (InputError, FileNotFoundError, KeyError) as error:
        print(f"error: {error!s}; give workdirs of runs whose evaluation stage is done", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
