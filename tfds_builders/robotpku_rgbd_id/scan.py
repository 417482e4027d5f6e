"""Finds colour and depth images, people and sequences in a tree whose layout is published nowhere.

A `mapping` says what the parts of a path are: "{person}/{sequence}/{modality}/{frame}.{ext}". It is given as a knob, or
made by `discover` from the paths alone: the words rgb, color and depth in folder or file names tell the modality, and
of the numbers in a path that are not the same everywhere, the last is the frame; of the two before it the one with more
values is the person, the other the sequence.
"""

import collections
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from PIL import Image, UnidentifiedImageError

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded import splits
from tfds_builders.recorded.frames import SPLITS, Finding, Frame, Scan
from tfds_builders.recorded.names import numbered

SIZES = {"train": 40, "validation": 10, "test": 40}
PEOPLE = sum(SIZES.values())
SEQUENCES = 2
EXAMPLE_MAPPING = "{person}/{sequence}/{modality}/{frame}.{ext}"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_FIELDS = ("person", "sequence", "modality", "frame", "ext")
_VALUES = {"frame": "[0-9]+", "modality": "[^/]*?"}  # of the others: a whole number if that fits, else any text
_NEEDED = ("person", "modality", "frame")
_PARTS = re.compile(r"\{(.*?)\}|(\*)")
_RGBD = re.compile(r"rgb[-_]?d(?![a-z])", re.IGNORECASE)  # says both, so it says nothing
_WORDS = re.compile(r"(rgb|colou?r)|(depth)", re.IGNORECASE)
_LONE_D = re.compile(r"(?<![a-z])d(?![a-z])", re.IGNORECASE)
_LETTERS = re.compile(r"[A-Za-z_\- ]+")
_NUMBER = re.compile(r"[0-9]+")

_Instant = tuple[str, str, str]
"""(person, sequence, frame) as the paths have them, numbers without leading zeros."""


def scan(root: pathlib.Path, paths: Sequence[str], mapping: str, seed: int) -> Scan:
    """Understands a raw tree.

    Args:
        root: the tree.
        paths: its files, `tree.listing`.
        mapping: as the module says; "" to discover it.
        seed: of the split by people, in the published sizes.

    Returns:
        Frames whose `extra` has `depth_bits`, 8 or 16. The camera is the sequence. A frame without its colour or its
        depth file stays in the scan: it counts among those that cannot be used.

    Raises:
        InputError: the layout was not understood; the message shows what was found.
    """
    pictures = [path for path in paths if path.lower().endswith(_SUFFIXES)]
    mapping = mapping or discover(root, paths)
    findings: list[Finding] = []
    found = _matched(root, pictures, mapping, findings)
    _check_counts(root, pictures, mapping, found)
    people, sequences, numbers = (numbered({instant[index] for instant in found}) for index in range(3))
    cameras = {name: index for index, name in enumerate(sorted(sequences, key=sequences.__getitem__))}
    ids = splits.seeded_split(list(people.values()), SIZES, seed)
    bits = _depth_bits(root, [files["depth"] for files in found.values() if "depth" in files])
    rows = [(people[p], cameras[s], numbers[n], files) for (p, s, n), files in found.items()]
    frames = _frames(sorted(rows, key=lambda row: row[:3]), ids, bits)
    metadata = {
        "layout": "raw",
        "mapping": mapping,
        "depth_unit": f"{bits}-bit samples x the knob {'depth_unit_mm' if bits == 16 else 'grey_mm'}, in mm",
        "split": {"source": "seed", "seed": seed, "person_ids": ids},
        "persons": {str(number): name for name, number in people.items()},
        "cameras": {str(number): f"sequence {name}" for name, number in cameras.items()},
    }
    return Scan(frames, findings, metadata)


def _frames(
    rows: Sequence[tuple[int, int, int, dict[str, str]]], ids: Mapping[str, Sequence[int]], bits: int
) -> dict[str, list[Frame]]:
    """The frames of each split from rows of (person, camera, frame, files)."""
    split_of = {one: split for split in SPLITS for one in ids[split]}
    recordings = {key: index for index, key in enumerate(sorted({row[:2] for row in rows}))}
    frames: dict[str, list[Frame]] = {split: [] for split in SPLITS}
    for person_id, camera_id, frame_id, files in rows:
        frame = Frame(
            person_id=person_id,
            camera_id=camera_id,
            recording_id=recordings[person_id, camera_id],
            frame_id=frame_id,
            rgb=files.get("rgb", ""),
            depth=files.get("depth", ""),
            clothes_id=person_id,
            extra={"depth_bits": bits},
        )
        frames[split_of[person_id]].append(frame)
    return frames


def modality_of(text: str) -> str:
    """What the words of a path or of a part of one say: "rgb" or "depth", "" where they say neither or both."""
    text = _RGBD.sub("", text)
    said = {"rgb" if match[1] else "depth" for match in _WORDS.finditer(text)}
    if not said and _LONE_D.search(text):
        return "depth"
    return said.pop() if len(said) == 1 else ""


def discover(root: pathlib.Path, paths: Sequence[str]) -> str:
    """The mapping that explains the paths of a tree.

    Raises:
        InputError: none does.
    """
    pictures = [path for path in paths if path.lower().endswith(_SUFFIXES)]
    shapes = collections.defaultdict(list)
    for path in pictures:
        if modality_of(path):
            shapes[_shape(path)].append(path)
    if not shapes:
        _not_understood(root, paths, "no path says rgb, color or depth")
    shape, alike = max(shapes.items(), key=lambda item: len(item[1]))
    if len(alike) < 0.5 * len(pictures):
        _not_understood(root, paths, f"they are named in {len(shapes)} ways")
    columns = [set(column) for column in zip(*(_NUMBER.findall(path) for path in alike), strict=True)]
    varying = [index for index, column in enumerate(columns) if len(column) > 1]
    if len(varying) not in (2, 3):
        _not_understood(root, paths, f"{len(varying)} numbers in them vary, not those of person, sequence and frame")
    *labels, frame = varying
    person = max(labels, key=lambda index: len(columns[index]))
    names = [min(column) for column in columns]  # the only value, but for those that vary
    for index in varying:
        names[index] = "{frame}" if index == frame else "{person}" if index == person else "{sequence}"
    for name in names:
        shape = shape.replace("#", name, 1)
    return shape


def _shape(path: str) -> str:
    """The path with each number as # and each word with a modality, with what hangs on it, as {modality}."""
    stem, _, _ = path.rpartition(".")
    words = _LETTERS.sub(lambda match: "{modality}" if modality_of(match[0]) else match[0], stem)
    return _NUMBER.sub("#", words) + ".{ext}"


def _expression(mapping: str) -> re.Pattern:
    """The regular expression of a mapping; InputError where it has unknown fields or lacks some."""
    text, last, seen = "", 0, set()
    for match in _PARTS.finditer(mapping):
        field = match[1]
        text += re.escape(mapping[last : match.start()])
        last = match.end()
        if field is None or (field in seen and field == "modality"):
            text += "[^/]*?"
        elif field in seen:
            text += f"(?P={field})"
        elif field in _FIELDS:
            text += f"(?P<{field}>{_VALUES.get(field, '[0-9]+|[^/]+?')})"
            seen.add(field)
        else:
            raise InputError(f"knob mapping={mapping!r}: no field {{{field}}}; there are {', '.join(_FIELDS)}")
    missing = [field for field in _NEEDED if field not in seen]
    if missing:
        raise InputError(f"knob mapping={mapping!r} lacks {{{missing[0]}}}; give something like {EXAMPLE_MAPPING!r}")
    return re.compile(text + re.escape(mapping[last:]))


def _matched(
    root: pathlib.Path, pictures: Sequence[str], mapping: str, findings: list[Finding]
) -> dict[_Instant, dict[str, str]]:
    """The files of each instant by modality; adds those that fit nothing, or repeat others, to `findings`."""
    expression = _expression(mapping)
    found: dict[_Instant, dict[str, str]] = {}
    for path in pictures:
        match = expression.fullmatch(path)
        fields = match.groupdict() if match else {}
        # Where depth images alone are marked, the unmarked ones are colour.
        modality = modality_of(fields.get("modality", "")) or ("rgb" if match and not fields["modality"] else "")
        if not modality:
            findings.append(Finding("ignored", path, f"it does not fit {mapping}; left out"))
            continue
        person, sequence, frame = (_plain(fields.get(name) or "") for name in ("person", "sequence", "frame"))
        files = found.setdefault((person, sequence, frame), {})
        if modality in files:
            findings.append(Finding("duplicate", path, f"it repeats {files[modality]}; left out"))
        else:
            files[modality] = path
    if not any(len(files) == 2 for files in found.values()):
        _not_understood(root, pictures, f"by {mapping!r}, none has both a colour and a depth image")
    return found


def _plain(text: str) -> str:
    return str(int(text)) if text.isascii() and text.isdigit() else text


def _check_counts(root: pathlib.Path, pictures: Sequence[str], mapping: str, found: Iterable[_Instant]) -> None:
    """Raises InputError for more people or sequences than the dataset has: labels were taken for something else."""
    recordings = {instant[:2] for instant in found}
    people = collections.Counter(person for person, _ in recordings)
    most = max(people.values())
    if len(people) > PEOPLE or most > SEQUENCES:
        why = f"by {mapping!r} it has {len(people)} people with up to {most} sequences, not {PEOPLE} with {SEQUENCES}"
        _not_understood(root, pictures, why)


def _depth_bits(root: pathlib.Path, files: Sequence[str]) -> int:
    """8 or 16, as the first depth image that can be opened has; the others must agree when they are read."""
    for file in files:
        try:
            with Image.open(root / file) as image:
                return 8 if image.mode in ("L", "P", "RGB", "RGBA") else 16
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            continue
    return 16


def _not_understood(root: pathlib.Path, paths: Sequence[str], why: str) -> NoReturn:
    """Raises InputError that shows what the tree holds."""
    paths = [path for path in paths if path.lower().endswith(_SUFFIXES)] or paths
    kinds = collections.Counter(pathlib.PurePosixPath(path).suffix.lower() or "no suffix" for path in paths)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4)) or "no files"
    shown = ", ".join(paths[index] for index in sorted({0, len(paths) // 2, len(paths) - 1}) if index < len(paths))
    raise InputError(
        f"--manual_dir={root}: its layout was not understood: {why}; found {counts}"
        f"{', such as ' + shown if shown else ''}; say how files are named with the knob mapping={EXAMPLE_MAPPING!r}"
    )
