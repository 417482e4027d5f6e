"""The person in a depth image without a mask: the nearest thing of some size. A heuristic; look at what it gives."""

import cv2
import numpy as np

SMALLEST = 0.02
"""Share of the image that a person covers at least."""
_BIN_MM, _BINS = 100, 200
_START_SHARE = 0.05


def nearest(depth_mm: np.ndarray, range_mm: int) -> np.ndarray:
    """The largest connected area of the nearest `range_mm` that hold something.

    Depths are counted in bins of 100 mm. The range starts at the nearest bin from which on it holds SMALLEST of the
    image, and which holds a twentieth of that itself: specks do not start it.

    Args:
        depth_mm: uint16 [H, W], 0 = invalid.
        range_mm: how deep a person is, as the camera sees it.

    Returns:
        bool [H, W]; all False where there is no such range.
    """
    bins = np.bincount(depth_mm[depth_mm > 0] // _BIN_MM, minlength=_BINS)
    inside = np.convolve(bins, np.ones(range_mm // _BIN_MM, int), "full")[range_mm // _BIN_MM - 1 :]
    starts = np.flatnonzero((inside >= SMALLEST * depth_mm.size) & (bins >= _START_SHARE * inside))
    if not len(starts):
        return np.zeros(depth_mm.shape, bool)
    near = int(starts[0]) * _BIN_MM
    within = (depth_mm >= max(near, 1)) & (depth_mm < near + range_mm)
    _, areas, stats, _ = cv2.connectedComponentsWithStats(within.astype(np.uint8), connectivity=8)
    return areas == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
