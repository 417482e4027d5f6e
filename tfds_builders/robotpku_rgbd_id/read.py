"""Reads one raw frame of RobotPKU RGBD-ID and finds the person in it by depth.

Nothing published says whether frames are whole images or crops, or gives a mask or a calibration. An image that is
wider than high is taken as a whole frame: the person is the nearest thing of some size in it
(`recorded.foreground`). A higher image is taken as a crop and used whole.

Colour and depth are taken as registered to each other: both show the same field, at sizes that may differ.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfds_builders.recorded import crops, foreground, images, prepared_layout
from tfds_builders.recorded.frames import BadFrame, Frame
from tfds_builders.schema import PAIRED

_DEPTH_OF_A_PERSON_MM = 600  # seen from the side
_LARGEST = 0.6


def read_frame(root: pathlib.Path, frame: Frame, knob_values: Mapping[str, Any]) -> dict[str, Any]:
    """The features of one frame but its labels, a `recorded.builder.Read`; of either layout.

    Args:
        root: the tree.
        frame: from `scan`, or from `prepared_layout.scan`.
        knob_values: of a `RobotPkuConfig`.

    Raises:
        BadFrame: a file is missing or damaged, or no person was found.
        InputError: the depth has another number of bits than the first one had, or an image is too large.
    """
    if "depth_bits" not in frame.extra:
        return prepared_layout.read(root, frame, knob_values)
    if not (frame.rgb and frame.depth):
        raise BadFrame("unpaired", frame.file, f"there is no {'depth' if frame.rgb else 'colour'} image for it")
    height, width, bits = knob_values["height"], knob_values["width"], frame.extra["depth_bits"]
    rgb = images.read_rgb(root, frame.rgb)
    samples = images.read_depth(root, frame.depth, bits=bits)
    prepared_layout.check_shapes(frame, rgb, samples)
    unit = knob_values["depth_unit_mm" if bits == 16 else "grey_mm"]
    depth_mm = np.rint(np.minimum(samples * unit, 65535)).astype(np.uint16)
    crop = knob_values["crop"]
    if crop == "foreground" or (crop == "auto" and samples.shape[1] > samples.shape[0]):
        mask = _person(depth_mm, frame.depth)
        box, margin = crops.mask_box(mask), knob_values["crop_margin"]
    else:
        mask = depth_mm > 0
        box, margin = (0, 0, *depth_mm.shape), 0.0
    window = crops.around(*box, aspect=height / width, margin=margin)
    scale = rgb.shape[0] / depth_mm.shape[0]
    rgb_window = crops.Window(
        *(round(edge * scale) for edge in (window.top, window.left)),
        *(max(round(side * scale), 1) for side in (window.height, window.width)),
    )
    depth = crops.cut(depth_mm, window, height, width, nearest=True)
    if not depth.any():
        raise BadFrame("no_depth", frame.depth, "no pixel has a valid depth")
    edges = np.array(box, np.float32) - np.array([window.top, window.left] * 2, np.float32)
    shrink = np.array([height / window.height, width / window.width] * 2, np.float32)
    return {
        "rgb": images.encode_png(crops.cut(rgb, rgb_window, height, width, nearest=False)),
        "depth": images.encode_png(depth),
        "mask": images.encode_png(crops.cut(mask.astype(np.uint8) * 255, window, height, width, nearest=True)),
        "person_box": edges * shrink,
        "intrinsics": np.zeros(4, np.float32),
        "modalities": PAIRED,
    }


def _person(depth_mm: np.ndarray, file: str) -> np.ndarray:
    """bool [H, W], the person in a whole frame; BadFrame where there is none, or it fills the frame."""
    mask = foreground.nearest(depth_mm, _DEPTH_OF_A_PERSON_MM)
    share = float(mask.mean())
    if share < foreground.SMALLEST:
        raise BadFrame("empty_mask", file, "no thing of a person's size was found by its depth")
    if share > _LARGEST:
        raise BadFrame("full_mask", file, f"the nearest thing covers {100 * share:.0f} % of the frame")
    return mask
