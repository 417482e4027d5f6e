"""A tiny tree of the formats that `rgbd_folder` reads: drawn boxes before a wall, seeded, nobody's likeness.

    python -m tfds_builders.rgbd_folder.example_tree --output=DIR [--layout=folders|csv|jsonl]

Six people, two cameras, two frames each. Colour is 160x120 JPEG, depth 80x60 16-bit PNG in millimetres. With folders a
PNG mask tells who the person is, in a manifest a box does. A person is a box whose front has a known size and distance.
"""

import csv
import dataclasses
import functools
import io
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from rgbd_reid_jax.core import files
from tfds_builders.recorded import example_command, images

LAYOUTS = ("folders", "csv", "jsonl")
PEOPLE = {"anna": "train", "bo": "train", "chris": "train", "dora": "val", "emil": "test", "fay": "test"}
CAMERAS = ("door", "hall")
FRAMES = 2
WIDTH, HEIGHT = 160, 120
FOCAL = 130.0
INTRINSICS = {"width": WIDTH, "height": HEIGHT, "fx": FOCAL, "fy": FOCAL, "cx": 79.5, "cy": 59.5}
WALL_MM = 4500


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One frame and what is known of it.

    Attributes:
        person: the person's name, and so on.
        camera: the camera.
        frame: the instant.
        rgb: path of the colour image below the root.
        depth: path of the depth image.
        mask: path of the mask, "" in a manifest.
        box: (x0, y0, x1, y1) of the person's front, pixel edges of the colour image.
        distance_mm: of the person's front.
    """

    person: str
    camera: str
    frame: int
    rgb: str
    depth: str
    mask: str
    box: tuple[int, int, int, int]
    distance_mm: int

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of the person's front."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * self.distance_mm / FOCAL, (y1 - y0) * self.distance_mm / FOCAL


def write(folder: pathlib.Path, layout: str = "folders", seed: int = 0) -> list[Drawn]:
    """Writes the tree.

    Args:
        folder: its root.
        layout: one of `LAYOUTS`.
        seed: of sizes, places and colours.

    Returns:
        What is known of each frame.
    """
    random = np.random.default_rng(seed)
    drawn = []
    for person, split in PEOPLE.items():
        width, height = 2 * random.integers(9, 14), 2 * random.integers(32, 42)
        clothes = random.integers(40, 255, (2, 3), dtype=np.uint8)
        for camera in CAMERAS:
            for frame in range(FRAMES):
                distance = 2000 + 40 * len(drawn)  # no two depth images are equal, as with a camera
                left, top = 2 * (10 + len(drawn)), 2 * random.integers(5, 15)  # nor two colour images
                box = int(left), int(top), int(left + width), int(top + height)
                drawn.append(_draw(folder, layout, split, person, camera, frame, box, distance, clothes))
    files.write_json(folder / "intrinsics.json", dict.fromkeys(CAMERAS, INTRINSICS))
    if layout != "folders":
        files.write_text(folder / f"manifest.{layout}", _manifest(drawn, layout))
    return drawn


def _draw(
    folder: pathlib.Path,
    layout: str,
    split: str,
    person: str,
    camera: str,
    frame: int,
    box: tuple[int, int, int, int],
    distance_mm: int,
    clothes: np.ndarray,
) -> Drawn:
    x0, y0, x1, y1 = box
    rgb = np.tile(np.linspace(60, 110, WIDTH, dtype=np.uint8)[None, :, None], (HEIGHT, 1, 3))
    rgb[y0 : (y0 + y1) // 2, x0:x1], rgb[(y0 + y1) // 2 : y1, x0:x1] = clothes
    depth = np.full((HEIGHT // 2, WIDTH // 2), WALL_MM, np.uint16)
    depth[:, -3:] = 0
    depth[y0 // 2 : y1 // 2, x0 // 2 : x1 // 2] = distance_mm
    stem = f"{split}/{person}/{camera}/first/{frame}" if layout == "folders" else f"images/{person}-{camera}-{frame}"
    jpeg = io.BytesIO()
    Image.fromarray(rgb).save(jpeg, "JPEG", quality=95)
    files.write_bytes(folder / f"{stem}_rgb.jpg", jpeg.getvalue())
    files.write_bytes(folder / f"{stem}_depth.png", images.encode_png(depth))
    mask = ""
    if layout == "folders":
        mask = f"{stem}_mask.png"
        person_pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
        person_pixels[y0:y1, x0:x1] = 255
        files.write_bytes(folder / mask, images.encode_png(person_pixels))
    return Drawn(person, camera, frame, f"{stem}_rgb.jpg", f"{stem}_depth.png", mask, box, distance_mm)


def _manifest(drawn: list[Drawn], layout: str) -> str:
    lines: list[dict[str, Any]] = [
        {
            "rgb": one.rgb,
            "depth": one.depth,
            "split": PEOPLE[one.person],
            "person_id": one.person,
            "camera_id": one.camera,
            "recording_id": "first",
            "frame_id": one.frame,
            "recording_type": "standing",
            "box": list(one.box),
        }
        for one in drawn
    ]
    if layout == "jsonl":
        return "".join(json.dumps(line) + "\n" for line in lines)
    content = io.StringIO()
    writer = csv.DictWriter(content, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(line | {"box": ",".join(map(str, line["box"]))} for line in lines)
    return content.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    layouts = {layout: functools.partial(write, layout=layout) for layout in LAYOUTS}
    return example_command.run("rgbd_folder", layouts, arguments)


if __name__ == "__main__":
    sys.exit(main())
