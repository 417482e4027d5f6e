"""Checks a dataset: `python -m rgbd_reid_jax.data.check NAME[/CONFIG] [--sheet=PNG] [--json]`.

Counts, what the build found in the files, what is wrong with the records, and which evaluation rule would leave which
queries nothing to find. A dataset that is not there yet is built first, from `--manual_dir`. docs/datasets.md.

Exit status: 0, 1 when something would stop training or make numbers wrong (the lines that start with `error`), 2 for
input that cannot be used, 130 when interrupted.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rgbd_reid_jax.core.progress import Progress, say
from rgbd_reid_jax.data import command, contact_sheet
from rgbd_reid_jax.data.inspection import Split, look_at
from rgbd_reid_jax.data.problems import ERROR, Problem, find_problems, rule_counts
from tfds_builders.schema import RECORDING_TYPES

_STAGE = "check"
_SHOWN_NAMES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command.status_of(lambda: _run(arguments), "nothing was written")


def _run(arguments: Sequence[str] | None) -> int:
    parser = command.DatasetParser("python -m rgbd_reid_jax.data.check", "Checks a dataset; docs/datasets.md.")
    parser.add_argument("--sheet", default="", metavar="PNG", help="write a picture of aligned colour and depth")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and all else to standard error")
    options = command.arguments_of(parser, arguments)
    sheet = command.writable("--sheet", options.sheet) if options.sheet else None
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        builder = command.opened(options)
        splits = looked_at(builder)
        content = checked(builder, splits)
        if sheet:
            contact_sheet.write(sheet, splits)
            say(_STAGE, f"wrote {sheet}")
    print(json.dumps(content) if options.json else "\n".join(_readable(content, options)))
    return 1 if content["verdict"] == ERROR else 0


def looked_at(builder: Any) -> dict[str, Split]:
    """The splits of a dataset, every record looked at."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    total, done = sum(split.num_examples for split in builder.info.splits.values()), 0
    progress = Progress(_STAGE, total, unit="frame", items="frames")
    found = {}
    for name in builder.info.splits:
        source = builder.as_data_source(name, deserialize_method=raw)
        found[name] = look_at(name, source, lambda count, before=done: progress.update(before + count))
        done += len(source)
    return found


def checked(builder: Any, splits: Mapping[str, Split]) -> dict[str, Any]:
    """What is to be said of a dataset, as JSON content; docs/datasets.md describes it."""
    metadata = builder.info.metadata or {}
    problems = find_problems(splits, metadata.get("findings", []))
    levels = [problem.level for problem in problems]
    return {
        "dataset": builder.info.full_name,
        "folder": str(builder.data_path),
        "splits": {name: _counts(split) for name, split in splits.items()},
        "rules": rule_counts(splits),
        "problems": [dataclasses.asdict(problem) for problem in problems],
        "verdict": min(levels) if levels else "ok",  # "error" comes before "warning"
    }


def _counts(split: Split) -> dict[str, Any]:
    """Numbers of one split."""
    labels = split.labels
    _, frames = np.unique(labels["person_id"], return_counts=True)
    depths = [seen.person_mm for seen in split.seen if seen.person_mm]
    types = {str(RECORDING_TYPES.get(code, code)): count for code, count in _tally(labels["recording_type"]).items()}
    return {
        "frames": len(split.seen),
        "rgb": int(split.recorded("rgb").sum()),
        "depth": int(split.recorded("depth").sum()),
        "pairs": int((split.recorded("rgb") & split.recorded("depth")).sum()),
        "people": len(frames),
        "frames_per_person": [int(frames.min()), float(np.median(frames)), int(frames.max())],
        "people_with_one_frame": int((frames == 1).sum()),
        "recordings": len(np.unique(labels["recording_id"])),
        "cameras": {str(camera): count for camera, count in _tally(labels["camera_id"]).items()},
        "recording_types": types,
        "person_depth_m": [round(one / 1000, 2) for one in np.quantile(depths, (0, 0.5, 1)).tolist()] if depths else [],
    }


def _tally(values: np.ndarray) -> dict[int, int]:
    return dict(zip(*(column.tolist() for column in np.unique(values, return_counts=True)), strict=True))


def _readable(content: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """The lines for a reader."""
    lines = [f"{content['dataset']} in {content['folder']}", ""]
    lines += _aligned(_count_rows(content["splits"]))
    lines += ["", "queries that a rule leaves nothing to find, of all; they are skipped"]
    lines += _aligned(_rule_rows(content["rules"]))
    lines += _emptied_persons(content["rules"])
    lines.append("")
    for problem in content["problems"]:
        lines += _problem_lines(Problem(**problem))
    counts = collections.Counter(problem["level"] for problem in content["problems"])
    if content["verdict"] == ERROR:
        lines.append(f"verdict: error; {counts[ERROR]} of the above would stop training or make numbers wrong")
    else:
        number = counts.total()
        warned = f", with {number} warning{'s' if number > 1 else ''} to judge" if number else ""
        lines.append(f"verdict: {content['verdict']}; nothing stands against training{warned}")
        paired = all(problem["kind"] != "unpaired_training" for problem in content["problems"])
        lines.append(f"next: {command.training_command_line(options, paired=paired)}")
    return lines


def _count_rows(splits: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = [["split", "people", "frames", "rgb", "depth", "pairs", "recordings", "frames per person", "person at"]]
    for name, of in splits.items():
        low, median, high = of["frames_per_person"]
        depths = "{} .. {} .. {} m".format(*of["person_depth_m"]) if of["person_depth_m"] else "unknown"
        numbers = [str(of[key]) for key in ("people", "frames", "rgb", "depth", "pairs", "recordings")]
        rows.append([name, *numbers, f"{low} .. {median:g} .. {high}", depths])
    rows.append([])
    for name, of in splits.items():
        cameras = ", ".join(f"camera {camera}: {count}" for camera, count in of["cameras"].items())
        types = ", ".join(f"{kind}: {count}" for kind, count in of["recording_types"].items())
        rows.append([name, f"{cameras}; {types}"])
    return rows


def _rule_rows(rules: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> list[list[str]]:
    """A header and one row per split and direction; directions that agree share a row."""
    rows: list[list[str]] = []
    for split, directions in rules.items():
        cells = {direction: [_share(found) for found in by_rule.values()] for direction, by_rule in directions.items()}
        names = list(next(iter(directions.values())))
        rows = rows or [["split", "direction", *names]]
        if len({tuple(row) for row in cells.values()}) == 1:
            cells = {"all": next(iter(cells.values()))}
        rows += [[split, direction, *row] for direction, row in cells.items()]
    return rows


def _share(found: Mapping[str, Any]) -> str:
    whole = " (all)" if found["emptied"] == found["queries"] else ""
    return f"{found['emptied']} of {found['queries']}{whole}"


def _emptied_persons(rules: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> list[str]:
    """Example persons of partly emptied galleries."""
    by_rule: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for split, directions in rules.items():
        for of_direction in directions.values():
            for rule, found in of_direction.items():
                if found["emptied"] < found["queries"]:
                    by_rule[split, rule] |= set(found["persons"])
    return [
        f"  {split}, {rule}: queries of {_listed([f'person {one}' for one in sorted(persons)])}"
        for (split, rule), persons in by_rule.items()
        if persons
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _problem_lines(problem: Problem) -> list[str]:
    lines = [f"{problem.level:<8} {problem.kind}: {problem.words}"]
    lines += [f"           {name}" for name in problem.names[:_SHOWN_NAMES]]
    if len(problem.names) > _SHOWN_NAMES:
        lines.append(f"           and {len(problem.names) - _SHOWN_NAMES} more; --json lists all")
    return lines


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as columns of equal width, two spaces between them; a row of two cells is free text after the first."""
    rows = list(rows)
    table = [row for row in rows if len(row) > 2]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows]
    return ["  " + "  ".join(cells).rstrip() if cells else "" for cells in padded]


if __name__ == "__main__":
    sys.exit(main())
