"""One frame of the tree as the schema wants it: millimetres, one grid for both images, the person cut out.

Imports neither TFDS nor JAX: it runs in many processes.
"""

import math
import pathlib
from typing import Any

import cv2
import numpy as np

from rgbd_reid_jax.core.errors import InputError
from tfds_builders.recorded import crops, images
from tfds_builders.recorded.frames import BadFrame, Frame

ASPECT_TOLERANCE = 0.01
"""Greatest relative difference between the aspects of two images of one frame: rounding to whole pixels."""
MIN_PERSON_PIXELS = 100
NEAREST_MM = 500
"""No depth camera sees nearer all over its image."""
_PERCENTILE = 99
_UNITS_MM = (0.1, 1.0, 10.0, 1000.0)
_RGB, _DEPTH = 1, 2  # as in `schema`, which imports TFDS


def read_frame(root: pathlib.Path, frame: Frame, knobs: dict[str, Any]) -> dict[str, Any]:
    """The features of a frame but its labels.

    Args:
        root: the tree.
        frame: from `scan`; `extra` may hold "box" and "intrinsics".
        knobs: values of the config's knobs.

    Raises:
        BadFrame: it cannot be used.
        InputError: it has what no frame of such a tree should have.
    """
    rgb = images.read_rgb(root, frame.rgb) if frame.rgb else None
    depth = depth_mm(root, frame.depth, knobs["depth_unit_mm"], knobs["depth_bits"]) if frame.depth else None
    mask = images.read_mask(root, frame.mask) if frame.mask else None
    sizes = {
        file: image.shape[:2]
        for file, image in ((frame.rgb, rgb), (frame.depth, depth), (frame.mask, mask))
        if image is not None
    }
    height, width = common_size(root, sizes)
    own = next(iter(sizes.values()))  # of the colour image, else of the depth image
    box = _box_on_grid(root, frame, own, (height, width)) if "box" in frame.extra else None
    person = _person(frame, mask, box, (height, width))

    rows, columns = knobs["height"], knobs["width"]
    aspect = rows / columns
    edges = box or (crops.mask_box(person) if mask is not None else None)
    window = crops.around(*edges, aspect=aspect, margin=knobs["crop_margin"]) if edges else crops.whole(person, aspect)
    found: dict[str, np.ndarray] = {}
    kinds = {"rgb": (rgb, (3,), np.uint8), "depth": (depth, (), np.uint16), "mask": (person, (), np.uint8)}
    for name, (image, channels, dtype) in kinds.items():
        if image is None:
            found[name] = np.zeros((rows, columns, *channels), dtype)
        else:
            on_grid = _resized(image, (height, width), nearest=name != "rgb")
            found[name] = crops.cut(on_grid, window, rows, columns, nearest=name != "rgb")
    if depth is not None and not found["depth"].any():
        raise BadFrame("no_depth", frame.depth, "no pixel of the person's crop has a valid depth")
    if not found["mask"].any():
        raise BadFrame("empty_mask", frame.mask or frame.file, "the person is too thin to be seen in the stored crop")
    return {
        **{name: images.encode_png(image) for name, image in found.items()},
        "person_box": np.asarray(crops.mask_box(found["mask"]), np.float32),
        "intrinsics": crops.window_intrinsics(_intrinsics(root, frame, (height, width)), window, rows, columns),
        "modalities": _RGB * bool(frame.rgb) + _DEPTH * bool(frame.depth),
    }


def depth_mm(root: pathlib.Path, file: str, unit_mm: float, bits: int) -> np.ndarray:
    """Millimetres, uint16 [H, W], 0 = invalid.

    Samples of 0, of 65535 (what sensors write for "too far") and beyond 65.535 m are invalid.

    Args:
        root: the tree.
        file: path below it.
        unit_mm: millimetres of one step of the stored samples.
        bits: 16 or 8.

    Raises:
        BadFrame: it does not decode, or its depths cannot be what `unit_mm` makes of them.
        InputError: as `images.read_depth`.
    """
    samples = images.read_depth(root, file, bits=bits)
    if file.lower().endswith(".pgm") and bits == 16:
        images.check_byte_order(root, file, samples, unit_mm)
    if bits == 16:
        samples = np.where(samples == 65535, 0, samples)
    millimetres = np.rint(samples * float(unit_mm))
    far = np.percentile(millimetres[samples > 0], _PERCENTILE) if samples.any() else NEAREST_MM
    if not NEAREST_MM <= far <= images.FARTHEST_MM:
        fitting = [f"{one:g}" for one in _UNITS_MM if NEAREST_MM <= far / unit_mm * one <= images.FARTHEST_MM]
        mend = f"depth_unit_mm={' or '.join(fitting)} would fit" if fitting else "no usual unit fits"
        raise BadFrame(
            "out_of_range", file, f"its depths reach {far / 1000:.3g} m where one step is {unit_mm:g} mm; {mend}"
        )
    return np.where(millimetres > 65535, 0, millimetres).astype(np.uint16)


def common_size(root: pathlib.Path, sizes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """The greatest (height, width) of a frame's images.

    Args:
        root: the tree, for the message.
        sizes: (height, width) by file.

    Raises:
        InputError: their aspects differ, so they cannot show the same view.
    """
    largest = max(sizes, key=lambda file: sizes[file])
    height, width = sizes[largest]
    for file, (rows, columns) in sizes.items():
        if abs(rows * width / (columns * height) - 1) > ASPECT_TOLERANCE:
            raise InputError(
                f"{root / file} has {columns}x{rows} pixels and {largest} {width}x{height}: their aspects differ; "
                "give images that are aligned to one view"
            )
    return height, width


def _resized(image: np.ndarray, size: tuple[int, int], *, nearest: bool) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    how = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=how)


def _box_on_grid(
    root: pathlib.Path, frame: Frame, own: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) in whole pixels of the grid, within it."""
    x0, y0, x1, y1 = frame.extra["box"]
    down, across = size[0] / own[0], size[1] / own[1]
    top, bottom = _span(y0 * down, y1 * down, size[0])
    left, right = _span(x0 * across, x1 * across, size[1])
    if top >= bottom or left >= right:
        raise InputError(
            f"{root / frame.file}: box={x0:g},{y0:g},{x1:g},{y1:g} lies outside its {own[1]}x{own[0]} pixels; mend it"
        )
    return top, left, bottom, right


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    low, high = min(max(low, 0), size), min(max(high, 0), size)
    return math.floor(low), math.ceil(high)


def _person(
    frame: Frame, mask: np.ndarray | None, box: tuple[int, int, int, int] | None, size: tuple[int, int]
) -> np.ndarray:
    """255 on the person: the mask within the box, as far as they are given; uint8 [H, W]."""
    person = np.full(size, 255, np.uint8)
    if mask is not None:
        person = _resized(mask, size, nearest=True)
        if person.all():
            raise BadFrame("full_mask", frame.mask, "every pixel is the person's")
    if box:
        top, left, bottom, right = box
        inside = np.zeros_like(person)
        inside[top:bottom, left:right] = person[top:bottom, left:right]
        person = inside
    if mask is not None and (pixels := np.count_nonzero(person)) < MIN_PERSON_PIXELS:
        raise BadFrame("empty_mask", frame.mask, f"{pixels} pixels are the person's, fewer than {MIN_PERSON_PIXELS}")
    return person


def _intrinsics(root: pathlib.Path, frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """(fx, fy, cx, cy) of the grid, pixel centres at integer + 0.5; zeros where unknown."""
    if "intrinsics" not in frame.extra:
        return np.zeros(4)
    width, height, fx, fy, cx, cy = frame.extra["intrinsics"]
    across, down = size[1] / width, size[0] / height
    if abs(across / down - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"{root / frame.file}: its images have {size[1]}x{size[0]} pixels and its camera's intrinsics are for "
            f"{width:g}x{height:g}; give those of the images"
        )
    return np.array([fx * across, fy * down, (cx + 0.5) * across, (cy + 0.5) * down])
