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

from rgbd_reid_jax.core.command import writable
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.core.progress import Progress, say
from rgbd_reid_jax.data import command, contact_sheet
from rgbd_reid_jax.data.inspection import Split, look_at
from rgbd_reid_jax.data.problems import ERROR, Problem, find_problems, rule_counts
from tfds_builders.schema import RECORDING_TYPES

_STAGE = "check"
_NAMES = {"person": "people", "camera": "cameras"}  # what a builder's metadata calls the names behind the numbers
_SHOWN_NAMES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command.status_of(lambda: _run(arguments), "run the same command to go on")


def _run(arguments: Sequence[str] | None) -> int:
    parser = command.DatasetParser("python -m rgbd_reid_jax.data.check", "Checks a dataset; docs/datasets.md.")
    parser.add_argument("--sheet", default="", metavar="PNG", help="write a picture of aligned colour and depth")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and all else to standard error")
    options = command.arguments_of(parser, arguments)
    if options.sheet and not options.sheet.lower().endswith(".png"):
        raise InputError(f"--sheet={options.sheet}: the picture is a PNG; give a name that ends in .png")
    sheet = writable("--sheet", options.sheet) if options.sheet else None
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        builder = command.opened(options)
        splits = looked_at(builder)
        content = checked(builder, splits)
        content["next"] = _next(content, options, splits)
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
        "person_mask": contact_sheet.has_person_mask(metadata),
        "names": {owner: _names(metadata.get(key)) for owner, key in _NAMES.items()},
        "splits": {name: _counts(split) for name, split in splits.items()},
        "rules": rule_counts(splits),
        "problems": [dataclasses.asdict(problem) for problem in problems],
        "verdict": min(levels) if levels else "ok",  # "error" comes before "warning"
    }


def _next(content: Mapping[str, Any], options: argparse.Namespace, splits: Mapping[str, Split]) -> str:
    """The command that trains on the dataset; empty where something stands against it."""
    if content["verdict"] == ERROR:
        return ""
    paired = all(problem["kind"] != "unpaired_training" for problem in content["problems"])
    return command.training_command_line(options, splits["train"].labels, content["rules"], paired=paired)


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
        "cameras": _by_owner(split, "camera_id"),
        "persons": _by_owner(split, "person_id"),
        "recording_types": types,
        "person_depth_m": [round(one / 1000, 2) for one in np.quantile(depths, (0, 0.5, 1)).tolist()] if depths else [],
    }


def _by_owner(split: Split, owner: str) -> dict[str, dict[str, int]]:
    """Images of each modality, and pairs, by the values of a label."""
    there = {"rgb": split.recorded("rgb"), "depth": split.recorded("depth")}
    there["pairs"] = there["rgb"] & there["depth"]
    owners = split.labels[owner]
    return {
        str(one): {name: int(chosen[owners == one].sum()) for name, chosen in there.items()}
        for one in np.unique(owners)
    }


def _names(found: Mapping[str, str] | Sequence[str] | None) -> dict[str, str]:
    """Names by number, of a mapping or a list of them."""
    items = found.items() if isinstance(found, Mapping) else enumerate(found or ())
    return {str(number): name for number, name in items}


def _called(content: Mapping[str, Any], owner: str, number: int | str) -> str:
    name = content["names"][owner].get(str(number))
    return f"{owner} {number}" + (f" ({name})" if name and name != str(number) else "")


def _tally(values: np.ndarray) -> dict[int, int]:
    return dict(zip(*(column.tolist() for column in np.unique(values, return_counts=True)), strict=True))


def _readable(content: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """The lines for a reader."""
    lines = [f"{content['dataset']} in {content['folder']}", ""]
    lines += _aligned(_count_rows(content))
    lines += ["", "queries that a rule leaves nothing to find, of all; they are skipped"]
    lines += _aligned(_rule_rows(content["rules"]))
    lines += _emptied(content)
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
        lines.append(f"next: {content['next']}")
    return lines


def _count_rows(content: Mapping[str, Any]) -> list[list[str]]:
    splits = content["splits"]
    rows = [["split", "people", "frames", "rgb", "depth", "pairs", "recordings", "frames per person", "person at"]]
    for name, of in splits.items():
        low, median, high = of["frames_per_person"]
        depths = "{} .. {} .. {} m".format(*of["person_depth_m"]) if of["person_depth_m"] else "unknown"
        if not content["person_mask"]:
            depths = f"unknown (no person mask; whole images {depths})"
        numbers = [str(of[key]) for key in ("people", "frames", "rgb", "depth", "pairs", "recordings")]
        rows.append([name, *numbers, f"{low} .. {median:g} .. {high}", depths])
    rows.append([])
    for name, of in splits.items():
        cameras = "; ".join(
            f"{_called(content, 'camera', camera)}: {count['rgb']} rgb, {count['depth']} depth"
            for camera, count in of["cameras"].items()
        )
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


def _emptied(content: Mapping[str, Any]) -> list[str]:
    """Example queries of partly emptied galleries; directions that skip the same ones share a line."""
    by_queries: dict[tuple[str, str, tuple[str, ...]], list[str]] = collections.defaultdict(list)
    persons: dict[tuple[str, str, tuple[str, ...]], set[int]] = collections.defaultdict(set)
    for split, directions in content["rules"].items():
        for direction, of_direction in directions.items():
            for rule, found in of_direction.items():
                if 0 < found["emptied"] < found["queries"]:
                    key = split, rule, tuple(found["names"])
                    by_queries[key].append(direction)
                    persons[key] |= set(found["persons"])
    lines = []
    for (split, rule, names), directions in by_queries.items():
        where = "" if len(directions) == len(content["rules"][split]) else f" {' '.join(directions)}"
        whose = _listed([_called(content, "person", one) for one in sorted(persons[split, rule, names])])
        lines.append(f"  {split}{where}, {rule}: queries of {whose}: {_listed(names)}")
    return lines


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
