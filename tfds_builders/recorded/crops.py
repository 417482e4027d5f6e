"""From full frames to stored crops: windows around a person, cut and scaled, colour and depth on one grid.

A window keeps the stored image's aspect, so that one pixel is as many millimetres high as wide and body proportions
survive. What lies outside the frame is black, invalid and not the person. Pixel centres lie at integer + 0.5.

Deviation: re-identification crops are often stretched to the input's aspect; shape is what depth is good for.
"""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels; it may reach beyond its image.

    Attributes:
        top: first row.
        left: first column.
        height: rows, at least 1.
        width: columns, at least 1.
    """

    top: int
    left: int
    height: int
    width: int


def around(top: float, left: float, bottom: float, right: float, *, aspect: float, margin: float) -> Window:
    """The window of height/width `aspect` around a box of pixel edges.

    Args:
        top: upper edge in pixels, and so on.
        left: left edge.
        bottom: lower edge.
        right: right edge.
        aspect: height/width of the stored image.
        margin: added on each side, as a share of the window's height.
    """
    height = max(bottom - top, (right - left) * aspect, 1.0) * (1 + 2 * margin)
    rows = max(round(height), 1)
    columns = max(round(height / aspect), 1)
    return Window(round((top + bottom - rows) / 2), round((left + right - columns) / 2), rows, columns)


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, bottom, right), pixel edges around the nonzero pixels of [H, W]; zeros where there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def whole(image: np.ndarray, aspect: float) -> Window:
    """The window of height/width `aspect` around all of an image [H, W, ...]."""
    return around(0, 0, image.shape[0], image.shape[1], aspect=aspect, margin=0.0)


def cut(image: np.ndarray, window: Window, height: int, width: int, *, nearest: bool) -> np.ndarray:
    """The window's content scaled to `height` x `width`.

    Args:
        image: [H, W] or [H, W, C] of uint8 or uint16.
        window: what to cut.
        height: rows of the result.
        width: columns of the result.
        nearest: take the nearest pixel, as depth and masks need, whose values must not be mixed; else the area's mean
            when shrinking, linear interpolation when enlarging.

    Returns:
        The same dtype, [height, width] or [height, width, C].
    """
    top, left = max(window.top, 0), max(window.left, 0)
    bottom, right = min(window.top + window.height, image.shape[0]), min(window.left + window.width, image.shape[1])
    content = np.zeros((window.height, window.width, *image.shape[2:]), image.dtype)
    if top < bottom and left < right:
        content[top - window.top : bottom - window.top, left - window.left : right - window.left] = image[
            top:bottom, left:right
        ]
    shrinking = window.height >= height
    how = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(content, (width, height), interpolation=how)


def window_intrinsics(intrinsics: np.ndarray, window: Window, height: int, width: int) -> np.ndarray:
    """(fx, fy, cx, cy) of the stored crop, float32 [4], from those of the frame; zeros stay zeros.

    Args:
        intrinsics: (fx, fy, cx, cy) in pixels of the frame, pixel centres at integer + 0.5.
        window: what was cut.
        height: rows of the stored crop.
        width: columns of the stored crop.
    """
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    if not (fx and fy):
        return np.zeros(4, np.float32)
    across, down = width / window.width, height / window.height
    return np.array([fx * across, fy * down, (cx - window.left) * across, (cy - window.top) * down], np.float32)
