"""Understands the tree of TVRID: labels in CSV files, a folder of frames for each passage.

```
DB_extracted/train_labels.csv, public_test_labels.csv
    gallery_id,person_id,cam_name,cam_id,passage_name,passage_id,path
DB_extracted/train/<path>/, test_public/<path>/
    <stem>_RGB.png or <stem>_RGB_person.png            300x300 colour crop
    <stem>_depth.png, <stem>_depth_depth.png or <stem>_D.png   16-bit depth of the same pixels
```

A row is a passage: one walk of a person under one camera. Paths may have backslashes.
"""

import collections
import csv
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded.frames import SPLITS, Finding, Frame, Scan
from tfds_builders.recorded.names import numbered
from tfds_builders.schema import WALKING

PAGE = "https://zenodo.org/records/17909410"
LABELS = {"train": "train_labels.csv", "test": "public_test_labels.csv"}
FOLDERS = {"train": "train", "test": "test_public"}
COLUMNS = ("gallery_id", "person_id", "cam_name", "cam_id", "passage_name", "passage_id", "path")
TRACKS = {"rgb": ("rgb", "rgb"), "depth": ("depth", "depth"), "cross": ("rgb", "depth")}
"""Modalities of query and gallery."""
SCENARIOS = {
    "same_cam_cross_passage": "the same camera_name",
    "up_down_cross_passage": "one camera_name is upward, the other downward",
    "flat_vs_others": "exactly one camera_name is flat",
}
"""Which pairs of passages are compared, all of different passage_name."""
_FILES = {
    "rgb": re.compile(r"(.+?)_(?:RGB|RGB_person)\.png"),
    "depth": re.compile(r"(.+?)_(?:depth|depth_depth|D)\.png"),
}


class Passage(NamedTuple):
    """A row of a CSV file; all texts, `folder` relative to the root."""

    side: str
    gallery_id: str
    person_id: str
    cam_name: str
    cam_id: str
    passage_name: str
    folder: str


def scan(root: pathlib.Path, paths: Sequence[str], *, validation_share: float, seed: int) -> Scan:
    """Understands a tree.

    Args:
        root: the folder that holds `DB_extracted/`, or that folder.
        paths: its files, `tree.listing`.
        validation_share: of the people in `train_labels.csv`, who then are no training people.
        seed: of the choice of those people.

    Returns:
        Frames whose `extra` has `camera_name`, `passage_name` and `gallery_id`; a recording is a passage, `frame_id`
        the rank of the stem in it. A frame without its colour or its depth file stays in the scan: it counts among
        those that cannot be used.

    Raises:
        InputError: it is no such tree, the CSV files are malformed or contradict each other, or a passage is not there.
    """
    home = _home(root, paths)
    passages = [row for side in ("train", "test") for row in _rows(root, home, side)]
    _check_rows(root, passages)
    people, cameras = numbered({row.person_id for row in passages}), _cameras(root, passages)
    validation = _validation(
        sorted({people[row.person_id] for row in passages if row.side == "train"}), validation_share, seed
    )
    findings: list[Finding] = []
    instants = _instants(paths, home, {row.folder for row in passages}, findings)
    frames: dict[str, list[Frame]] = {split: [] for split in SPLITS}
    for number, row in enumerate(passages):
        if row.folder not in instants:
            raise InputError(
                f"{root / home / LABELS[row.side]} names the passage {row.folder}, which holds no frames in {root}; "
                "unpack the archive again"
            )
        person_id = people[row.person_id]
        split = "test" if row.side == "test" else "validation" if person_id in validation else "train"
        frames[split] += _frames(row, number, person_id, cameras[row.cam_name], instants[row.folder])
    metadata = {
        "people": {str(number): name for name, number in people.items()},
        "cameras": {str(number): name for name, number in cameras.items()},
        "passage_names": sorted({row.passage_name for row in passages}),
        "tracks": {name: {"query": query, "gallery": gallery} for name, (query, gallery) in TRACKS.items()},
        "scenarios": SCENARIOS,
        "depth_unit": "16-bit samples x the knob depth_unit_mm, in whole mm",
        "mask": "the nearest thing by depth; the files hold no person mask",
        "split": {"source": "CSV files", "validation_people": sorted(validation), "seed": seed},
    }
    return Scan(frames, findings, metadata)


def _home(root: pathlib.Path, paths: Sequence[str]) -> str:
    """The folder with the CSV files, relative to the root, "" or ending in "/"; InputError if there is not one."""
    homes = [path.removesuffix(LABELS["train"]) for path in paths if path.split("/")[-1] == LABELS["train"]]
    if len(homes) != 1:
        tops = ", ".join(sorted({path.split("/")[0] for path in paths})[:5]) or "no files"
        what = f"several {LABELS['train']}" if homes else f"{tops} but no {LABELS['train']}"
        raise InputError(f"--manual_dir={root} holds {what}; give the folder DB_extracted of the archive at {PAGE}")
    if homes[0] + LABELS["test"] not in paths:
        raise InputError(f"{root / homes[0] / LABELS['test']} does not exist; unpack the archive at {PAGE} again")
    return homes[0]


def _rows(root: pathlib.Path, home: str, side: str) -> list[Passage]:
    """The passages of a CSV file; InputError where it is malformed."""
    path = root / home / LABELS[side]
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file in UTF-8 ({error}); unpack the archive at {PAGE} again") from error
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        why = "; during the competition it had no labels: download the present archive" if "path" in header else ""
        raise InputError(f"{path} has no column {missing[0]!r}{why or '; give the published file'} ({PAGE})")
    if not rows:
        raise InputError(f"{path} has no rows; unpack the archive at {PAGE} again")
    return [_passage(f"{path}, row {number}", home, side, row) for number, row in enumerate(rows, start=1)]


def _passage(where: str, home: str, side: str, row: Mapping) -> Passage:
    values = {column: (row[column] or "").strip() for column in COLUMNS}
    empty = [column for column, value in values.items() if not value]
    if empty or None in row:
        what = f"has no {empty[0]}" if empty else "has too many values"
        raise InputError(f"{where} {what}; give the published file")
    parts = values["path"].replace("\\", "/").strip("/").split("/")
    if ".." in parts or ":" in parts[0] or values["path"][0] in "/\\":
        raise InputError(f"{where}: path {values['path']!r} leads out of the tree; give the published file")
    folder = f"{home}{FOLDERS[side]}/{'/'.join(part for part in parts if part not in ('', '.'))}"
    return Passage(
        side=side,
        gallery_id=values["gallery_id"],
        person_id=values["person_id"],
        cam_name=values["cam_name"],
        cam_id=values["cam_id"],
        passage_name=values["passage_name"],
        folder=folder,
    )


def _check_rows(root: pathlib.Path, passages: Sequence[Passage]) -> None:
    """Raises InputError for a passage that is listed twice and for people on both sides."""
    sides: dict[str, str] = {}
    for row in passages:
        if sides.setdefault(row.person_id, row.side) != row.side:
            raise InputError(
                f"{root}: person {row.person_id} is in {LABELS['train']} and in {LABELS['test']}; mend them"
            )
    for column in ("gallery_id", "folder"):
        counts = collections.Counter((row.side, getattr(row, column)) for row in passages)
        for (side, value), count in counts.items():
            if count > 1:
                name = "path" if column == "folder" else column
                raise InputError(
                    f"{root}: the {name} {value} is in {count} rows of {LABELS[side]}; give the published file"
                )


def _cameras(root: pathlib.Path, passages: Sequence[Passage]) -> dict[str, int]:
    """The number of each camera's name: its cam_id; InputError where those do not go together."""
    pairs = {(row.cam_name, row.cam_id) for row in passages}
    if len({name for name, _ in pairs}) != len(pairs) or len({one for _, one in pairs}) != len(pairs):
        raise InputError(f"{root}: cam_name and cam_id do not go together in the CSV files; give the published ones")
    numbers = numbered(one for _, one in pairs)
    return {name: numbers[one] for name, one in sorted(pairs)}


def _validation(people: Sequence[int], share: float, seed: int) -> set[int]:
    """The people who validate: round(share x people), one at least unless the share is 0."""
    count = min(max(round(share * len(people)), 1 if share else 0), len(people) - 1)
    return set(np.random.default_rng(seed).permutation(np.asarray(people))[:count].tolist())


def _instants(
    paths: Sequence[str], home: str, folders: set[str], findings: list[Finding]
) -> dict[str, dict[str, dict[str, str]]]:
    """By folder and stem the files of each modality; adds those of no passage, or that repeat one, to `findings`."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    stray: collections.Counter[str] = collections.Counter()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if not folder.startswith(tuple(f"{home}{top}/" for top in FOLDERS.values())):
            continue
        if folder not in folders:
            stray[folder] += 1
            continue
        matches = {modality: match for modality, form in _FILES.items() if (match := form.fullmatch(name))}
        if len(matches) != 1:
            findings.append(Finding("ignored", path, "its name fits nothing here; left out"))
            continue
        [(modality, match)] = matches.items()
        files = found.setdefault(folder, {}).setdefault(match[1], {})
        if modality in files:
            findings.append(Finding("duplicate", path, f"it repeats {files[modality]}; left out"))
        else:
            files[modality] = path
    findings += [Finding("ignored", folder, f"no CSV file names it; {n} files left out") for folder, n in stray.items()]
    return found


def _frames(
    row: Passage, recording_id: int, person_id: int, camera_id: int, instants: Mapping[str, Mapping[str, str]]
) -> list[Frame]:
    """The frames of a passage, in the order of their stems."""
    ranks = numbered(instants)
    return [
        Frame(
            person_id=person_id,
            camera_id=camera_id,
            recording_id=recording_id,
            frame_id=rank,
            rgb=instants[stem].get("rgb", ""),
            depth=instants[stem].get("depth", ""),
            recording_type=WALKING,
            clothes_id=person_id,
            extra={"camera_name": row.cam_name, "passage_name": row.passage_name, "gallery_id": row.gallery_id},
        )
        for rank, stem in enumerate(sorted(instants, key=ranks.__getitem__))
    ]
