"""What a sweep's rows say: entries of `results.json`, and the sweep's part of `results.md` in Markdown."""

import pathlib
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from rgbd_reid_jax.reporting.table import DIRECTION_WORDS, percent
from rgbd_reid_jax.sweeps.plan import Sweep
from rgbd_reid_jax.sweeps.rows import Row
from rgbd_reid_jax.sweeps.statistics import Interval, Rows, differences, interval, of_method, reference

RESULTS, PAGE, IMAGES = "results.json", "results.md", "images"
_AFTER_TRAINING = ("evaluation", "export", "report")
_SCORES = {"mAP": "mAP", "rank1": "Rank-1, the share of queries whose nearest gallery image is of the same person"}
_CLOTHES = {"same_clothes": "same clothes", "changed_clothes": "changed clothes"}


def entries(sweep: Sweep, rows: Rows) -> list[dict[str, Any]]:
    """One entry for each method that has rows, and direction.

    Args:
        sweep: methods and directions.
        rows: those of the sweep.

    Returns:
        [{"sweep", "method", "direction", "mAP": {"mean", "low", "high"}, "rank1": likewise, "n", "chance": {"mAP",
        "rank1"}, "clothes": {"same_clothes": {"mAP": likewise}, "changed_clothes": ..}, "minutes"}], fractions of 1;
        "minutes" is the median over runs of what all stages took.
    """
    found = []
    for method in sweep.methods:
        mine = list(of_method(rows, method.name).values())
        for direction in sweep.directions if mine else ():
            scores = [row["results"][direction] for row in mine]
            chance = [row["chance"][direction] for row in mine]
            found.append(
                {
                    "sweep": sweep.name,
                    "method": method.name,
                    "direction": direction,
                    **{name: interval([one[name] for one in scores]) for name in ("mAP", "rank1")},
                    "n": len(mine),
                    "chance": {name: statistics.fmean(one[name] for one in chance) for name in ("mAP", "rank1")},
                    "clothes": _clothes(mine, direction),
                    "minutes": round(statistics.median(sum(row["seconds"].values()) for row in mine) / 60, 2),
                }
            )
    return found


def _clothes(rows: Sequence[Row], direction: str) -> dict[str, dict[str, Interval]]:
    """mAP of queries whose person kept or changed clothes, where rows have them."""
    found = {}
    for group in _CLOTHES:
        values = [row["clothes"].get(direction, {}).get(group, {}).get("mAP") for row in rows]
        values = [value for value in values if value is not None]
        if values:
            found[group] = {"mAP": interval(values)}
    return found


def markdown(sweep: Sweep, rows: Rows) -> str:
    """The sweep's tables, in the order in which one would ask for them.

    Args:
        sweep: what was asked for.
        rows: those of the sweep, one at least.
    """
    found = {(entry["method"], entry["direction"]): entry for entry in entries(sweep, rows)}
    methods = [method for method in sweep.methods if of_method(rows, method.name)]
    names = [method.name for method in methods]
    parts = [f"## {sweep.title}", _introduction(sweep, rows)]
    if sweep.cross:
        parts.append(f"![{sweep.title}: mAP of each run, mean and interval]({IMAGES}/{sweep.figure})")
    parts.append(_scores(sweep, names, found, "mAP"))
    parts.append("\n".join(f"- `{method.name}`: {method.note}" for method in methods if method.note))
    parts.append(_scores(sweep, names, found, "rank1"))
    parts.append(_clothes_table(sweep, names, found))
    parts.append(_differences_table(sweep, names, rows))
    parts.append(_times(names, rows))
    return "\n\n".join(part for part in parts if part)


def _introduction(sweep: Sweep, rows: Rows) -> str:
    runs = sorted({run for _, run in rows}, key=sweep.runs.index)
    data = len({run.knobs for run in runs})
    text = (
        f"{sweep.split.capitalize()} people of {sweep.data}, protocol `{sweep.protocol}`, percent: mean over n runs "
        "and, in brackets, the 95 % interval of that mean (Student's t with n - 1 degrees of freedom). "
        f"{len(runs)} run{'s' * (len(runs) != 1)} on {data} set{'s' * (data != 1)} of people."
    )
    if data < len(runs):
        text += (
            " Runs of one data seed share their people and are not independent: as statements about other people, the "
            "intervals are too narrow."
        )
    return text


def _scores(sweep: Sweep, names: Sequence[str], found: Mapping[tuple[str, str], Mapping[str, Any]], score: str) -> str:
    head = ["method", "n", *(DIRECTION_WORDS[direction] for direction in sweep.directions)]
    lines = [
        [
            name,
            str(found[name, sweep.directions[0]]["n"]),
            *(_percent(found[name, direction][score]) for direction in sweep.directions),
        ]
        for name in names
    ]
    chance = [
        percent(statistics.fmean(found[name, direction]["chance"][score] for name in names))
        for direction in sweep.directions
    ]
    return f"{_SCORES[score]}:\n\n{_table(head, [*lines, ['chance', '', *chance]])}"


def _clothes_table(sweep: Sweep, names: Sequence[str], found: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    columns = [(direction, group) for direction in sweep.cross for group in _CLOTHES]
    clothes = {
        (name, *column): found[name, column[0]]["clothes"].get(column[1]) for name in names for column in columns
    }
    if not any(clothes.values()):
        return ""
    head = ["method", *(f"{DIRECTION_WORDS[direction]}, {_CLOTHES[group]}" for direction, group in columns)]
    cells = {key: _percent(one["mAP"]) if one else "-" for key, one in clothes.items()}
    table = _table(head, [[name, *(cells[name, *column] for column in columns)] for name in names])
    return f"mAP of queries whose person wears the same clothes in the gallery, or others:\n\n{table}"


def _differences_table(sweep: Sweep, names: Sequence[str], rows: Rows) -> str:
    base = reference(sweep, rows) if sweep.cross else None
    if base is None:
        return ""
    sets: list[str] = sorted({run.knobs for _, run in rows})
    if len(sets) in (1, len({run for _, run in rows})):
        sets = []  # each would say what the others say, or one run alone
    lines = []
    for name in names:
        gains, count = differences(rows, name, base, sweep.cross)
        if name == base or not count:
            continue
        parts = [{key: row for key, row in rows.items() if key[1].knobs == knobs} for knobs in sets]
        means = [differences(part, name, base, sweep.cross)[0].get("mean") for part in parts]
        lines.append(
            [
                name,
                str(count),
                *(_points(gains[column]) for column in (*sweep.cross, "mean")),
                *(_points({"mean": one["mean"], "low": None, "high": None}) if one else "-" for one in means),
            ]
        )
    if not lines:
        return ""
    head = ["method", "n", *(DIRECTION_WORDS[direction] for direction in sweep.cross), "mean"]
    head += [f"mean, people of {knobs}" for knobs in sets]
    baselines = ", ".join(f"`{name}`" for name in sweep.baselines)
    return (
        f"Differences in mAP to `{base}`, points, run by run on the same people and seeds: mean and 95 % interval of "
        f"the paired difference. Of the baselines ({baselines}) it has the highest mAP across modalities on "
        f"validation people; test people had no say.\n\n{_table(head, lines)}"
    )


def _times(names: Sequence[str], rows: Rows) -> str:
    stages = list(dict.fromkeys(stage for row in rows.values() for stage in row["seconds"]))
    stages.sort(key=lambda stage: stage in _AFTER_TRAINING)
    lines = []
    for name in names:
        mine = [row["seconds"] for row in of_method(rows, name).values()]
        cells = [[one[stage] for one in mine if stage in one] for stage in stages]
        total = statistics.median(sum(one.values()) for one in mine)
        lines.append([name, _minutes(total), *(_minutes(statistics.median(one)) if one else "-" for one in cells)])
    machines = Counter(_machine(row["environment"]) for row in rows.values())
    where = "; ".join(f"{text} ({count} run{'s' * (count != 1)})" for text, count in machines.items())
    return (
        "Minutes per run, median, of all stages and of each; a stage that was taken from another run counts with the "
        "time that it took there. "
        f"{where}.\n\n{_table(['method', 'all', *stages], lines)}"
    )


def _machine(environment: Mapping[str, Any]) -> str:
    jobs = environment["jobs"]
    versions = f"jax {environment['jax']}, flax {environment['flax']}, Python {environment['python']}"
    machine = f"{environment['machine']}, {environment['devices']}"
    return f"{versions}, {machine}, {jobs} run{'s' * (jobs != 1)} at a time"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def _percent(one: Interval) -> str:
    if one["low"] is None:
        return percent(one["mean"])
    return f"{percent(one['mean'])} [{percent(one['low'])}, {percent(one['high'])}]"


def _points(one: Interval) -> str:
    mean, *bounds = (
        None if value is None else f"{100 * value:+.1f}" for value in (one["mean"], one["low"], one["high"])
    )
    return f"{mean} [{', '.join(map(str, bounds))}]" if one["low"] is not None else str(mean)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def merged(old: Sequence[Mapping[str, Any]], sweep: Sweep, rows: Rows) -> list[Mapping[str, Any]]:
    """The entries of `results.json` with this sweep's in the place of its older ones."""
    place = next((place for place, entry in enumerate(old) if entry.get("sweep") == sweep.name), len(old))
    others = [[entry for entry in part if entry.get("sweep") != sweep.name] for part in (old[:place], old[place:])]
    return [*others[0], *entries(sweep, rows), *others[1]]


def placed(page: str, name: str, part: str, path: pathlib.Path) -> str:
    """A page with `part` between the markers of a sweep; all else in it stays as it is.

    Args:
        page: text; where it lacks the markers they are added at its end.
        name: of the sweep.
        part: Markdown.
        path: of the page, for the message.

    Raises:
        InputError: there is one marker without the other, or more than one pair.
    """
    begin, end = (f"<!-- sweep:{name} {word} -->" for word in ("begin", "end"))
    block = f"{begin}\n{part}\n{end}"
    if begin not in page and end not in page:
        return f"{page.rstrip()}\n\n{block}\n" if page.strip() else f"{block}\n"
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if page.count(begin) != 1 or page.count(end) != 1 or not pattern.search(page):
        raise InputError(f"{path} must hold {begin} and after it {end}, each once; mend it or delete both")
    return pattern.sub(lambda _: block, page)


def check_page(folder: pathlib.Path, sweep: Sweep) -> None:
    """Raises InputError, before any work, where `write_tables` could not place the tables."""
    path = folder / PAGE
    if path.exists():
        placed(path.read_text(encoding="utf-8"), sweep.name, "", path)
    _entries(folder / RESULTS)


def write_tables(folder: pathlib.Path, sweep: Sweep, rows: Rows) -> None:
    """Writes a sweep's part of `results.json` and `results.md`.

    Raises:
        InputError: one of the two holds something else.
    """
    results, page = folder / RESULTS, folder / PAGE
    old = _entries(results)
    text = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
    files.write_text(page, placed(text, sweep.name, markdown(sweep, rows), page))
    files.write_json(results, merged(old, sweep, rows))


def _entries(path: pathlib.Path) -> list[dict[str, Any]]:
    """What `results.json` holds, nothing where it is missing."""
    found = files.read_json(path) if path.exists() else []
    if not isinstance(found, list):
        raise InputError(f"{path} holds no list of results; choose another --output")
    return found
