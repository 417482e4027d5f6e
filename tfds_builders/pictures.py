"""How frames are drawn for people to look at: depth as colours, captions."""

import cv2
import numpy as np

INK = (30, 30, 30)
PAPER = 255


def depth_picture(depth: np.ndarray, near_mm: float = 1500.0, far_mm: float = 6000.0) -> np.ndarray:
    """uint8 [..., 3] of uint16 millimetres [...]: near is bright, far dark blue, invalid black.

    Args:
        depth: the image or images.
        near_mm: what is brightest, with all before it.
        far_mm: what is darkest, with all behind it.
    """
    scaled = np.clip((depth.astype(np.float64) - near_mm) / max(far_mm - near_mm, 1.0), 0, 1)
    picture = np.stack([235 * (1 - scaled) + 20, 225 * (1 - scaled) ** 1.3 + 25, 120 * (1 - scaled) + 60], axis=-1)
    return np.where(depth[..., None] > 0, picture, 0).astype(np.uint8)


def write_text(picture: np.ndarray, text: str, x: int, y: int, size: float = 0.32) -> None:
    """Writes `text` onto uint8 [H, W, 3], its baseline's left end at (x, y); letters beyond ASCII become ?."""
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)


def encode_sheet(sheet: np.ndarray) -> bytes:
    """A sheet, uint8 [H, W, 3] RGB, as a PNG file, as small as can be."""
    done, encoded = cv2.imencode(".png", sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done, "OpenCV could not encode the sheet"
    return encoded.tobytes()
