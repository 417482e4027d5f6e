"""From the files of a tree to labelled frames: by folder names or by a manifest; cameras' intrinsics; the split."""

import dataclasses
import math
import pathlib
import re
from collections import Counter
from typing import Any

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import schema
from tfds_builders.recorded import splits, tree
from tfds_builders.recorded.frames import SPLITS, Finding, Frame, Scan
from tfds_builders.rgbd_folder import manifest
from tfds_builders.rgbd_folder.rows import SPLIT_NAMES, Row, check_formats, codes

INTRINSICS = "intrinsics.json"
SHARES = {"train": 40, "validation": 10, "test": 40}
"""How people are divided where no split is given: as RobotPKU RGBD-ID's are."""
LAYOUT = "<split>/<person_id>/<camera_id>/<recording>/<frame>_rgb.*, <frame>_depth.*, <frame>_mask.*"
_IMAGE = re.compile(r"(.+)_(rgb|depth|mask)\.([^.]+)", re.IGNORECASE)
_INTRINSICS = ("width", "height", "fx", "fy", "cx", "cy")


def scan(root: pathlib.Path, paths: list[str], knobs: dict[str, Any]) -> Scan:
    """Understands a tree.

    Args:
        root: the tree.
        paths: all files below it.
        knobs: values of the config's knobs.

    Raises:
        InputError: it is no such tree.
    """
    if knobs["manifest"]:
        rows, findings = manifest.read(root, knobs["manifest"], paths)
    else:
        rows, findings = _read_folders(root, paths)
    _check(rows, knobs["depth_bits"])
    intrinsics = read_intrinsics(root, {row.camera for row in rows}) if INTRINSICS in paths else {}
    rows, metadata = _split(rows, knobs["split_seed"])
    found = _labelled(rows, intrinsics)
    found.findings = [*findings, *_lone_people(rows), *_unpaired(rows)]
    found.metadata |= metadata
    return found


def _read_folders(root: pathlib.Path, paths: list[str]) -> tuple[list[Row], list[Finding]]:
    """Rows of `LAYOUT`, or of the same without split folders."""
    images: dict[tuple[str, ...], dict[str, str]] = {}
    ignored: dict[str, list[str]] = {}
    matches = {path: _IMAGE.fullmatch(path.rpartition("/")[2]) for path in paths if path != INTRINSICS}
    with_split = any(match and path.split("/")[0].lower() in SPLIT_NAMES for path, match in matches.items())
    for path, match in matches.items():
        if not match:
            ignored.setdefault(pathlib.PurePosixPath(path).suffix, []).append(path)
            continue
        folders = path.split("/")[:-1]
        _check_folders(root, path, folders, with_split)
        key = (*folders, match[1])
        role = match[2].lower()
        other = images.setdefault(key, {}).setdefault(role, path)
        if other != path:
            raise InputError(f"{root / path} and {root / other} are both the {role} image of one frame; remove one")
    findings = [
        Finding("ignored", files[0], f"{len(files)} files {suffix!r} are not read: no <frame>_rgb.*, _depth.*, _mask.*")
        for suffix, files in ignored.items()
    ]
    rows = []
    for (*folders, frame), files in images.items():
        if "rgb" not in files and "depth" not in files:
            findings.append(Finding("ignored", files["mask"], "a mask without an image of its frame"))
            continue
        *split, person, camera, recording = folders
        name = SPLIT_NAMES[split[0].lower()] if split else ""
        where = str(root / next(iter(files.values())))
        rgb, depth, mask = (files.get(role, "") for role in ("rgb", "depth", "mask"))
        rows.append(Row(where, person, camera, recording, frame, name, rgb, depth, mask))
    if not rows:
        raise InputError(
            f"--manual_dir={root} has no {LAYOUT}; it holds {len(paths)} files, the first: {paths[:1]}; rename them or "
            "give a manifest"
        )
    return rows, findings


def _check_folders(root: pathlib.Path, path: str, folders: list[str], with_split: bool) -> None:
    if with_split and folders[:1] and folders[0].lower() not in SPLIT_NAMES:
        raise InputError(
            f"{root / path}: the folder {folders[0]!r} is no split; name it one of {', '.join(SPLIT_NAMES)}"
        )
    if len(folders) != 3 + with_split:
        layout = LAYOUT if with_split else LAYOUT.removeprefix("<split>/")
        raise InputError(f"{root / path} lies in {len(folders)} folders; expected {layout}; or give a manifest")


def _check(rows: list[Row], depth_bits: int) -> None:
    """Raises InputError where rows contradict each other."""
    frames: dict[tuple[str, ...], Row] = {}
    images: dict[tuple, Row] = {}
    pair_of: dict[str, Row] = {}
    split_of: dict[str, Row] = {}
    for row in rows:
        check_formats(row.where, {"rgb": row.rgb, "depth": row.depth, "mask": row.mask}, depth_bits)
        first = frames.setdefault((row.person, row.camera, row.recording, row.frame), row)
        if first is not row and first.split == row.split:
            raise InputError(
                f"{row.where} is frame {row.frame!r} of recording {row.recording!r} as {first.where} is; remove one"
            )
        first = images.setdefault((row.rgb, row.depth, row.mask, row.box), row)
        if first is not row:
            raise InputError(f"{row.where} has the images of {first.where}; remove one")
        for file in filter(None, (row.rgb, row.depth)):
            first = pair_of.setdefault(file, row)
            if (first.rgb, first.depth) != (row.rgb, row.depth):
                raise InputError(f"{row.where} pairs {file} otherwise than {first.where}; mend one")
        first = split_of.setdefault(row.person, row)
        if first.split != row.split:
            raise InputError(
                f"{row.where}: person {row.person!r} is in split {row.split or 'none'!r} and in "
                f"{first.split or 'none'!r} ({first.where}); move all of them to one"
            )
    if any(row.split for row in rows) and not all(row.split for row in rows):
        raise InputError(f"{next(row.where for row in rows if not row.split)} has no split; give one to all or to none")


def _split(rows: list[Row], seed: int) -> tuple[list[Row], dict[str, Any]]:
    """The rows with their splits, drawn by people where none are given, and how it came about."""
    if all(row.split for row in rows):
        return rows, {"split": {"made": "given with the files"}}
    people = codes((row.person,) for row in rows)
    drawn = splits.seeded_split(list(people.values()), SHARES, seed)
    split_of = {code: split for split, members in drawn.items() for code in members}
    rows = [dataclasses.replace(row, split=split_of[people[row.person,]]) for row in rows]
    return rows, {"split": {"made": "drawn by people", "seed": seed, "shares": SHARES, **drawn}}


def _labelled(rows: list[Row], intrinsics: dict[str, tuple[float, ...]]) -> Scan:
    people, cameras = codes((row.person,) for row in rows), codes((row.camera,) for row in rows)
    recordings = codes((row.person, row.camera, row.recording) for row in rows)
    instants = codes((row.person, row.camera, row.recording, row.frame) for row in rows)
    clothes = codes((row.person, row.clothes) for row in rows)
    first: dict[int, int] = {}  # of each recording: the code of its first instant
    for name, code in instants.items():
        first.setdefault(recordings[name[:3]], code)
    ordered = sorted(rows, key=lambda row: instants[row.person, row.camera, row.recording, row.frame])
    frames: dict[str, list[Frame]] = {split: [] for split in SPLITS}
    for row in ordered:
        recording = recordings[row.person, row.camera, row.recording]
        extra: dict[str, Any] = {"box": row.box} if row.box else {}
        if row.camera in intrinsics:
            extra["intrinsics"] = intrinsics[row.camera]
        frames[row.split].append(
            Frame(
                people[row.person,],
                cameras[row.camera,],
                recording,
                instants[row.person, row.camera, row.recording, row.frame] - first[recording],
                row.rgb,
                row.depth,
                row.mask,
                row.recording_type,
                clothes[row.person, row.clothes],
                extra,
            )
        )
    names = {"people": people, "cameras": cameras, "recordings": recordings, "clothes": clothes}
    known = any(row.mask or row.box for row in rows)
    mask = "the files' masks and boxes; of frames without either the whole image" if known else schema.WHOLE_IMAGE
    named = {name: ["/".join(one) for one in found] for name, found in names.items()}
    return Scan(frames, metadata={"mask": mask, **named})


def _lone_people(rows: list[Row]) -> list[Finding]:
    """People of one frame: as a query it finds nobody of its own."""
    count = Counter(row.person for row in rows)
    words = "has one frame: nothing in a gallery would match it"
    lone = [row for row in rows if count[row.person] == 1]
    return [Finding("person", row.rgb or row.depth, f"person {row.person!r} {words}") for row in lone]


def _unpaired(rows: list[Row]) -> list[Finding]:
    findings = []
    for split in SPLITS:
        alone = [row for row in rows if row.split == split and not (row.rgb and row.depth)]
        if alone:
            colour = sum(bool(row.rgb) for row in alone)
            words = f"{colour} frames of {split} have colour alone and {len(alone) - colour} depth alone: kept as such"
            findings.append(Finding("unpaired", alone[0].rgb or alone[0].depth, words))
    return findings


def read_intrinsics(root: pathlib.Path, cameras: set[str]) -> dict[str, tuple[float, ...]]:
    """The numbers of `_INTRINSICS` of each camera that `intrinsics.json` names.

    Args:
        root: the tree.
        cameras: names of its cameras.

    Raises:
        InputError: the file is malformed, or names a camera that the tree does not have.
    """
    path, found = root / INTRINSICS, {}
    content = tree.read_json(path)
    wanted = '{"<camera_id>": {"width": 640, "height": 480, "fx": 525.0, "fy": 525.0, "cx": 319.5, "cy": 239.5}, ...}'
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; give {wanted}")
    for camera, numbers in content.items():
        if camera not in cameras:
            raise InputError(f"{path} names camera {camera!r}; the tree's are: {', '.join(sorted(cameras))}")
        values: list[Any] = [numbers.get(name) if isinstance(numbers, dict) else None for name in _INTRINSICS]
        if not all(_is_number(value) for value in values) or min(values[:4]) <= 0:
            raise InputError(f"{path}: camera {camera!r} has {numbers!r}; give {wanted}")
        found[camera] = tuple(float(value) for value in values)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
