"""Reads one frame of TVRID.

Depth is stored in whole millimetres: samples x `depth_unit_mm`, rounded to the nearest. Its unit is not published. The
reference code divides by 10000 where the maximum exceeds 1000; that gives metres if a sample is 0.1 mm, which is the
default. Cameras of this kind (Intel RealSense D455) are often set to 1 mm, and do not see what is nearer than about a
third of a metre. A frame is left out whose median depth would be nearer than NEAREST_MM or farther than FARTHEST_MM;
with a wrong unit that is most of them, and the build stops.

There is no person mask. The person is the nearest thing of some size (`recorded.foreground`), a metre deep from the
head down; where there is none, the mask is where depth is valid.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfds_builders.recorded import crops, foreground, images, prepared_layout
from tfds_builders.recorded.frames import BadFrame, Frame
from tfds_builders.schema import PAIRED

NEAREST_MM, FARTHEST_MM = 300, 10_000
_DEPTH_OF_A_PERSON_MM = 1000  # seen from above
_UNITS_MM = (0.1, 1.0, 10.0)


def read_frame(root: pathlib.Path, frame: Frame, knob_values: Mapping[str, Any]) -> dict[str, Any]:
    """The features of one frame but its labels, a `recorded.builder.Read`.

    Args:
        root: the tree.
        frame: from `scan`.
        knob_values: `height`, `width`, `depth_unit_mm`.

    Raises:
        BadFrame: a file is missing or damaged, the two have different shapes, no depth is valid, or it is out of range.
        InputError: the depth is no 16-bit image (files that were swapped), or an image is too large.
    """
    if not (frame.rgb and frame.depth):
        raise BadFrame("unpaired", frame.file, f"there is no {'depth' if frame.rgb else 'colour'} image for it")
    height, width = knob_values["height"], knob_values["width"]
    rgb = images.read_rgb(root, frame.rgb)
    samples = images.read_depth(root, frame.depth)
    prepared_layout.check_shapes(frame, rgb, samples)
    if not samples.any():
        raise BadFrame("no_depth", frame.depth, "no pixel has a valid depth")
    _check_unit(frame.depth, samples, knob_values["depth_unit_mm"])
    depth_mm = np.rint(np.minimum(samples * knob_values["depth_unit_mm"], 65535)).astype(np.uint16)
    around_rgb, around_depth = crops.whole(rgb, height / width), crops.whole(samples, height / width)
    mask = foreground.nearest(depth_mm, _DEPTH_OF_A_PERSON_MM)
    if mask.mean() < foreground.SMALLEST:
        mask = depth_mm > 0
    return {
        "rgb": images.encode_png(crops.cut(rgb, around_rgb, height, width, nearest=False)),
        "depth": images.encode_png(crops.cut(depth_mm, around_depth, height, width, nearest=True)),
        "mask": images.encode_png(crops.cut(mask.astype(np.uint8) * 255, around_depth, height, width, nearest=True)),
        "person_box": prepared_layout.box_in(around_depth, samples.shape, height, width),
        "intrinsics": np.zeros(4, np.float32),
        "modalities": PAIRED,
        **frame.extra,
    }


def _check_unit(file: str, samples: np.ndarray, unit_mm: float) -> None:
    """Raises BadFrame where no camera of this kind sees such depths."""
    median = float(np.median(samples[samples > 0]))
    if NEAREST_MM <= median * unit_mm <= FARTHEST_MM:
        return
    fitting = [one for one in _UNITS_MM if NEAREST_MM <= median * one <= FARTHEST_MM]
    mend = f"where most frames are like that, say depth_unit_mm={fitting[0]:g}" if fitting else "no usual unit fits"
    raise BadFrame(
        "out_of_range",
        file,
        f"its median depth is {median * unit_mm / 1000:.2f} m with depth_unit_mm={unit_mm:g}, which this camera does "
        f"not measure; {mend}",
    )
