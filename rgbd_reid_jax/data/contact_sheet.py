"""A picture of a dataset's pairs: colour, depth, and both on top of each other, so that misalignment is seen.

The third panel is the colour image, pale and with its contrast stretched, under the steps of depth (red) and the
outline of the mask (blue). Either line lies on the two pixels beside a step, so that they coincide (black) where depth
and mask agree; on a well-aligned pair both follow the person in the colour image.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.data.inspection import Split, images_of
from tfds_builders import pictures
from tfds_builders.schema import RECORDING_TYPES, VALID_DEPTH, WHOLE_IMAGE

_PEOPLE, _RECORDINGS, _CELLS = 4, 3, 12  # of a split; recordings of a person before one camera
_SHEET_WIDTH = 1400
_PANEL_PIXELS = 208 * 104
_GAP, _LINE, _HEADING = 8, 16, 32
_LETTER = 6.4  # width of a caption's letter
_EDGE = 0.06  # step of depth between neighbours, as a share of it, that counts as an edge
_BEFORE_MM, _BEHIND_MM = 500.0, 1000.0  # what is told apart around the person's median depth
_PALE = (128, 240)  # values of a pale image: two channels of each line's colour are far below, paper is above
_RED, _BLUE, _BLACK = (230, 0, 0), (0, 0, 255), (0, 0, 0)
_CHANNELS = {"rgb": (3,), "depth": (), "mask": ()}


def write(path: str | os.PathLike[str], splits: Mapping[str, Split]) -> None:
    """Writes the sheet of a dataset as a PNG file."""
    files.write_bytes(path, pictures.encode_sheet(sheet(splits)))


def sheet(splits: Mapping[str, Split]) -> np.ndarray:
    """uint8 [H, W, 3] RGB: for each split some people, each before every camera (or in every recording).

    Args:
        splits: from `inspection.look_at`.
    """
    sizes = [seen.size for split in splits.values() for seen in split.seen if seen.size]
    height, width = sizes[0] if sizes else (2, 1)
    scale = math.sqrt(_PANEL_PIXELS / (height * width))
    panel = (round(scale * height), round(scale * width))
    return np.concatenate([_page(split, panel) for split in splits.values()], axis=0)


def has_person_mask(metadata: Mapping[str, Any] | None) -> bool:
    """Whether the masks of a dataset tell the person from the background, or are all that has a depth, or all.

    Args:
        metadata: of the dataset's builder; its "mask" says what the masks are.
    """
    return (metadata or {}).get("mask") not in (VALID_DEPTH, WHOLE_IMAGE)


def chosen_rows(split: Split) -> list[int]:
    """The records to show: people spread over the split, of each the middle frame before each camera.

    Of more than `_CELLS` such frames, those are taken whose camera, then whose person, was taken least: every camera
    that these people were seen by is shown before one is shown again. A person before one camera is shown in up to
    `_RECORDINGS` recordings.
    """
    person_ids, camera_ids = split.labels["person_id"], split.labels["camera_id"]
    candidates = []
    for person in _spread(np.unique(person_ids), _PEOPLE):
        own = np.flatnonzero(person_ids == person)
        kind = camera_ids[own]
        shown = np.unique(kind)
        if len(shown) == 1:
            kind = split.labels["recording_id"][own]
            shown = _spread(np.unique(kind), _RECORDINGS)
        for one in shown:
            same = own[kind == one]
            candidates.append(int(same[len(same) // 2]))
    rows: list[int] = []
    people, cameras = Counter(), Counter()
    while len(rows) < min(_CELLS, len(candidates)):
        left = [row for row in candidates if row not in rows]
        row = min(left, key=lambda row: (cameras[camera_ids[row]], people[person_ids[row]]))
        rows.append(row)
        cameras[camera_ids[row]] += 1
        people[person_ids[row]] += 1
    return [row for row in candidates if row in rows]


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))]


def _page(split: Split, panel: tuple[int, int]) -> np.ndarray:
    """The cells of one split in lines below its heading; `panel` is (height, width) of an image in pixels."""
    cells = [_cell(split, row, panel) for row in chosen_rows(split)]
    height, width = cells[0].shape[:2]
    per_line = max(1, _SHEET_WIDTH // width)
    heading = _paper(_HEADING, per_line * width)
    people = len(np.unique(split.labels["person_id"]))
    mask = "outline of the mask blue, both black" if _masked(split) else "no person mask"
    words = f"colour | depth: near is bright, invalid black | colour, pale: steps of depth red, {mask}"
    pictures.write_text(heading, f"{split.name}: {people} people, {len(split.seen)} frames.  {words}", _GAP, 22, 0.5)
    lines = [heading]
    for start in range(0, len(cells), per_line):
        line = _paper(height, per_line * width)
        for place, cell in enumerate(cells[start : start + per_line]):
            line[:, place * width : (place + 1) * width] = cell
        lines.append(line)
    return np.concatenate(lines, axis=0)


def _masked(split: Split) -> bool:
    return has_person_mask(split.source.dataset_info.metadata)


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), pictures.PAPER, np.uint8)


def _cell(split: Split, row: int, panel: tuple[int, int]) -> np.ndarray:
    """Three panels of one record with its caption."""
    images = images_of(split.source.__getitems__([row])[0])
    height, width = panel
    captions = list(_captions(split, row, int(3 * width / _LETTER)))
    cell = _paper(height + len(captions) * _LINE + 2 * _GAP, 3 * (width + 1) + 2 * _GAP)
    recorded = {name: bool(split.recorded(name)[row]) for name in ("rgb", "depth")}
    used = images if _masked(split) else {**images, "mask": None}
    for place, picture in enumerate(_panels(used, recorded, split.seen[row].person_mm, panel)):
        left = _GAP + place * (width + 1)
        cell[:height, left : left + width] = picture
    for number, caption in enumerate(captions):
        pictures.write_text(cell, caption, _GAP, height + (number + 1) * _LINE - 2, 0.38)
    return cell


def _captions(split: Split, row: int, letters: int) -> Iterator[str]:
    of = {name: int(values[row]) for name, values in split.labels.items()}
    person_mm, file = split.seen[row].person_mm, split.seen[row].file
    kind = RECORDING_TYPES.get(of["recording_type"], "?")
    yield f"person {of['person_id']}  camera {of['camera_id']}  {kind}"
    yield f"recording {of['recording_id']}  frame {of['frame_id']}  clothes {of['clothes_id']}"
    at = f"{person_mm / 1000:.2f} m" if person_mm else "unknown"
    yield f"person at {at}" if _masked(split) else f"median depth {at} (no person mask)"
    yield (file if len(file) <= letters else f"...{file[3 - letters :]}") or f"record {row}"


def _panels(
    images: Mapping[str, np.ndarray | None], recorded: Mapping[str, bool], person_mm: float, size: tuple[int, int]
) -> Sequence[np.ndarray]:
    """Colour, depth and overlay, uint8 [*size, 3]; a panel whose image is not there says why.

    Args:
        images: from `images_of`; without a person mask, "mask" is None.
        recorded: whether "rgb" and "depth" were.
        person_mm: around it depths are told apart.
        size: (height, width) of a panel in pixels.
    """
    rgb, depth, mask = (
        _fitted(image, size, smooth=name == "rgb")
        if image is not None and image.shape[2:] == _CHANNELS[name] and recorded.get(name, True)
        else None
        for name, image in ((name, images[name]) for name in _CHANNELS)
    )
    near, far = person_mm - _BEFORE_MM, person_mm + _BEHIND_MM
    left = _absent("colour", size, recorded["rgb"]) if rgb is None else rgb
    middle = _absent("depth", size, recorded["depth"]) if depth is None else pictures.depth_picture(depth, near, far)
    overlay = _paper(*size) if rgb is None else _pale(rgb)
    nowhere = np.zeros(size, bool)
    of_depth = nowhere if depth is None else _beside_steps(depth.astype(np.float64), _depth_step)
    of_mask = nowhere if mask is None else _beside_steps(mask > 0, np.not_equal)
    for where, colour in ((of_depth, _RED), (of_mask, _BLUE), (of_depth & of_mask, _BLACK)):
        overlay[where] = colour
    return left, middle, overlay


def _absent(what: str, size: tuple[int, int], recorded: bool) -> np.ndarray:
    """A panel without its image: it was never recorded, or is damaged."""
    panel = _paper(*size)
    for number, word in enumerate([what, "damaged"] if recorded else ["no", what, "recorded"]):
        pictures.write_text(panel, word, _GAP, size[0] // 2 + number * _LINE, 0.38)
    return panel


def _pale(rgb: np.ndarray) -> np.ndarray:
    """The image, uint8 [H, W, 3], with its least and greatest value at those of `_PALE`."""
    return cv2.normalize(rgb, np.empty_like(rgb), *_PALE, cv2.NORM_MINMAX)


def _fitted(image: np.ndarray, size: tuple[int, int], *, smooth: bool = False) -> np.ndarray:
    """The image [H, W(, 3)] in its own aspect in a panel of zeros, centred; pixels of small ones become squares."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    rows, columns = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    panel = np.zeros((*size, *image.shape[2:]), image.dtype)
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    how = cv2.INTER_AREA if smooth and scale < 1 else cv2.INTER_NEAREST
    panel[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows), interpolation=how)
    return panel


def _beside_steps(values: np.ndarray, step: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """bool [H, W]: the pixels on both sides of each step between neighbours in a row or column.

    Args:
        values: [H, W].
        step: of two arrays, bool where there is one between them.
    """
    found = np.zeros(values.shape, bool)
    for along, marked in ((values, found), (values.T, found.T)):
        here = step(along[:-1], along[1:])
        marked[:-1] |= here
        marked[1:] |= here
    return found


def _depth_step(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one > 0) & (other > 0) & (np.abs(one - other) > _EDGE * np.minimum(one, other))
