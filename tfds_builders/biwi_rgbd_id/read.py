"""Reading one frame; of the raw tree: the person cut out of the depth image and, by calibration, of the colour image.

Calibration, as published with the dataset: both cameras are pinholes with the centre in the middle of the image; f is
575.8 pixels for depth and 525 for colour at 640x480; the colour camera sees a point 25 mm further to the right. With
pixel edges counted from 0 at the left and top border, the depth pixel (x, y) at Z millimetres is seen in colour at

    x' = s (525 ((x - 320) / 575.8 + 25 / Z) + 320)        y' = s (525 (y - 240) / 575.8 + 240)

with s = 2, since colour images are stored at 1280x960. Plain doubling would be 9.7 % too large.

Munaro, Fossati, Basso, Menegatti, Van Gool: One-Shot Person Re-Identification with a Consumer Depth Camera, in Person
Re-Identification, Springer 2014, doi 10.1007/978-1-4471-6296-4_8.
"""

import pathlib
import re
from typing import Any

import numpy as np

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded import crops, images, prepared_layout
from tfds_builders.recorded.frames import BadFrame, Frame
from tfds_builders.schema import PAIRED

WIDTH, HEIGHT = 640, 480
DEPTH_FOCAL, COLOUR_FOCAL = 575.8, 525.0
BASELINE_MM = 25.0
LEAST_PERSON_PX = 2_000
"""A smaller user map shows a part of a person, or furniture."""
GREATEST_PERSON_PX = WIDTH * HEIGHT // 4
"""A larger one is the tracker's failure: it took walls or the floor for the person."""
JOINTS = 20
JOINT_COLUMNS = ("x", "y", "z", "u", "v", "state", "qx", "qy", "qz", "qw")
_FILE_COLUMNS = ("id", "x", "y", "z", "u", "v", "state", "quality", "start", "end", "qx", "qy", "qz", "qw")
_LEAST_JOINTS_ON_PERSON = JOINTS // 4


def read_frame(root: pathlib.Path, frame: Frame, knob_values: dict[str, Any]) -> dict[str, Any]:
    """One frame of either layout, a `recorded.builder.Read`."""
    if "skeleton" in frame.extra:
        return read_raw(root, frame, knob_values)
    return {**prepared_layout.read(root, frame, knob_values), **no_body()}


def read_raw(root: pathlib.Path, frame: Frame, knob_values: dict[str, Any]) -> dict[str, Any]:
    """The features of a frame of the raw tree, but its labels.

    The crop's grid is that of the depth image. Colour is cut where the person's median depth puts the crop's corners,
    so what is nearer or farther is displaced by parallax: 2.5 mm where depth differs by a tenth.

    Args:
        root: the tree.
        frame: from `scan`; `extra` holds the files of the skeleton and of the ground plane.
        knob_values: `height` and `width` of the crop, `crop_margin`.

    Returns:
        Features of `tfds_builders.schema`, and `skeleton` and `ground_plane` as the builder declares them.

    Raises:
        BadFrame: a file is missing, empty or damaged; the user map holds no person, or too much of one; the person
            has no valid depth.
        InputError: an image has another size, format or byte order than the dataset's.
    """
    depth, user_map, rgb = _images(root, frame)
    mask = person_mask(user_map)
    _check_area(frame, int(mask.sum()))
    on_person = depth[mask & (depth > 0)]
    if not len(on_person):
        raise BadFrame("no_depth", frame.depth, "no pixel of the person has a valid depth")
    height, width = knob_values["height"], knob_values["width"]
    box = crops.mask_box(mask)
    window = crops.around(*box, aspect=height / width, margin=knob_values["crop_margin"])
    seen = colour_window(window, float(np.median(on_person)), rgb.shape[1] / WIDTH)
    intrinsics = np.array([DEPTH_FOCAL, DEPTH_FOCAL, WIDTH / 2, HEIGHT / 2])
    stored_mask = crops.cut(np.where(mask, np.uint8(255), np.uint8(0)), window, height, width, nearest=True)
    return {
        "rgb": images.encode_png(crops.cut(rgb, seen, height, width, nearest=False)),
        "depth": images.encode_png(crops.cut(depth, window, height, width, nearest=True)),
        "mask": images.encode_png(stored_mask),
        "person_box": _stored_box(box, window, height, width),
        "intrinsics": crops.window_intrinsics(intrinsics, window, height, width),
        "modalities": PAIRED,
        "skeleton": _skeleton(_numbers(root, frame.extra["skeleton"], len(_FILE_COLUMNS)), mask, window, height, width),
        "ground_plane": _ground_plane(_numbers(root, frame.extra["ground"], 4)),
    }


def no_body() -> dict[str, np.ndarray]:
    """The optional features where nothing is known: all NaN, so that nobody takes them for measurements."""
    return {
        "skeleton": np.full((JOINTS, len(JOINT_COLUMNS)), np.nan, np.float32),
        "ground_plane": np.full(4, np.nan, np.float32),
    }


def person_mask(user_map: np.ndarray) -> np.ndarray:
    """The person, bool [H, W], in a map of user indices, uint8 [H, W], 0 = nobody.

    The index is whatever the tracker gave, and a tracker that loses and finds parts gives several: all count. But two
    that are each as large as a person are two people, or a person and furniture; then the largest counts alone.
    """
    areas = np.bincount(user_map.ravel(), minlength=2)
    areas[0] = 0
    if (areas >= LEAST_PERSON_PX).sum() > 1:
        return user_map == areas.argmax()
    return user_map > 0


def colour_window(window: crops.Window, depth_mm: float, scale: float) -> crops.Window:
    """Where the colour camera sees a window of the depth image.

    Args:
        window: in pixels of the depth image.
        depth_mm: distance of what is seen, millimetres along the optical axis.
        scale: width of the colour image over 640.
    """

    def across(x: float) -> float:
        return scale * (COLOUR_FOCAL * ((x - WIDTH / 2) / DEPTH_FOCAL + BASELINE_MM / depth_mm) + WIDTH / 2)

    def down(y: float) -> float:
        return scale * (COLOUR_FOCAL * (y - HEIGHT / 2) / DEPTH_FOCAL + HEIGHT / 2)

    left, right = round(across(window.left)), round(across(window.left + window.width))
    top, bottom = round(down(window.top)), round(down(window.top + window.height))
    return crops.Window(top, left, max(bottom - top, 1), max(right - left, 1))


def _images(root: pathlib.Path, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth uint16 [480, 640], user map uint8 [480, 640], colour uint8 [H, W, 3]."""
    for words, file in (("colour image", frame.rgb), ("depth image", frame.depth), ("user map", frame.mask)):
        if not file:
            raise BadFrame("unpaired", frame.extra["name"], f"this instant has no {words}")
    depth = images.read_pgm(root, frame.depth, maxval=65535)
    _check_depth_size(root, frame.depth, depth)
    images.check_byte_order(root, frame.depth, depth)
    user_map = images.read_pgm(root, frame.mask, maxval=255)
    _check_depth_size(root, frame.mask, user_map)
    rgb = images.read_rgb(root, frame.rgb)
    rows, columns = rgb.shape[:2]
    if rows * WIDTH != columns * HEIGHT:
        raise InputError(
            f"{root / frame.rgb} has {columns}x{rows} pixels; colour images are 1280x960, or scaled by one factor: "
            "the calibration fits no others"
        )
    return depth, user_map, rgb


def _check_depth_size(root: pathlib.Path, file: str, image: np.ndarray) -> None:
    if image.shape != (HEIGHT, WIDTH):
        raise InputError(
            f"{root / file} has {image.shape[1]}x{image.shape[0]} pixels instead of {WIDTH}x{HEIGHT}: "
            "the calibration fits no others; give the camera's own files"
        )


def _check_area(frame: Frame, area: int) -> None:
    if area < LEAST_PERSON_PX:
        raise BadFrame("empty_mask", frame.mask, f"the person covers {area} pixels, fewer than {LEAST_PERSON_PX}")
    if area > GREATEST_PERSON_PX:
        raise BadFrame("full_mask", frame.mask, f"the person covers {area} pixels, more than {GREATEST_PERSON_PX}")


def _stored_box(box: tuple[int, int, int, int], window: crops.Window, height: int, width: int) -> np.ndarray:
    """(top, left, bottom, right) of the frame as float32 [4] in pixels of the crop."""
    origin = np.array([window.top, window.left] * 2)
    scale = np.array([height / window.height, width / window.width] * 2)
    return np.clip((np.array(box) - origin) * scale, 0, [height, width] * 2).astype(np.float32)


def _numbers(root: pathlib.Path, file: str, columns: int) -> np.ndarray:
    """The rows of a text file, float64 [n, columns]; none where it is missing or not such a file.

    What is no number becomes NaN: the recorder wrote "-1.#IND" for what it could not compute.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        text = (root / file).read_text("utf-8") if file else ""
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    except OSError as error:
        raise InputError(f"cannot read {root / file} ({error.strerror}); mend its permissions or the disk") from error
    rows = [[_number(word) for word in re.split(r"[\s,;]+", line.strip(" \t,;"))] for line in text.split("\n") if line]
    rows = [row for row in rows if len(row) == columns]
    return np.array(rows, np.float64).reshape(-1, columns)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")


def _skeleton(rows: np.ndarray, mask: np.ndarray, window: crops.Window, height: int, width: int) -> np.ndarray:
    """The joints of the person on the mask, float32 [20, 10], `JOINT_COLUMNS`; u and v in pixels of the crop.

    Args:
        rows: float64 [n, 14] as in the file, 20 for each person that was tracked.
        mask: bool [H, W], the person in the depth image.
        window: what was cut of the depth image.
        height: rows of the crop.
        width: columns of the crop.

    Returns:
        All NaN where nobody's joints lie on the mask.
    """
    people = rows[: len(rows) // JOINTS * JOINTS].reshape(-1, JOINTS, len(_FILE_COLUMNS))
    fits = [_joints_on(person, mask) for person in people]
    if max(fits, default=0) < _LEAST_JOINTS_ON_PERSON:
        return no_body()["skeleton"]
    joints = people[int(np.argmax(fits))][:, [_FILE_COLUMNS.index(name) for name in JOINT_COLUMNS]]
    u, v = JOINT_COLUMNS.index("u"), JOINT_COLUMNS.index("v")
    joints[:, u] = (joints[:, u] + 0.5 - window.left) * width / window.width  # the file counts pixels, not edges
    joints[:, v] = (joints[:, v] + 0.5 - window.top) * height / window.height
    return joints.astype(np.float32)


def _joints_on(person: np.ndarray, mask: np.ndarray) -> int:
    """How many of a person's joints, float64 [20, 14], lie on the mask."""
    u, v = person[:, _FILE_COLUMNS.index("u")], person[:, _FILE_COLUMNS.index("v")]
    inside = (u >= 0) & (u < mask.shape[1]) & (v >= 0) & (v < mask.shape[0])
    return int(mask[v[inside].astype(int), u[inside].astype(int)].sum())


def _ground_plane(rows: np.ndarray) -> np.ndarray:
    """(a, b, c, d) of the plane a x + b y + c z + d = 0, metres, float32 [4]; NaN where it was not found."""
    plane = rows[0] if len(rows) else np.zeros(4)
    return plane.astype(np.float32) if plane[:3].any() else no_body()["ground_plane"]
