"""Colours and patterns of every part: who wears what becomes one row of numbers per part."""

import numpy as np
from numpy.typing import ArrayLike

from tfds_builders.synthetic_rgbd.body import PARTS
from tfds_builders.synthetic_rgbd.people import PATTERNS

# Columns of a part's paint.
BASE, SECOND, BEYOND = slice(0, 3), slice(3, 6), slice(6, 9)
CUT, PATTERN, PERIOD, PHASE, DARK = 9, 10, 11, 12, 13
COLUMNS = 14

_UPPER = ("waist", "belly", "chest", "bust", "shoulders")
_DARK_LUMINANCE = 0.05
_DARK_CLOTH = 0.3  # many black fabrics reflect infrared; hair does not


def row(
    base: np.ndarray,
    cut: ArrayLike = 2.0,
    beyond: ArrayLike | None = None,
    second: ArrayLike | None = None,
    pattern: ArrayLike = 0,
    period: ArrayLike = 0.1,
    phase: ArrayLike = 0.0,
    dark: ArrayLike | None = None,
) -> np.ndarray:
    """Paint [F, COLUMNS]; `dark` [F] is 1 where infrared is absorbed, by default from the colour."""
    out = np.zeros((len(base), COLUMNS))
    out[:, BASE] = base
    out[:, SECOND] = base if second is None else second
    out[:, BEYOND] = base if beyond is None else beyond
    out[:, CUT], out[:, PATTERN], out[:, PERIOD], out[:, PHASE] = cut, pattern, period, phase
    luminance = out[:, BASE] @ np.array([0.2126, 0.7152, 0.0722])
    out[:, DARK] = _DARK_CLOTH * np.clip(1 - luminance / _DARK_LUMINANCE, 0, 1) if dark is None else dark
    return out


def part_paint(skin: np.ndarray, hair: np.ndarray, hair_style: np.ndarray, outfit: dict[str, np.ndarray]) -> np.ndarray:
    """Paint of the parts: float64 [F, len(PARTS), COLUMNS].

    A part shows `base` (mixed with `second` by its pattern) up to the share CUT of its length and `beyond`
    further on: that is where sleeves, shorts and boots end.

    Args:
        skin, hair: linear-light colours [F, 3].
        hair_style: [F].
        outfit: the fields of `Outfits`, each [F] or [F, 3].
    """
    kind, sleeve = outfit["lower_kind"], outfit["sleeve"]
    cloth = {"second": outfit["upper_second"], "period": outfit["period"], "phase": outfit["phase"]}
    upper = row(outfit["upper"], pattern=outfit["pattern"], **cloth)
    banded = np.where(
        np.isin(outfit["pattern"], (PATTERNS.index("block"), PATTERNS.index("print"))), 0, outfit["pattern"]
    )
    bare = np.zeros(len(skin))
    is_cap, is_coat = (hair_style == 5)[:, None], (kind == 3)[:, None]
    cap = np.where(is_cap, outfit["bag_colour"], hair)
    hair_dark = np.where(hair_style == 5, 0.3, np.where(hair[:, 1] < 0.1, 1.0, 0.5))
    trousers = np.where((kind == 2)[:, None], skin, outfit["lower"])
    shins = np.where(np.isin(kind, (1, 2))[:, None], skin, outfit["lower"])
    rows = dict.fromkeys(_UPPER, upper)
    rows |= {"pelvis": row(outfit["lower"]), "neck": row(skin, dark=bare), "head": row(skin, dark=bare)}
    rows |= {"hair": row(cap, dark=hair_dark), "hair_tail": row(cap, dark=hair_dark)}
    rows["skirt"] = row(np.where(is_coat, outfit["upper"], outfit["lower"]))
    rows["bag"] = row(outfit["bag_colour"])
    for side in ("right", "left"):
        rows[f"{side}_upper_arm"] = row(
            outfit["upper"], cut=np.where(sleeve > 1, 2.0, sleeve), beyond=skin, pattern=banded, **cloth
        )
        arm = np.where((sleeve > 1)[:, None], outfit["upper"], skin)
        rows[f"{side}_forearm"] = row(arm, pattern=np.where(sleeve > 1, banded, 0), **cloth)
        rows[f"{side}_hand"] = row(skin, dark=bare)
        rows[f"{side}_thigh"] = row(trousers, cut=np.where(kind == 1, 0.85, 2.0), beyond=skin)
        rows[f"{side}_shank"] = row(shins, cut=np.where(np.isin(kind, (1, 2)), 0.85, 2.0), beyond=outfit["shoes"])
        rows[f"{side}_foot"] = row(outfit["shoes"])
    return np.stack([rows[name] for name in PARTS], axis=1)
