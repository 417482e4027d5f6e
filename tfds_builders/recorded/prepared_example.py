"""Writes a tiny tree in the prepared layout: figures made of boxes, nobody real."""

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rgbd_reid_jax.core import files

ROWS, COLUMNS = 96, 48
FRAMES = 3


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of one frame.

    Attributes:
        file: its name in both `images/` folders.
        box: (top, left, bottom, right) of the figure in pixel edges of the ROWS x COLUMNS images.
        colour: RGB within the box.
        grey: depth within the box, in grey levels; FAR around it.
    """

    file: str
    box: tuple[int, int, int, int]
    colour: tuple[int, int, int]
    grey: int


FAR = 200


def write(
    folder: pathlib.Path,
    name: str,
    identities: Sequence[tuple[int, Sequence[int]]],
    folds: Sequence[dict[str, list[int]]],
) -> list[Known]:
    """Writes `<name>/` and `<name>_depth/` below `folder`.

    Args:
        folder: made if missing.
        name: of the dataset.
        identities: for each, the person P and the sequence S of each camera; `FRAMES` frames each.
        folds: the content of `splits.json`.

    Returns:
        What is known of every frame, in the order of `meta.json`.
    """
    known, listed = [], []
    for identity, (person, sequences) in enumerate(identities):
        cameras = []
        for sequence in sequences:
            frames = [_frame(identity, person, sequence, number) for number in range(FRAMES)]
            cameras.append([one.file for one in frames])
            known += frames
        listed.append(cameras)
    for one in known:
        rgb = np.full((ROWS, COLUMNS, 3), 90, np.uint8)
        grey = np.full((ROWS, COLUMNS), FAR, np.uint8)
        top, left, bottom, right = one.box
        rgb[top:bottom, left:right] = one.colour
        grey[top:bottom, left:right] = one.grey
        files.write_bytes(folder / name / "images" / one.file, _jpeg(rgb))
        files.write_bytes(folder / f"{name}_depth" / "images" / one.file, _jpeg(grey))
    cameras_most = max(len(cameras) for cameras in listed)
    for half in (name, f"{name}_depth"):
        meta = {"name": half, "shot": "multiple", "num_cameras": cameras_most, "identities": listed}
        files.write_json(folder / half / "meta.json", meta)
        files.write_json(folder / half / "splits.json", list(folds))
    return known


def _frame(identity: int, person: int, sequence: int, number: int) -> Known:
    top, left = 8 * (1 + number), 8 + 8 * (person % 2)
    colour = (40 + 35 * (identity % 6), 220 - 30 * (identity % 7), 60 * (1 + sequence))
    box = (top, left, top + 72, left + 24)
    return Known(f"{person:08d}_{sequence:02d}_{number:04d}.jpg", box, colour, 70 + 6 * (identity % 8) + 2 * sequence)


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
