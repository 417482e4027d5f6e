"""What a layout says of one frame, and the codes that stand for its names.

Codes count from 0 in the order of the names, in which numbers count as numbers: `2` is before `10`.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from rgbd_reid_jax.core.errors import InputError

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
"""What a split may be called, in small letters."""
RGB_FORMATS = ("bmp", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
DEPTH_FORMATS = {16: ("pgm", "png", "tif", "tiff"), 8: ("bmp", "jpeg", "jpg", "pgm", "png", "tif", "tiff")}
MASK_FORMATS = ("bmp", "pgm", "png", "tif", "tiff")
_NUMBER = re.compile("([0-9]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One frame by name.

    Attributes:
        where: what names it to people: a path, or a line of the manifest.
        person: whose it is, any text, and so on.
        camera: which camera took it.
        recording: one person before one camera without a break.
        frame: the instant within the recording.
        split: a key of `SPLIT_NAMES`' values, "" where none is given.
        rgb: path of the colour image below the root, "" where there is none, and so on.
        depth: the depth image.
        mask: the person's mask.
        clothes: the outfit.
        recording_type: a key of `schema.RECORDING_TYPES`.
        box: (x0, y0, x1, y1) around the person in pixel edges of the colour image, else of the depth image.
    """

    where: str
    person: str
    camera: str
    recording: str
    frame: str
    split: str = ""
    rgb: str = ""
    depth: str = ""
    mask: str = ""
    clothes: str = ""
    recording_type: int = 0
    box: tuple[float, float, float, float] | None = None


def in_order(name: str) -> Any:
    """A key that sorts names, numbers within them by value."""
    parts = _NUMBER.split(name)  # text, number, text, ...; a number's digits tell its size by their count first
    key = [(len(part.lstrip("0")), part.lstrip("0")) if odd % 2 else (0, part) for odd, part in enumerate(parts)]
    return key, name


def codes(names: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """0, 1, ... for different names (each of one part or more), in their order."""
    ordered = sorted(set(names), key=lambda name: tuple(in_order(part) for part in name))
    return {name: code for code, name in enumerate(ordered)}


def check_formats(where: str, files: dict[str, str], depth_bits: int) -> None:
    """Raises InputError where an image is of a format that is not read.

    Args:
        where: names the frame to people.
        files: path of "rgb", "depth" and "mask", "" where there is none.
        depth_bits: 8 or 16.
    """
    formats = {"rgb": RGB_FORMATS, "depth": DEPTH_FORMATS[depth_bits], "mask": MASK_FORMATS}
    for role, file in files.items():
        kind = file.rpartition(".")[2].lower()
        if file and kind not in formats[role]:
            hint = ""
            if role == "depth" and kind in DEPTH_FORMATS[8]:
                hint = "; for 8-bit depth say depth_bits=8 (or are colour and depth swapped?)"
            name = where if where.endswith(file) else f"{where}: {file}"
            raise InputError(f"{name} is {role} in the format {kind!r}; give {', '.join(formats[role])}{hint}")
