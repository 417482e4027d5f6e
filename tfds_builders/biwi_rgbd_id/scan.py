"""Understanding a tree of BIWI RGBD-ID: recordings, frames, identities and splits. No file but `splits.json` is opened.

```
Training/<person>/   Testing/Still/<person>/   Testing/Walking/<person>/      person: three digits
    000_000000-a_8348863_rgb.jpg           1280x960 JPEG
    000_000000-b_8349124_depth.pgm         640x480, binary, big-endian uint16, millimetres, 0 = invalid
    000_000000-c_8349124_userMap.pgm       640x480, uint8, index of the tracked user, 0 = nobody
    000_000000-d_8349192_skel.txt          20 rows per tracked person
    000_000000-e_8349192_groundCoeff.txt   a,b,c,d of the ground plane; mostly empty
```

Each stream has its own timestamp, so the files of one instant share but `<person>_<frame>`. A letter after the person
tells apart recordings in one folder.

An identity of the paper's protocol (arXiv:1810.11641) is a person in one set of clothes: the Training recording is one,
both Testing recordings, of another day and place, are another. They are numbered by person, then Training before
Testing, as in the published `meta.json`; `splits.json` speaks of these numbers.
"""

import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rgbd_reid_jax.core.errors import InputError
from tfds_builders import schema
from tfds_builders.recorded import splits
from tfds_builders.recorded.frames import SPLITS, Finding, Frame, Scan

SEQUENCES = ("Training", "Testing/Still", "Testing/Walking")
"""Kinds of recordings; the number of each is SS in the names of the prepared layout."""
RECORDING_TYPES = (0, schema.STANDING, schema.WALKING)
"""Of each of `SEQUENCES`; in Training people turn, stand and walk."""
CAMERAS = ("the Kinect where Training was recorded", "the Kinect where Testing was recorded")
KEPT = {"all": (0, 1, 2), "still": (0, 1), "walking": (0, 2)}
"""Which of `SEQUENCES` each choice of recordings holds."""
SIZES = {"train": 32, "validation": 8, "test": 38}
"""Identities of the published split."""
PUBLISHED = "splits.json"
_KINDS = {"a": "rgb.jpg", "b": "depth.pgm", "c": "userMap.pgm", "d": "skel.txt", "e": "groundCoeff.txt"}
_FILE = re.compile(r"(\d{3})([a-z]?)_(\d{6})-([a-e])_\d+_(\w+\.\w+)", re.ASCII)
_FOLDER = re.compile(rf"({'|'.join(SEQUENCES)})/(\d{{3}})[a-z]?", re.ASCII)


class _Instant(NamedTuple):
    person: int
    sequence: int
    letter: str
    frame: int


def place_of(sequence: int) -> int:
    """0 for Training, 1 for Testing: another day, another room and, mostly, other clothes."""
    return min(sequence, 1)


def is_kept(sequence: int, recordings: str) -> bool:
    """Whether `recordings`, a key of `KEPT`, holds a sequence; InputError for one that this dataset does not have."""
    if sequence >= len(SEQUENCES):
        names = ", ".join(f"{number:02d} {name}" for number, name in enumerate(SEQUENCES))
        raise InputError(f"a file name has sequence {sequence:02d}; those of BIWI RGBD-ID are {names}")
    return sequence in KEPT[recordings]


def is_raw(paths: Sequence[str]) -> bool:
    """Whether a tree has the folders of the raw dataset."""
    return any(path.startswith(("Training/", "Testing/")) for path in paths)


def scan(root: pathlib.Path, paths: Sequence[str], *, identities: str, recordings: str, fold: int, seed: int) -> Scan:
    """Understands a raw tree.

    A frame that lacks an image stays in the scan: reading finds it unpaired, so that it counts among those that cannot
    be used.

    Args:
        root: the folder that holds `Training/` and `Testing/`.
        paths: all files below it.
        identities: what a `person_id` is: "clothes", an identity of the paper, or "people".
        recordings: a key of `KEPT`.
        fold: of `splits.json`, if that lies in `root` and speaks of these identities.
        seed: of the split otherwise.

    Raises:
        InputError: a kind of recording is missing, a file lies in another person's folder, or `splits.json` is
            malformed or fits another tree.
    """
    findings: list[Finding] = []
    instants = _instants(root, paths, findings)
    _check_sequences(root, instants)
    counts = Counter((instant.person, place_of(instant.sequence)) for instant in instants)
    outfits = sorted(counts)
    findings += [
        Finding("person", SEQUENCES[place], f"person {person:03d} has one frame there")
        for person, place in outfits
        if counts[person, place] < 2
    ]
    outfit_ids = {outfit: number for number, outfit in enumerate(outfits)}
    recording_ids = {key: number for number, key in enumerate(sorted({instant[:3] for instant in instants}))}
    people = sorted({person for person, _ in outfits})
    ids, how = _split(root, paths, people, len(outfits), identities=identities, fold=fold, seed=seed)
    split_of = {one: split for split in SPLITS for one in ids[split]}
    frames: dict[str, list[Frame]] = {split: [] for split in SPLITS}
    for instant, files in sorted(instants.items()):
        if is_kept(instant.sequence, recordings):
            outfit = outfit_ids[instant.person, place_of(instant.sequence)]
            person_id = outfit if identities == "clothes" else instant.person
            frames[split_of[person_id]].append(_frame(instant, files, person_id, recording_ids[instant[:3]], outfit))
    metadata = {
        "layout": "raw",
        "depth_unit": "mm",
        "mask": "user map",
        "split": {**how, "person_ids": ids},
        "persons_of_identities": {str(outfit_ids[outfit]): outfit[0] for outfit in outfits},
    }
    return Scan(frames, findings, metadata)


def _frame(instant: _Instant, files: Mapping[str, str], person_id: int, recording_id: int, outfit: int) -> Frame:
    return Frame(
        person_id=person_id,
        camera_id=place_of(instant.sequence),
        recording_id=recording_id,
        frame_id=instant.frame,
        rgb=files.get("rgb.jpg", ""),
        depth=files.get("depth.pgm", ""),
        mask=files.get("userMap.pgm", ""),
        recording_type=RECORDING_TYPES[instant.sequence],
        clothes_id=outfit,
        extra={
            "name": next(iter(files.values())),
            "skeleton": files.get("skel.txt", ""),
            "ground": files.get("groundCoeff.txt", ""),
        },
    )


def _instants(root: pathlib.Path, paths: Sequence[str], findings: list[Finding]) -> dict[_Instant, dict[str, str]]:
    """The files of every instant by kind, a value of `_KINDS`; adds to `findings`."""
    instants: dict[_Instant, dict[str, str]] = defaultdict(dict)
    unknown: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition("/")
        where, what = _FOLDER.fullmatch(folder), _FILE.fullmatch(name)
        if not where or not what or _KINDS[what[4]] != what[5]:
            if path != PUBLISHED:
                unknown[folder].append(path)
            continue
        if where[2] != what[1]:
            raise InputError(
                f"{root / path} is of person {what[1]}, its folder of person {where[2]}; move it to where it belongs"
            )
        instant = _Instant(int(what[1]), SEQUENCES.index(where[1]), what[2], int(what[3]))
        first = instants[instant].setdefault(what[5], path)
        if first != path:
            findings.append(Finding("duplicate", path, f"the same frame as {pathlib.Path(first).name}; left out"))
    for others in unknown.values():
        more = f", and {len(others) - 1} more in its folder" if len(others) > 1 else ""
        findings.append(Finding("ignored", others[0], f"its name fits nothing here; left out{more}"))
    return instants


def _check_sequences(root: pathlib.Path, instants: Mapping[_Instant, Any]) -> None:
    """Raises InputError unless every kind of recording is there: archives of which one was not unpacked."""
    there = {instant.sequence for instant in instants}
    missing = [name for number, name in enumerate(SEQUENCES) if number not in there]
    if missing:
        raise InputError(
            f"--manual_dir={root} holds no frames in {', '.join(f'{name}/<person>/' for name in missing)}; frames are "
            "files such as 000_000000-a_8348863_rgb.jpg: unpack all of the dataset there"
        )


def _split(
    root: pathlib.Path,
    paths: Sequence[str],
    people: Sequence[int],
    outfits: int,
    *,
    identities: str,
    fold: int,
    seed: int,
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The `person_id`s of each split, and how it was found."""
    if identities == "people":
        return splits.seeded_split(people, SIZES, seed), {"source": "seed", "seed": seed}
    if PUBLISHED not in paths:
        return splits.seeded_split(range(outfits), SIZES, seed), {"source": "seed", "seed": seed}
    ids = splits.official_splits(root / PUBLISHED, fold, outfits)
    named = sum(map(len, ids.values()))
    if named != outfits:  # then what they number is something else
        raise InputError(
            f"{root / PUBLISHED}: fold {fold} names {named} identities and the tree holds {outfits}; complete the tree "
            f"or remove {PUBLISHED} for a split from a seed"
        )
    return ids, {"source": PUBLISHED, "fold": fold}


def both_sides(scan: Scan) -> dict[int, str]:
    """People who are trained or validated on in some clothes and tested in others.

    Args:
        scan: of either layout, with `persons_of_identities` in its metadata.

    Returns:
        For each, in order, a file of the test split.
    """
    persons = scan.metadata["persons_of_identities"]
    learned = {persons[str(frame.clothes_id)] for split in SPLITS[:2] for frame in scan.frames[split]}
    tested: dict[int, str] = {}
    for frame in scan.frames[SPLITS[2]]:
        tested.setdefault(persons[str(frame.clothes_id)], frame.file)
    return {person: file for person, file in sorted(tested.items()) if person in learned}
