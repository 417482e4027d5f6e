"""A picture of a dataset's pairs: colour, depth, and both on top of each other, so that misalignment is seen.

In the third panel the mask's outline is green and the depth image's edges are red, on the grey colour image: on a
well-aligned pair both follow the person.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from rgbd_reid_jax.core import files
from rgbd_reid_jax.data.inspection import Split, images_of
from tfds_builders import pictures
from tfds_builders.schema import RECORDING_TYPES

_PEOPLE, _PER_PERSON = 4, 3
_SHEET_WIDTH = 1400
_PANEL_PIXELS = 208 * 104
_GAP, _LINE, _HEADING = 8, 16, 32
_LETTER = 6.4  # width of a caption's letter
_EDGE = 0.06  # step of depth between neighbours, as a share of it, that counts as an edge
_BEFORE_MM, _BEHIND_MM = 500.0, 1000.0  # what is told apart around the person's median depth
_GREEN, _RED = (40, 220, 40), (255, 50, 30)


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


def chosen_rows(split: Split) -> list[int]:
    """The records to show: people spread over the split, of each the middle frame of up to `_PER_PERSON` cameras.

    A person before one camera is shown once per recording.
    """
    people = np.unique(split.labels["person_id"])
    rows = []
    for person in _spread(people, _PEOPLE):
        own = np.flatnonzero(split.labels["person_id"] == person)
        several = len(np.unique(split.labels["camera_id"][own])) > 1
        kind = split.labels["camera_id" if several else "recording_id"][own]
        for one in _spread(np.unique(kind), _PER_PERSON):
            same = own[kind == one]
            rows.append(int(same[len(same) // 2]))
    return rows


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))]


def _page(split: Split, panel: tuple[int, int]) -> np.ndarray:
    """The cells of one split in lines below its heading; `panel` is (height, width) of an image in pixels."""
    cells = [_cell(split, row, panel) for row in chosen_rows(split)]
    height, width = cells[0].shape[:2]
    per_line = max(1, _SHEET_WIDTH // width)
    heading = _paper(_HEADING, per_line * width)
    people = len(np.unique(split.labels["person_id"]))
    words = "colour | depth: near is bright, invalid black | outline of the mask green, edges of depth red"
    pictures.write_text(heading, f"{split.name}: {people} people, {len(split.seen)} frames.  {words}", _GAP, 22, 0.5)
    lines = [heading]
    for start in range(0, len(cells), per_line):
        line = _paper(height, per_line * width)
        for place, cell in enumerate(cells[start : start + per_line]):
            line[:, place * width : (place + 1) * width] = cell
        lines.append(line)
    return np.concatenate(lines, axis=0)


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), pictures.PAPER, np.uint8)


def _cell(split: Split, row: int, panel: tuple[int, int]) -> np.ndarray:
    """Three panels of one record with its caption."""
    images = images_of(split.source.__getitems__([row])[0])
    height, width = panel
    captions = list(_captions(split, row, int(3 * width / _LETTER)))
    cell = _paper(height + len(captions) * _LINE + 2 * _GAP, 3 * (width + 1) + 2 * _GAP)
    for place, picture in enumerate(_panels(images, split.seen[row].person_mm, panel)):
        left = _GAP + place * (width + 1)
        cell[:height, left : left + width] = picture
    for number, caption in enumerate(captions):
        pictures.write_text(cell, caption, _GAP, height + (number + 1) * _LINE - 2, 0.38)
    return cell


def _captions(split: Split, row: int, letters: int) -> Iterator[str]:
    of = {name: int(values[row]) for name, values in split.labels.items()}
    person_mm, file = split.seen[row].person_mm, split.seen[row].file
    at = f"  at {person_mm / 1000:.2f} m" if person_mm else ""
    yield f"person {of['person_id']}  camera {of['camera_id']}  {RECORDING_TYPES.get(of['recording_type'], '?')}{at}"
    yield f"recording {of['recording_id']}  frame {of['frame_id']}  clothes {of['clothes_id']}"
    yield (file if len(file) <= letters else f"...{file[3 - letters :]}") or f"record {row}"


def _panels(images: Mapping[str, np.ndarray | None], person_mm: float, size: tuple[int, int]) -> Sequence[np.ndarray]:
    """Colour, depth and overlay, uint8 [*size, 3]; what is damaged is left white."""
    blank = _paper(*size)
    rgb, depth, mask = (images[name] for name in ("rgb", "depth", "mask"))
    colour = _fitted(rgb, size, smooth=True) if rgb is not None and rgb.ndim == 3 else blank
    if depth is None or depth.ndim != 2 or mask is None or mask.ndim != 2:
        return colour, blank, blank
    depth, mask = _fitted(depth, size), _fitted(mask, size)
    picture = pictures.depth_picture(depth, person_mm - _BEFORE_MM, person_mm + _BEHIND_MM)
    overlay = (0.7 * colour.mean(axis=2, keepdims=True).repeat(3, axis=2) + 40).astype(np.uint8)
    overlay[_edges(depth)] = _RED
    overlay[_outline(mask)] = _GREEN
    return colour, picture, overlay


def _fitted(image: np.ndarray, size: tuple[int, int], *, smooth: bool = False) -> np.ndarray:
    """The image [H, W(, 3)] in its own aspect in a panel of zeros, centred; pixels of small ones become squares."""
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    rows, columns = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    panel = np.zeros((*size, *image.shape[2:]), image.dtype)
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    how = cv2.INTER_AREA if smooth and scale < 1 else cv2.INTER_NEAREST
    panel[top : top + rows, left : left + columns] = cv2.resize(image, (columns, rows), interpolation=how)
    return panel


def _edges(depth: np.ndarray) -> np.ndarray:
    """bool [H, W]: where a valid pixel has a neighbour below or right at quite another depth."""
    mm = depth.astype(np.float64)
    found = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        before, after = (np.take(mm, range(i, mm.shape[axis] - 1 + i), axis) for i in (0, 1))
        step = (before > 0) & (after > 0) & (np.abs(before - after) > _EDGE * np.minimum(before, after))
        found |= np.pad(step, [(0, int(one == axis)) for one in (0, 1)])
    return found


def _outline(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: the pixels of the mask that border on something else."""
    inside = (mask > 0).astype(np.uint8)
    return (inside - cv2.erode(inside, np.ones((3, 3), np.uint8))) > 0
