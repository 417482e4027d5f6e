"""What is wrong with a dataset: from the records that were looked at to a list of problems with names.

An `error` would stop training or make its numbers wrong; a `warning` is for its owner to judge.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rgbd_reid_jax.data.inspection import NEAREST_MM, Split
from rgbd_reid_jax.metrics.embeddings import DIRECTIONS
from rgbd_reid_jax.metrics.galleries import emptied
from rgbd_reid_jax.metrics.protocols.passages import CAMERAS, compared
from rgbd_reid_jax.metrics.ranking import RULES
from tfds_builders.recorded.frames import KINDS, SPLITS
from tfds_builders.recorded.images import FARTHEST_MM

ERROR, WARNING = "error", "warning"
_OF_RECORDS = {  # kinds that one record shows by itself: (level, what it means)
    "undecodable": (ERROR, "images do not decode: training stops there"),
    "wrong_type": (ERROR, "images have another sample type or number of channels: training stops there"),
    "size_mismatch": (ERROR, "records have images of different sizes: colour and depth are not aligned"),
    "no_modality": (ERROR, "records have neither colour nor depth"),
    "no_depth": (ERROR, "depth images have no valid pixel: nothing can be learned from them"),
    "empty_mask": (WARNING, "masks have no person: relative depth is then taken from the whole image"),
    "depth_range": (WARNING, "records have implausible depths, or depths beyond what such cameras see"),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        level: `ERROR` or `WARNING`.
        kind: a word.
        words: one line: what, how often, and what follows.
        names: the files, records or persons that it concerns.
    """

    level: str
    kind: str
    words: str
    names: tuple[str, ...] = ()


def find_problems(splits: Mapping[str, Split], findings: Sequence[Mapping[str, str]]) -> list[Problem]:
    """All problems of a dataset, errors first.

    Args:
        splits: by name, from `inspection.look_at`.
        findings: what its build found, {"kind", "file", "words"} each.
    """
    found = [
        *_of_build(findings),
        *_of_records(splits.values()),
        *_sizes(splits.values()),
        *_unit(splits.values()),
        *_same_content(splits.values()),
        *_same_instants(splits.values()),
        *_people(splits),
        *_recordings(splits.values()),
        *_pairs(splits),
        *_rules(rule_counts(splits)),
    ]
    return sorted(found, key=lambda problem: problem.level)


def _of_build(findings: Sequence[Mapping[str, str]]) -> Iterable[Problem]:
    by_kind = collections.defaultdict(list)
    for finding in findings:
        by_kind[finding["kind"]].append(f"{finding['file']}: {finding['words']}")
    for kind, names in by_kind.items():
        meaning = KINDS.get(kind, kind)
        yield Problem(WARNING, kind, f"found by the build, {len(names)} x {meaning}", tuple(names))


def _of_records(splits: Iterable[Split]) -> Iterable[Problem]:
    names = collections.defaultdict(list)
    for split in splits:
        for row, seen in enumerate(split.seen):
            for kind, words in seen.faults:
                names[kind].append(f"{split.called(row)}: {words}")
    for kind, (level, meaning) in _OF_RECORDS.items():
        if kind in names:
            yield Problem(level, kind, f"{len(names[kind])} {meaning}", tuple(names[kind]))


def _sizes(splits: Iterable[Split]) -> Iterable[Problem]:
    rows = collections.defaultdict(list)
    for split in splits:
        for row, seen in enumerate(split.seen):
            if seen.size:
                rows[seen.size].append(split.called(row))
    (usual, _), *others = sorted(rows.items(), key=lambda item: -len(item[1])) or [((0, 0), [])]
    names = [f"{name}: {height}x{width}" for (height, width), some in others for name in some]
    if names:
        words = (
            f"{len(names)} records are not {usual[0]}x{usual[1]} (rows x columns) as the others: training stops there"
        )
        yield Problem(ERROR, "size_varies", words, tuple(names))


def _unit(splits: Iterable[Split]) -> Iterable[Problem]:
    people = [seen.person_mm for split in splits for seen in split.seen if seen.person_mm]
    median = float(np.median(people)) if people else NEAREST_MM
    if not NEAREST_MM <= median <= FARTHEST_MM:
        words = (
            f"the median person is {median / 1000:.2f} m away: stored depth is not in millimetres; build the dataset "
            "again with its unit declared"
        )
        yield Problem(WARNING, "unit", words)


def _same_content(splits: Iterable[Split]) -> Iterable[Problem]:
    """Equal images: of one person they are repeated frames, of two they tell the network that two people are one."""
    places = collections.defaultdict(list)
    for split in splits:
        for row, seen in enumerate(split.seen):
            for modality, digest in seen.content.items():
                places[modality, digest].append((split, row))
    repeated, elsewhere, shared = [], [], []
    for (modality, _), same in places.items():
        (first, first_row), *copies = same
        for split, row in copies:
            owners = {(one.name, one.labels["person_id"][at]) for one, at in ((first, first_row), (split, row))}
            recordings = {one.labels["recording_id"][at] for one, at in ((first, first_row), (split, row))}
            line = f"{modality}: {split.called(row)} = {first.called(first_row)}"
            if len(owners) > 1:
                shared.append(line)
            else:
                (elsewhere if len(recordings) > 1 and split.name != "train" else repeated).append(line)
    if shared:
        words = f"{len(shared)} images are stored under two persons or splits: labels are wrong, or the test leaks"
        yield Problem(ERROR, "shared_image", words, tuple(shared))
    if elsewhere:
        words = f"{len(elsewhere)} images are stored under two recordings of a person: finding them is no feat"
        yield Problem(ERROR, "copied_recording", words, tuple(elsewhere))
    if repeated:
        words = f"{len(repeated)} images are stored more than once for a person: finding them is no feat"
        yield Problem(WARNING, "repeated_image", words, tuple(repeated))


def _same_instants(splits: Iterable[Split]) -> Iterable[Problem]:
    places = collections.defaultdict(list)
    for split in splits:
        for row, key in enumerate(zip(split.labels["recording_id"], split.labels["frame_id"], strict=True)):
            places[key].append(split.called(row))
    names = [f"recording {key[0]}, frame {key[1]}: {', '.join(same)}" for key, same in places.items() if len(same) > 1]
    if names:
        words = f"{len(names)} instants (recording_id, frame_id) occur more than once: twin_excluded drops too much"
        yield Problem(ERROR, "same_instant", words, tuple(names))


def _people(splits: Mapping[str, Split]) -> Iterable[Problem]:
    """Splits that are missing or share a person, and people who have too few frames."""
    missing = [name for name in SPLITS if name not in splits]
    if missing:
        yield Problem(ERROR, "missing_split", f"there is no split {' and no split '.join(missing)}, which a run needs")
    if "train" in splits and len(np.unique(splits["train"].labels["person_id"])) < 2:
        yield Problem(ERROR, "few_people", "split train has fewer than two persons: there is nobody to tell apart")
    where = collections.defaultdict(set)
    for name, split in splits.items():
        for person in np.unique(split.labels["person_id"]):
            where[int(person)].add(name)
    both = [f"person {person}: {', '.join(sorted(names))}" for person, names in where.items() if len(names) > 1]
    if both:
        words = f"{len(both)} persons are in two splits: people must be new to the test"
        yield Problem(ERROR, "split_overlap", words, tuple(both))
    for name, split in splits.items():
        people, counts = np.unique(split.labels["person_id"], return_counts=True)
        single = [f"{name} person {person}" for person in people[counts == 1]]
        if single:
            words = f"{len(single)} persons of {name} have one frame: it is never found, and pk sampling repeats it"
            yield Problem(WARNING, "single_frame", words, tuple(single))


def _recordings(splits: Iterable[Split]) -> Iterable[Problem]:
    """Ids that should belong to one person, and do to two."""
    columns = {
        name: np.concatenate([split.labels[name] for split in splits])
        for name in ("person_id", "camera_id", "recording_id", "clothes_id")
    }
    for owner in ("person_id", "camera_id"):
        names = _shared(columns, "recording_id", owner)
        if names:
            words = f"{len(names)} recordings have two {_PLURALS[owner]}: recording_excluded cannot be used"
            yield Problem(ERROR, "mixed_recording", words, names)
    names = _shared(columns, "clothes_id", "person_id")
    if names:
        words = f"{len(names)} clothes_id are worn by two persons: scores by clothes mean nothing"
        yield Problem(WARNING, "shared_clothes", words, names)


_PLURALS = {"person_id": "persons", "camera_id": "cameras"}


def _shared(columns: Mapping[str, np.ndarray], item: str, owner: str) -> tuple[str, ...]:
    owners = collections.defaultdict(set)
    for one, other in np.unique(np.stack([columns[item], columns[owner]], axis=1), axis=0).tolist():
        owners[one].add(other)
    return tuple(
        f"{item} {one}: {_PLURALS[owner]} {', '.join(map(str, sorted(some)[:10]))}{', ...' if len(some) > 10 else ''}"
        for one, some in owners.items()
        if len(some) > 1
    )


def _pairs(splits: Mapping[str, Split]) -> Iterable[Problem]:
    for name, split in splits.items():
        lacking = np.flatnonzero(~(split.recorded("rgb") & split.recorded("depth")))
        names = tuple(split.called(int(row)) for row in lacking)
        if names and name == "train":
            words = f"{len(names)} of {len(split.seen)} training frames are no pairs: distillation refuses the dataset"
            yield Problem(WARNING, "unpaired_training", words, names)
        elif names:
            words = (
                f"{len(names)} of {len(split.seen)} frames of {name} are no pairs: they are ranked in one modality only"
            )
            yield Problem(WARNING, "unpaired_evaluation", words, names)


def rule_counts(splits: Mapping[str, Split]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """{split: {direction: {rule: {"queries", "emptied", "persons", "names"}}}}: queries left nothing to find by a rule.

    `persons` are those of the emptied queries; `names` are these queries, but for rules that empty all. The scenarios
    of protocol `tvrid` stand beside the rules where passages have names; their queries are the passages
    that they compare, called by the first frame. The training split is not ranked and so left out.
    """
    found: dict[str, Any] = {}
    for name in [name for name in splits if name != "train"]:
        split, found[name] = splits[name], {}
        sides = {
            modality: {column: values[split.recorded(modality)] for column, values in split.labels.items()}
            for modality in ("rgb", "depth")
        }
        for direction, (query, gallery) in DIRECTIONS.items():
            found[name][direction] = {}
            rows = np.flatnonzero(split.recorded(query))
            for rule in RULES:
                empty = emptied(sides[query], sides[gallery], rule)
                found[name][direction][rule] = _counted(split, rows, empty)
            passages = _passages(split, query), _passages(split, gallery)
            for scenario, (rows, empty) in _emptied_by_scenario(split, *passages).items():
                found[name][direction][scenario] = _counted(split, rows, empty)
    return found


def _counted(split: Split, queries: np.ndarray, empty: np.ndarray) -> dict[str, Any]:
    rows = queries[empty]
    return {
        "queries": len(queries),
        "emptied": len(rows),
        "persons": np.unique(split.labels["person_id"][rows]).tolist(),
        "names": [] if empty.all() else [split.called(int(row)) for row in rows],
    }


def _passages(split: Split, modality: str) -> np.ndarray:
    """int [P]: the first row of each recording with images of a modality; none where passages have no names."""
    rows = np.flatnonzero(split.recorded(modality) & (split.named("passage_name") != ""))
    return rows[np.unique(split.labels["recording_id"][rows], return_index=True)[1]]


def _emptied_by_scenario(
    split: Split, query: np.ndarray, gallery: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per scenario of protocol `tvrid`: the passages that it compares, and bool, which find none of their person."""
    if not len(query):
        return {}
    person, camera, passage = split.labels["person_id"], split.named("camera_name"), split.named("passage_name")
    same = person[query][:, None] == person[gallery][None]
    pairs = compared((camera[query], passage[query]), (camera[gallery], passage[gallery]), CAMERAS)
    return {f"tvrid {name}": (query[one.any(1)], ~(same & one)[one.any(1)].any(1)) for name, one in pairs.items()}


def _rules(counts: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> Iterable[Problem]:
    """Rules that leave no query of a direction anything to find; where none is left, no score can be had."""
    useless = collections.defaultdict(lambda: collections.defaultdict(list))
    for split, directions in counts.items():
        for direction, rules in directions.items():
            bad = [rule for rule, found in rules.items() if found["emptied"] == found["queries"]]
            if len(bad) == len(rules):
                words = f"{split} {direction}: no query has an item of its person in the gallery, under any rule"
                yield Problem(ERROR, "no_positive", words)
            else:
                for rule in bad:
                    useless[rule][split].append(direction)
    for rule, places in useless.items():
        where = ", ".join(
            split if len(names) == len(counts[split]) else f"{split} {' '.join(names)}"
            for split, names in places.items()
        )
        mend = RULES[rule].mend if rule in RULES else "it compares passages of one person by other cameras and names"
        words = f"protocol {rule} leaves no query of {where} anything to find, so it is refused; {mend}"
        yield Problem(WARNING, "rule", words)
