"""Writes a tiny tree as TVRID has it: figures made of boxes seen from above, nobody real.

python -m tfds_builders.tvrid.example_tree --output=DIR
"""

import csv
import dataclasses
import io
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rgbd_reid_jax.core import files
from tfds_builders.recorded import example_command
from tfds_builders.tvrid.scan import COLUMNS

CAMERAS = ("flat", "upward", "downward", "upsideDown")
PASSAGES = ("in", "out")
TRAINING_PEOPLE, TEST_PEOPLE, FRAMES = 5, 3, 2
SIDE = 300
FLOOR_MM = 2600
UNITS_PER_MM = 10
_ENDS = (("_RGB.png", "_depth.png"), ("_RGB_person.png", "_depth_depth.png"), ("_RGB.png", "_D.png"))


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of one frame.

    Attributes:
        side: "train" or "test", of the CSV file.
        person: in the CSV file, and so on.
        camera: name.
        passage: name.
        gallery_id: text.
        rgb: colour file.
        box: (top, left, bottom, right) of the figure in pixel edges of the 300x300 images.
        colour: RGB within the box.
        mm: depth within the box; FLOOR_MM around it.
    """

    side: str
    person: int
    camera: str
    passage: str
    gallery_id: str
    rgb: str
    box: tuple[int, int, int, int]
    colour: tuple[int, int, int]
    mm: int


def write(folder: pathlib.Path) -> list[Known]:
    """Writes `DB_extracted/` below `folder`, which is made if missing; returns what is known of every frame."""
    home, known = folder / "DB_extracted", []
    rows: dict[str, list[list[str]]] = {"train": [], "test": []}
    for person in range(TRAINING_PEOPLE + TEST_PEOPLE):
        side = "train" if person < TRAINING_PEOPLE else "test"
        for camera, passage in np.ndindex(len(CAMERAS), len(PASSAGES)):
            gallery_id = f"g{person}{camera}{passage}xy"
            parts = [f"person_{person}", CAMERAS[camera], PASSAGES[passage]] if side == "train" else [gallery_id]
            top = {"train": "train", "test": "test_public"}[side]
            ends = _ENDS[(person + camera) % len(_ENDS)]
            for number in range(FRAMES):
                stem = f"DB_extracted/{top}/{'/'.join(parts)}/{1700000000000 + 40 * number}"
                box = (80 + 20 * passage, 90 + 10 * number, 200 + 20 * passage, 190 + 10 * number)
                colour = (30 + 25 * person, 220 - 25 * person, 60 * camera)
                mm = 1100 + 60 * person + 15 * camera
                one = Known(
                    side, person, CAMERAS[camera], PASSAGES[passage], gallery_id, stem + ends[0], box, colour, mm
                )
                _write(folder, one, stem + ends[1])
                known.append(one)
            # The published paths were written under Windows.
            row = [gallery_id, person, CAMERAS[camera], camera, PASSAGES[passage], passage, "\\".join(parts)]
            rows[side].append([str(value) for value in row])
    _write_csv(home / "train_labels.csv", rows["train"])
    _write_csv(home / "public_test_labels.csv", rows["test"])
    return known


def _write(folder: pathlib.Path, one: Known, depth: str) -> None:
    rgb = np.full((SIDE, SIDE, 3), 235, np.uint8)
    samples = np.full((SIDE, SIDE), FLOOR_MM * UNITS_PER_MM, np.uint16)
    inside = np.s_[one.box[0] : one.box[2], one.box[1] : one.box[3]]
    rgb[inside], samples[inside] = one.colour, one.mm * UNITS_PER_MM
    samples[:12] = 0  # not measured
    for file, image in ((one.rgb, rgb), (depth, samples)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.write_bytes(folder / file, buffer.getvalue())


def _write_csv(path: pathlib.Path, rows: list[list[str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([list(COLUMNS), *rows])
    files.write_text(path, buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return example_command.run("tvrid", {"extracted": write}, arguments)


if __name__ == "__main__":
    sys.exit(main())
