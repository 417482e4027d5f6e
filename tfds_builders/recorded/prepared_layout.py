"""The prepared layout of the paper's code (arXiv:1810.11641), in the manner of open-reid: scanned and read.

```
<name>/images/PPPPPPPP_SS_FFFF.jpg         colour crops: person P, sequence S, frame F
<name>/meta.json, <name>/splits.json
<name>_depth/images/PPPPPPPP_SS_FFFF.jpg   depth crops, 8-bit grey; both images of one instant have one name
```

`meta.json` is {"name", "shot", "num_cameras", "identities": [[[file, ...] per camera] per identity]}: an identity is an
index into that list. It is a person in one set of clothes, so one P can have several. Without that file, identities
follow from the file names. `splits.json` lists, for each fold, the identities of "train", "val", "query" and "gallery";
without it they are drawn from a seed. The twin's own JSON files are not read.

Depth is grey x `grey_mm` millimetres. Which grey the published files have at which distance is published nowhere;
`GREY_MM` makes the `metric` representation reproduce grey/255, but for grey 0, which is taken as invalid, as in every
depth image here. JPEG smears the edges of invalid areas, so small greys beside them are no depths.
The files hold no person mask: where depth is valid is stored as the mask, and the crop as the person's box.
"""

import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.core.errors import InputError
from tfds_builders import schema
from tfds_builders.recorded import crops, images, splits, tree
from tfds_builders.recorded.frames import SPLITS, BadFrame, Finding, Frame, Scan

GREY_MM = 8000 / 255
GREY_MM_RANGE = (0.01, 257.0)  # 255 x 257 is the greatest depth that can be stored
GREY_MM_DOC = "millimetres of one grey level of the prepared layout's 8-bit depth, whose true unit is not published"
GROUPINGS = ("identity", "person")
_TWIN = "_depth"
_NAME = re.compile(r"([0-9]{8})_([0-9]{2})_([0-9]{4})\.jpg")
_SHAPE_TOLERANCE = 0.1


class _Place(NamedTuple):
    """What the labels of a file follow from: P and S of its name, and where `meta.json` lists it."""

    person: int
    sequence: int
    identity: int
    camera: int

    @property
    def recording(self) -> tuple[int, int]:
        return self.person, self.sequence


def is_prepared(paths: Sequence[str]) -> bool:
    """Whether files of a tree, from `listing`, show that it has the prepared layout (whole or not)."""
    return any(_image(path) for path in paths)


def listing(root: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """The root and the files of a tree, for `RecordedBuilder.listing`.

    Args:
        root: the folder that holds `<name>/` and `<name>_depth/`; or `<name>/` itself with its twin beside it, which
            chooses one where several datasets lie side by side. The root then is its parent, in which nothing but the
            two is looked at.

    Raises:
        InputError: as `tree.listing`.
    """
    twin = root.with_name(root.name + _TWIN) if root.name else root
    if not ((root / "images").is_dir() and (twin / "images").is_dir()):
        return root, tree.listing(root)
    return root.parent, [f"{half.name}/{path}" for half in (root, twin) for path in tree.listing(half)]


def scan(
    root: pathlib.Path,
    paths: Sequence[str],
    *,
    fold: int,
    sizes: Mapping[str, int],
    seed: int,
    recording_types: Callable[[int], int] = lambda sequence: 0,
    grouping: str = "identity",
    keep: Callable[[int], bool] = lambda sequence: True,
    outfit: Callable[[int], int] = lambda sequence: 0,
) -> Scan:
    """Understands a tree in the prepared layout.

    A frame without its colour or its depth file stays in the scan: `read` finds it unpaired, so that it counts among
    those that cannot be used.

    Args:
        root: from `listing`.
        paths: likewise.
        fold: which of the splits in `splits.json`.
        sizes: identities (or people) of each split of a whole dataset, for a split from a seed.
        seed: of that split.
        recording_types: from sequence S to a key of `schema.RECORDING_TYPES`.
        grouping: what `person_id` is. "identity": the index in `meta.json`, with the camera ids and the splits there.
            "person": P, so that a person in other clothes stays the same person, with S as the camera; splits are drawn
            from `seed`, since published ones may have one person's identities on both sides.
        keep: which sequences S to use.
        outfit: from sequence S to a number of what the person wears there; where there is no `meta.json`, an identity
            is a person in one outfit.

    Returns:
        `clothes_id` is the identity under both groupings; `recording_id` counts the (P, S) of the whole tree.

    Raises:
        InputError: it is no such tree, or its JSON files are malformed or contradict the file names or each other.
    """
    assert grouping in GROUPINGS, grouping
    home = _home(root, paths)
    meta, published = f"{home}/meta.json", f"{home}/splits.json"
    findings: list[Finding] = []
    if meta in paths:
        places, identities = _from_meta(root, meta, findings)
    else:
        places, identities = _from_names(paths, home, outfit)
    findings += _other_files(paths, home, places) + _few_frames(meta, places, identities)
    by_person = grouping == "person"
    if published in paths and not by_person:
        ids = splits.official_splits(root / published, fold, identities)
        how: dict[str, Any] = {"source": "splits.json", "fold": fold}
    else:
        pool = {place.person for place in places.values()} if by_person else range(identities)
        ids = splits.seeded_split(list(pool), sizes, seed)
        how = {"source": "seed", "seed": seed}
    frames, unused = _frames(home, places, ids, by_person=by_person, keep=keep, recording_types=recording_types)
    findings += [Finding("person", published, f"identity {one} is in no list; left out") for one in unused]
    metadata = {
        "layout": "prepared",
        "person_id": "P of the file name" if by_person else "index in meta.json",
        "depth_unit": "8-bit grey x the knob grey_mm, in mm; the true unit is not published",
        "mask": schema.VALID_DEPTH,
        "split": {**how, "person_ids": ids},
        "persons_of_identities": {str(place.identity): place.person for place in places.values()},
    }
    return Scan(frames, findings, metadata)


def _frames(
    home: str,
    places: Mapping[str, _Place],
    ids: Mapping[str, Sequence[int]],
    *,
    by_person: bool,
    keep: Callable[[int], bool],
    recording_types: Callable[[int], int],
) -> tuple[dict[str, list[Frame]], list[int]]:
    """The frames of each split, and the ids that are in none."""
    split_of = {one: split for split in SPLITS for one in ids[split]}
    recordings = {key: index for index, key in enumerate(sorted({place.recording for place in places.values()}))}
    frames: dict[str, list[Frame]] = {split: [] for split in SPLITS}
    unused: set[int] = set()
    for name, place in sorted(places.items(), key=lambda item: (item[1].identity, item[1].camera, item[0])):
        person_id = place.person if by_person else place.identity
        if person_id not in split_of:
            unused.add(person_id)
        elif keep(place.sequence):
            frame = Frame(
                person_id=person_id,
                camera_id=place.sequence if by_person else place.camera,
                recording_id=recordings[place.recording],
                frame_id=int(name[12:16]),
                rgb=f"{home}/images/{name}",
                depth=f"{home}{_TWIN}/images/{name}",
                recording_type=recording_types(place.sequence),
                clothes_id=place.identity,
            )
            frames[split_of[person_id]].append(frame)
    return frames, sorted(unused)


def read(root: pathlib.Path, frame: Frame, knob_values: Mapping[str, Any]) -> dict[str, Any]:
    """The features of one frame but its labels, a `builder.Read`.

    Args:
        root: from `listing`.
        frame: from `scan`.
        knob_values: `height`, `width`, `grey_mm`.

    Raises:
        BadFrame: a file is missing, empty or damaged, the two have different shapes, or no depth is valid.
        InputError: the depth is no 8-bit grey image (folders that were swapped), or an image is too large.
    """
    height, width = knob_values["height"], knob_values["width"]
    rgb = images.read_rgb(root, frame.rgb)
    grey = images.read_depth(root, frame.depth, bits=8)
    check_shapes(frame, rgb, grey)
    depth_mm = np.rint(grey * knob_values["grey_mm"]).astype(np.uint16)
    around_rgb, around_depth = crops.whole(rgb, height / width), crops.whole(grey, height / width)
    depth = crops.cut(depth_mm, around_depth, height, width, nearest=True)
    if not depth.any():
        raise BadFrame("no_depth", frame.depth, "no pixel has a valid depth")
    return {
        "rgb": images.encode_png(crops.cut(rgb, around_rgb, height, width, nearest=False)),
        "depth": images.encode_png(depth),
        "mask": images.encode_png(np.where(depth > 0, 255, 0).astype(np.uint8)),
        "person_box": box_in(around_depth, grey.shape, height, width),
        "intrinsics": np.zeros(4, np.float32),
        "modalities": schema.PAIRED,
    }


def check_shapes(frame: Frame, rgb: np.ndarray, depth: np.ndarray) -> None:
    """Raises BadFrame unless both images show the same field: each is scaled on its own, so sizes may differ.

    Args:
        frame: names the files.
        rgb: [H, W, 3].
        depth: [h, w] with h/w as H/W to about a tenth.
    """
    (rows, columns), (depth_rows, depth_columns) = rgb.shape[:2], depth.shape
    expected = depth_rows * columns / rows
    if abs(depth_columns - expected) > 1 + _SHAPE_TOLERANCE * expected:
        raise BadFrame(
            "corrupt", frame.depth, f"it is {depth_columns}x{depth_rows} and its colour image {columns}x{rows} pixels"
        )


def box_in(window: crops.Window, shape: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """Where a whole image lies in its stored crop; beside it are bars.

    Args:
        window: from `crops.whole`.
        shape: (H, W, ...) of the image.
        height: rows of the stored crop.
        width: its columns.

    Returns:
        float32 (ymin, xmin, ymax, xmax), pixel edges of the stored crop.
    """
    down, across = height / window.height, width / window.width
    edges = (-window.top, -window.left, shape[0] - window.top, shape[1] - window.left)
    return np.array(edges, np.float32) * np.array([down, across, down, across], np.float32)


def _image(path: str) -> tuple[str, str] | None:
    """(`<name>`, file name) of an image at a place where this layout has images."""
    folder, _, name = path.rpartition("/")
    home, _, last = folder.rpartition("/")
    return (home, name) if last == "images" and _NAME.fullmatch(name) else None


def _home(root: pathlib.Path, paths: Sequence[str]) -> str:
    """`<name>`, relative to the root, of the only pair of folders with images; InputError if there is not one."""
    counts = Counter(found[0] for path in paths if (found := _image(path)))
    pairs = [home for home in counts if home + _TWIN in counts]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        raise InputError(
            f"--manual_dir={root} holds several datasets: {', '.join(pairs)}; give one, such as {root / pairs[0]}"
        )
    found = ", ".join(f"{home or '.'}/images ({count} files)" for home, count in counts.items()) or "no images"
    raise InputError(
        f"--manual_dir={root}: found {found}; needed are NAME/images and NAME{_TWIN}/images with files such as "
        "00000000_00_0000.jpg"
    )


def _from_meta(root: pathlib.Path, meta: str, findings: list[Finding]) -> tuple[dict[str, _Place], int]:
    """The place of every file that `meta.json` names, and how many identities that has; adds to `findings`."""
    path = root / meta
    identities = _identities(path)
    places: dict[str, _Place] = {}
    persons: dict[int, int] = {}
    recordings: dict[tuple[int, int], tuple[int, int]] = {}
    for identity, camera, name in _listed(identities):
        place = _Place(*_numbers(path, name), identity, camera)
        if places.get(name) == place:
            findings.append(Finding("duplicate", meta, f"it names {name} twice; used once"))
        places[name] = place
        if persons.setdefault(identity, place.person) != place.person:
            raise InputError(
                f"{path}: identity {identity} has files of the persons {persons[identity]} and {place.person} "
                f"({name}); give the published file"
            )
        before = recordings.setdefault(place.recording, (identity, camera))
        if before != (identity, camera):
            raise InputError(
                f"{path}: {name} is in identity {identity}, camera {camera}, other files of its sequence are in "
                f"identity {before[0]}, camera {before[1]}; give the published file"
            )
    return places, len(identities)


def _identities(path: pathlib.Path) -> list[list[list[str]]]:
    """The list in `meta.json`, of the shape it should have."""
    content = files.read_json(path, "give the published file, or remove it to go by file names")
    identities = content.get("identities") if isinstance(content, dict) else None
    if not isinstance(identities, list) or not all(
        isinstance(cameras, list)
        and all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in cameras)
        for cameras in identities
    ):
        raise InputError(
            f'{path} must hold {{"identities": [[[file, ...] per camera] per identity]}}; give the published file'
        )
    return identities


def _listed(identities: list[list[list[str]]]) -> Iterator[tuple[int, int, str]]:
    """(identity, camera, file name) of all that is listed."""
    for identity, cameras in enumerate(identities):
        for camera, names in enumerate(cameras):
            for name in names:
                yield identity, camera, name


def _numbers(path: pathlib.Path, name: str) -> tuple[int, int]:
    """P and S of a file name."""
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(f"{path} names {name!r}, which is no PPPPPPPP_SS_FFFF.jpg; give the published file")
    return int(match[1]), int(match[2])


def _from_names(paths: Sequence[str], home: str, outfit: Callable[[int], int]) -> tuple[dict[str, _Place], int]:
    """As `_from_meta` where only file names tell: an identity is a person in one outfit."""
    numbers = {name: _numbers(pathlib.Path(home), name) for _, name in _images(paths, home)}
    identities = sorted({(person, outfit(sequence)) for person, sequence in numbers.values()})
    index = {key: identity for identity, key in enumerate(identities)}
    sequences = sorted({sequence for _, sequence in numbers.values()})
    camera = {one: sum(outfit(other) == outfit(one) for other in sequences if other < one) for one in sequences}
    places = {
        name: _Place(person, sequence, index[person, outfit(sequence)], camera[sequence])
        for name, (person, sequence) in numbers.items()
    }
    return places, len(identities)


def _images(paths: Sequence[str], home: str) -> Iterator[tuple[str, str]]:
    """(path, file name) of the images of both halves."""
    for path in paths:
        found = _image(path)
        if found and found[0] in (home, home + _TWIN):
            yield path, found[1]


def _other_files(paths: Sequence[str], home: str, places: Mapping[str, _Place]) -> list[Finding]:
    """Findings for the files that are not used."""
    findings = []
    used = {path for path, name in _images(paths, home) if name in places}
    used |= {f"{half}/{name}" for half in (home, home + _TWIN) for name in ("meta.json", "splits.json")}
    for path in paths:
        if path not in used and path.startswith((f"{home}/", f"{home}{_TWIN}/")):
            words = "meta.json does not name it" if _image(path) else "its name fits nothing here"
            findings.append(Finding("ignored", path, f"{words}; left out"))
    return findings


def _few_frames(meta: str, places: Mapping[str, _Place], identities: int) -> list[Finding]:
    """Findings for the identities that cannot be matched with themselves."""
    counts = Counter(place.identity for place in places.values())
    return [
        Finding("person", meta, f"identity {identity} has {counts[identity] or 'no'} frame")
        for identity in range(identities)
        if counts[identity] < 2
    ]
