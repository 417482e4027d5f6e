"""Writes a tiny tree in the format of BIWI RGBD-ID: five figures of boxes before two walls, nobody real.

    python -m tfds_builders.biwi_rgbd_id.example_tree --output=DIR [--layout=prepared]

File names, sizes, byte order and text columns are those of the dataset. Three of the figures appear again in Testing,
one of them with a letter in its file names. Everything is drawn in millimetres before the two cameras, so that it is
known where each figure must come out.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rgbd_reid_jax.core import files
from tfds_builders.recorded import example_command, prepared_example

WALL_MM = 4500
CLOTHES = ((200, 40, 40), (40, 160, 60), (40, 70, 200), (190, 160, 30), (150, 50, 170), (30, 160, 170), (230, 120, 40))
WALLS = ((90, 90, 95), (120, 110, 90))
SKIN = (205, 160, 130)
FOLD = {"trainval": [0, 1, 2, 4, 5], "train": [0, 1, 4], "val": [2, 5], "query": [3, 6, 7], "gallery": [3, 6, 7]}
"""A `splits.json` of one fold for the eight identities: figure 2 is trained on in some clothes and tested in others."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle that faces the cameras; millimetres, x to the right and y down from the depth camera's axis.

    Attributes:
        left: edge, and so on.
        top: edge.
        right: edge.
        bottom: edge.
        z: distance.
        colour: of the rectangle, RGB.
    """

    left: float
    top: float
    right: float
    bottom: float
    z: float
    colour: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Shot:
    """One instant and what is known of it.

    Attributes:
        sequence: "Training", "Testing/Still" or "Testing/Walking".
        person: number of the figure.
        letter: in its file names, or "".
        frame: number of the instant.
        user: index of the figure in the user map.
        boxes: what the figure is made of.
        wall: colour of the wall behind.
    """

    sequence: str
    person: int
    letter: str
    frame: int
    user: int
    boxes: tuple[Box, ...]
    wall: tuple[int, int, int]

    @property
    def stem(self) -> str:
        """What the names of its files begin with, below the tree's root."""
        return f"{self.sequence}/{self.person:03d}/{self.person:03d}{self.letter}_{self.frame:06d}"


def write(output: pathlib.Path) -> list[Shot]:
    """Writes the raw tree, 16 MB.

    Args:
        output: the folder to put `Training/` and `Testing/` into.

    Returns:
        What was drawn. The first figure's first instant is one plain box.
    """
    made = shots()
    for number, shot in enumerate(made):
        write_shot(output, shot, ground=number == 0)
    return made


def write_prepared(output: pathlib.Path) -> list[prepared_example.Known]:
    """Writes `biwi/` and `biwi_depth/` in the layout of the paper's code: the same people, other pictures.

    Args:
        output: the folder to put them into.

    Returns:
        What was drawn, in the order of `meta.json`.
    """
    identities = [(0, (0,)), (0, (1, 2)), (1, (0,)), (2, (0,)), (2, (1, 2)), (3, (0,)), (4, (0,)), (4, (1, 2))]
    return prepared_example.write(output, "biwi", identities, [FOLD])


def shots() -> list[Shot]:
    """All instants: two of each figure in Training, one in each Testing sequence of the figures 0, 2 and 4."""
    generator = np.random.default_rng(0)
    made = [Shot("Training", 0, "", 0, 1, (Box(-250, -700, 350, 900, 2500, CLOTHES[0]),), WALLS[0])]
    made += [_shot(generator, "Training", 0, "", 1, CLOTHES[0])]
    made += [
        _shot(generator, "Training", person, "", frame, CLOTHES[person]) for person in range(1, 5) for frame in (7, 8)
    ]
    for person, clothes, letter in ((0, 5, ""), (2, 6, "b"), (4, 4, "")):
        made += [
            _shot(generator, f"Testing/{kind}", person, letter, 3, CLOTHES[clothes]) for kind in ("Still", "Walking")
        ]
    return made


def _shot(generator: np.random.Generator, sequence: str, person: int, letter: str, frame: int, clothes) -> Shot:
    """A figure of head, trunk and legs, its height given by its number, somewhere before the cameras."""
    x, z = generator.uniform(-500, 500), generator.uniform(2100, 3400)
    height, feet = 1550 + 80 * person, 900.0
    top = feet - height
    trousers = tuple(value // 2 for value in clothes)
    boxes = (
        Box(x - 90, top, x + 90, top + 250, z, SKIN),
        Box(x - 230, top + 250, x + 230, top + 850, z, clothes),
        Box(x - 200, top + 850, x - 20, feet, z + 20, trousers),
        Box(x + 20, top + 850, x + 200, feet, z + 20, trousers),
    )
    wall = WALLS[sequence != "Training"]
    return Shot(sequence, person, letter, frame, 1 + person, boxes, wall)


def draw_depth(shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    """Depth in millimetres, uint16 [480, 640], and the user map, uint8 [480, 640]."""
    depth = np.full((480, 640), WALL_MM, np.uint16)
    depth[:, :8] = 0  # as a Kinect, which sees no depth at its left edge
    users = np.zeros((480, 640), np.uint8)
    for box in shot.boxes:
        # Pixel (i, j) looks at ((j - 319.5) / 575.8, (i - 239.5) / 575.8).
        columns = _pixels(319.5 + 575.8 * box.left / box.z, 319.5 + 575.8 * box.right / box.z)
        rows = _pixels(239.5 + 575.8 * box.top / box.z, 239.5 + 575.8 * box.bottom / box.z)
        depth[rows, columns] = round(box.z)
        users[rows, columns] = shot.user
    return depth, users


def draw_colour(shot: Shot) -> np.ndarray:
    """The colour image, uint8 [960, 1280, 3]: f = 525 at half the size, 25 mm beside the depth camera."""
    image = np.empty((960, 1280, 3), np.uint8)
    image[:] = shot.wall
    for box in shot.boxes:
        columns = _pixels(639.5 + 1050 * (box.left + 25) / box.z, 639.5 + 1050 * (box.right + 25) / box.z)
        rows = _pixels(479.5 + 1050 * box.top / box.z, 479.5 + 1050 * box.bottom / box.z)
        image[rows, columns] = box.colour
    return image


def _pixels(low: float, high: float) -> slice:
    """The pixels whose centres lie between two positions; pixel i has its centre at i."""
    return slice(max(int(np.ceil(low)), 0), max(int(np.ceil(high)), 0))


def joints(shot: Shot) -> np.ndarray:
    """20 rows of the skeleton file, float64 [20, 14]: joints down the middle of the figure."""
    body = shot.boxes[0]
    left, right = min(box.left for box in shot.boxes), max(box.right for box in shot.boxes)
    top, bottom = body.top, max(box.bottom for box in shot.boxes)
    rows = np.zeros((20, 14))
    x = (left + right) / 2 if len(shot.boxes) == 1 else shot.boxes[2].left + 60
    y = np.linspace(top + 20, bottom - 20, 20)
    rows[:, 0] = shot.user
    rows[:, 1:4] = np.stack([np.full(20, x), -y, np.full(20, body.z)], axis=1) / 1000  # the SDK's y points up
    rows[:, 4] = 319.5 + 575.8 * x / body.z
    rows[:, 5] = 239.5 + 575.8 * y / body.z
    rows[:, 6] = 2
    rows[:, 8], rows[:, 9] = np.maximum(np.arange(20) - 1, 0), np.arange(20)
    rows[:, 13] = 1
    return rows


def write_shot(root: pathlib.Path, shot: Shot, *, ground: bool = False) -> None:
    """Writes the five files of one instant.

    Args:
        root: the tree.
        shot: what to draw.
        ground: whether the ground plane was found; else its file is empty, as most are.
    """
    depth, users = draw_depth(shot)
    clock = 8_348_863 + 100_000 * shot.frame
    name = {
        kind: root / f"{shot.stem}-{letter}_{clock + later}_{kind}"
        for letter, kind, later in (
            ("a", "rgb.jpg", 0),
            ("b", "depth.pgm", 261),
            ("c", "userMap.pgm", 261),
            ("d", "skel.txt", 329),
            ("e", "groundCoeff.txt", 329),
        )
    }
    _save(name["rgb.jpg"], draw_colour(shot))
    files.write_bytes(name["depth.pgm"], pgm(depth))
    files.write_bytes(name["userMap.pgm"], pgm(users))
    lines = [",".join(f"{value:g}" for value in row) for row in joints(shot)]
    files.write_text(name["skel.txt"], "\n".join(lines) + "\n")
    files.write_text(name["groundCoeff.txt"], "0,0.998,-0.063,0.9\n" if ground else "")


def pgm(image: np.ndarray) -> bytes:
    """A binary PGM of uint8 or uint16 [H, W]; two bytes are big-endian."""
    height, width = image.shape
    maxval = 255 if image.dtype == np.uint8 else 65535
    content = image.astype(image.dtype.newbyteorder(">")).tobytes()
    return f"P5\n{width} {height}\n{maxval}\n".encode() + content


def _save(path: pathlib.Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "JPEG", quality=92, subsampling=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return example_command.run("biwi_rgbd_id", {"raw": write, "prepared": write_prepared}, arguments)


if __name__ == "__main__":
    sys.exit(main())
