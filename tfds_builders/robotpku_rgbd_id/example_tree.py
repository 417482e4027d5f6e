"""Writes a tiny example of either layout: figures made of boxes, nobody real.

    python -m tfds_builders.robotpku_rgbd_id.example_tree --output=DIR [--layout=raw]

The raw layout of the archive is published nowhere: this one is a guess of the kind that is discovered.
"""

import dataclasses
import functools
import io
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from rgbd_reid_jax.core import files
from tfds_builders.recorded import example_command, prepared_example

LAYOUTS = ("prepared", "raw")
PEOPLE, SEQUENCES, FRAMES = 5, 2, 3
ROWS, COLUMNS = 240, 320
WALL_MM = 4000
_FOLD = {"trainval": [0, 1, 2, 5], "train": [0, 1, 5], "val": [2], "query": [3, 4], "gallery": [3, 4]}


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of one raw frame.

    Attributes:
        rgb: its colour file.
        depth: its depth file.
        box: (top, left, bottom, right) of the figure in pixel edges of the ROWS x COLUMNS images.
        colour: RGB within the box.
        mm: depth within the box, millimetres; WALL_MM around it.
    """

    rgb: str
    depth: str
    box: tuple[int, int, int, int]
    colour: tuple[int, int, int]
    mm: int


def write(folder: pathlib.Path, layout: str = "prepared") -> list[Any]:
    """Writes a tree below `folder`.

    Args:
        folder: made if missing.
        layout: "prepared": `pku/` and `pku_depth/`, five people and an identity without frames; "raw": whole frames in
            `RobotPKU/P01/S1/rgb/0001.jpg` and `.../depth/0001.png`.

    Returns:
        What is known of every frame: `prepared_example.Known`, or `Known`.
    """
    if layout == "raw":
        return [_write_raw(folder, p, s, n) for p in range(PEOPLE) for s in range(SEQUENCES) for n in range(FRAMES)]
    identities = [(person, range(SEQUENCES)) for person in range(PEOPLE)] + [(PEOPLE, ())]
    return prepared_example.write(folder, "pku", identities, [_FOLD])


def _write_raw(folder: pathlib.Path, person: int, sequence: int, number: int) -> Known:
    place = f"RobotPKU/P{person + 1:02d}/S{sequence + 1}"
    top, left = 40 + 4 * number, 60 + 20 * person
    one = Known(
        rgb=f"{place}/rgb/{number + 1:04d}.jpg",
        depth=f"{place}/depth/{number + 1:04d}.png",
        box=(top, left, top + 160, left + 56),
        colour=(40 + 40 * person, 200 - 30 * person, 60 + 60 * sequence + 15 * number),
        mm=1800 + 150 * person + 40 * sequence + 5 * number,
    )
    rgb = np.full((ROWS, COLUMNS, 3), 110, np.uint8)
    depth_mm = np.full((ROWS, COLUMNS), WALL_MM, np.uint16)
    depth_mm[:, :16] = 0  # where the projector's light does not reach
    inside = np.s_[one.box[0] : one.box[2], one.box[1] : one.box[3]]
    rgb[inside], depth_mm[inside] = one.colour, one.mm
    files.write_bytes(folder / one.rgb, _encoded(rgb, "JPEG", quality=95, subsampling=0))
    files.write_bytes(folder / one.depth, _encoded(depth_mm, "PNG"))
    return one


def _encoded(image: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    layouts = {layout: functools.partial(write, layout=layout) for layout in LAYOUTS}
    return example_command.run("robotpku_rgbd_id", layouts, arguments)


if __name__ == "__main__":
    sys.exit(main())
