"""Who the people are (shape, gait, hair, skin) and what they wear."""

import dataclasses

import numpy as np

from tfds_builders.synthetic_rgbd.config import SPLITS, SyntheticRgbdConfig
from tfds_builders.synthetic_rgbd.draws import Draws

CLIP_SIGMA = 2.2
REFERENCE_HEIGHT_M = 1.72

# name: (mean, standard deviation, loadings on frame size, weight and build). The build factor is
# bimodal: positive for broad-shouldered and narrow-hipped bodies, negative for the reverse.
# Lengths are metres of a 1.72 m tall person and scale with height; angles are radians.
IDENTITY = {
    "height": (1.72, 0.09, (0.35, 0.0, 0.55)),
    "leg_ratio": (0.517, 0.013, (0.0, 0.0, 0.1)),  # hip joint height / height
    "thigh_share": (0.500, 0.012, (0.0, 0.0, 0.0)),  # of hip to ankle
    "shoulder_half": (0.176, 0.011, (0.35, 0.15, 0.6)),
    "hip_half": (0.168, 0.011, (0.2, 0.35, -0.4)),
    "chest_half": (0.158, 0.011, (0.25, 0.55, 0.4)),
    "chest_flat": (0.70, 0.045, (0.0, 0.3, 0.1)),  # depth / width
    "waist_half": (0.135, 0.014, (0.1, 0.7, 0.25)),
    "belly": (0.020, 0.018, (0.0, 0.75, 0.2)),  # bulge before the waist
    "bust": (0.012, 0.014, (0.0, 0.2, -0.75)),
    "seat": (0.020, 0.010, (0.0, 0.4, -0.35)),
    "thigh_radius": (0.082, 0.008, (0.1, 0.7, -0.25)),
    "calf_radius": (0.055, 0.005, (0.15, 0.6, 0.0)),
    "arm_radius": (0.047, 0.005, (0.15, 0.6, 0.35)),
    "arm_length": (0.555, 0.018, (0.1, 0.0, 0.1)),  # shoulder to wrist
    "forearm_share": (0.455, 0.012, (0.0, 0.0, 0.0)),
    "neck_length": (0.095, 0.010, (0.0, -0.2, -0.1)),
    "neck_radius": (0.057, 0.005, (0.2, 0.45, 0.5)),
    "shoulder_drop": (0.030, 0.010, (0.0, 0.0, -0.1)),
    "head_length": (0.226, 0.009, (0.2, 0.0, 0.25)),
    "head_width": (0.077, 0.0035, (0.2, 0.25, 0.2)),  # half
    "foot_length": (0.255, 0.012, (0.4, 0.1, 0.45)),
    "slouch": (0.09, 0.055, (0.0, 0.15, 0.0)),  # forward bend of the upper back
    "head_forward": (0.16, 0.09, (0.0, 0.1, 0.0)),  # forward tilt of the neck
    "arm_carriage": (0.12, 0.045, (0.0, 0.45, 0.25)),  # arms away from the trunk
    "elbow_bend": (0.25, 0.11, (0.0, 0.0, 0.1)),
    "toe_out": (0.16, 0.10, (0.0, 0.1, 0.1)),
    "knock_knee": (0.0, 0.030, (0.0, 0.15, -0.2)),
    "stride": (0.46, 0.060, (0.0, -0.15, 0.0)),  # thigh swing amplitude
    "arm_swing": (0.42, 0.14, (0.0, -0.1, 0.1)),
    "knee_lift": (0.95, 0.12, (0.0, 0.0, 0.0)),
    "stance": (0.030, 0.018, (0.0, 0.4, 0.2)),  # extra half distance between the feet
    "cadence": (0.92, 0.07, (-0.2, 0.0, -0.1)),  # gait cycles per second
    "walk_lean": (0.05, 0.035, (0.0, 0.0, 0.0)),
    "sway": (0.025, 0.012, (0.0, 0.2, 0.0)),
    "twist": (0.12, 0.05, (0.0, 0.0, -0.1)),  # counter-rotation of shoulders and hips
    "gait_asymmetry": (0.0, 0.05, (0.0, 0.0, 0.0)),
}
LEAST = {"belly": 0.0, "bust": 0.0, "seat": 0.0, "slouch": -0.05, "stance": 0.0, "sway": 0.0, "twist": 0.0}
LEAST |= {"shoulder_drop": 0.0, "head_forward": 0.0, "arm_carriage": 0.03, "elbow_bend": 0.03, "arm_swing": 0.05}

HAIR_STYLES = ("bald", "short", "medium", "long", "bun", "cap")
PATTERNS = ("plain", "horizontal", "vertical", "checks", "block", "print", "blotches")
BAGS = ("none", "backpack", "shoulder")
LOWERS = ("trousers", "shorts", "skirt", "coat")

# Frequent cloth colours, linear light: black, white, greys, navy, blue, red, green, olive, brown, beige, ...
_CLOTH = np.array(
    [
        [0.03, 0.03, 0.035],
        [0.75, 0.75, 0.74],
        [0.12, 0.12, 0.13],
        [0.32, 0.32, 0.34],
        [0.03, 0.05, 0.16],
        [0.08, 0.18, 0.45],
        [0.50, 0.05, 0.05],
        [0.07, 0.25, 0.10],
        [0.16, 0.16, 0.07],
        [0.20, 0.11, 0.06],
        [0.50, 0.42, 0.30],
        [0.65, 0.50, 0.08],
        [0.45, 0.12, 0.35],
        [0.10, 0.35, 0.38],
        [0.60, 0.25, 0.08],
        [0.30, 0.45, 0.65],
    ]
)
_UPPER_WEIGHTS = (4, 4, 2, 3, 3, 3, 2.5, 1.5, 1.5, 1, 2, 1.5, 1.5, 1.2, 1.2, 2)
_LOWER_WEIGHTS = (6, 1, 3, 2.5, 5, 4, 0.4, 0.4, 1.5, 1.5, 2.5, 0.2, 0.3, 0.3, 0.2, 1)
_SHOE_WEIGHTS = (6, 4, 2, 2, 1, 0.6, 0.6, 0.2, 0.3, 2.5, 1, 0.2, 0.2, 0.2, 0.3, 0.3)
_HAIR = np.array(
    [[0.02, 0.017, 0.015], [0.06, 0.035, 0.02], [0.13, 0.07, 0.035], [0.38, 0.26, 0.12], [0.34, 0.33, 0.32]]
)


@dataclasses.dataclass(frozen=True)
class People:
    """N people; every value is [N] or [N, 3].

    Attributes:
        person_id: int64, unique over all splits.
        body: identity parameters by name, float64; lengths in metres, already scaled by height.
        build: float64, the bimodal build factor, about -1.5 .. 1.5.
        hair_style: index into `HAIR_STYLES`.
        hair_volume: metres of hair over the skull.
        skin, hair: linear-light colours in 0 .. 1.
    """

    person_id: np.ndarray
    body: dict[str, np.ndarray]
    build: np.ndarray
    hair_style: np.ndarray
    hair_volume: np.ndarray
    skin: np.ndarray
    hair: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outfits:
    """What N people wear before one camera; values are [N] or [N, 3], colours linear light.

    Attributes:
        clothes_id: int64, unique over all splits.
        upper, upper_second, lower, shoes, bag_colour: colours.
        pattern: index into `PATTERNS`; period in metres, phase in radians.
        sleeve: covered share of the arm: 0 none .. 2 down to the wrist (1 = the upper arm).
        lower_kind: index into `LOWERS`; bag: index into `BAGS`; bag_side: -1 or 1; bag_size: factor.
        loose_upper, loose_lower: metres added to the radius of trunk, arms and legs.
        skirt_length: share of the leg that a skirt or coat covers; flare: metres.
        heel: sole thickness in metres.
    """

    clothes_id: np.ndarray
    upper: np.ndarray
    upper_second: np.ndarray
    lower: np.ndarray
    shoes: np.ndarray
    bag_colour: np.ndarray
    pattern: np.ndarray
    period: np.ndarray
    phase: np.ndarray
    sleeve: np.ndarray
    lower_kind: np.ndarray
    bag: np.ndarray
    bag_side: np.ndarray
    bag_size: np.ndarray
    loose_upper: np.ndarray
    loose_lower: np.ndarray
    skirt_length: np.ndarray
    flare: np.ndarray
    heel: np.ndarray


def person_ids(config: SyntheticRgbdConfig, split: str, index: np.ndarray) -> np.ndarray:
    """Ids int64 of the people `index` of a split; splits follow one another."""
    before = SPLITS[: SPLITS.index(split)]
    return np.asarray(index, np.int64) + sum(config.people(name) for name in before)


def _ids(split: str, index: np.ndarray, *more: np.ndarray) -> np.ndarray:
    """Rows (split, person, ...): the split's size is no part of a person's name."""
    index = np.asarray(index, np.int64)
    return np.stack([np.full_like(index, SPLITS.index(split)), index, *more], axis=1)


def sample_people(config: SyntheticRgbdConfig, split: str, index: np.ndarray) -> People:
    """The people `index` int [N] of a split: the same whatever else is asked for and however large the split."""
    draws = Draws(config.seed, "person", _ids(split, index))
    frame_size, weight = draws.normal(CLIP_SIGMA), draws.normal(CLIP_SIGMA)
    group = np.where(draws.uniform() < 0.5, -0.85, 0.85)
    build = group + 0.5 * draws.normal(CLIP_SIGMA)
    own = draws.normals(len(IDENTITY), CLIP_SIGMA)
    body = {}
    for column, (name, (mean, deviation, loading)) in enumerate(IDENTITY.items()):
        shared = loading[0] * frame_size + loading[1] * weight + loading[2] * build
        score = shared + np.sqrt(1.0 - np.dot(loading, loading)) * own[:, column]
        value = mean + deviation * config.body_spread * np.clip(score, -CLIP_SIGMA, CLIP_SIGMA)
        body[name] = np.maximum(value, LEAST[name]) if name in LEAST else value
    _scale_with_height(body)
    # Long hair is frequent where build is negative, bald heads and short hair where it is positive.
    weights = np.where(build[:, None] > 0, (0.12, 0.62, 0.08, 0.03, 0.03, 0.12), (0.0, 0.14, 0.28, 0.32, 0.19, 0.07))
    hair_style = (draws.uniforms(1) > np.cumsum(weights, axis=1)).sum(axis=1).clip(0, len(HAIR_STYLES) - 1)
    melanin = draws.uniform()[:, None]
    skin = (1 - melanin) * np.array([0.66, 0.44, 0.34]) + melanin * np.array([0.14, 0.075, 0.05])
    hair = _HAIR[draws.choice((4, 3.5, 2.5, 1.5, 1.2))] * draws.uniform(0.8, 1.25)[:, None]
    volume = np.where(hair_style == 0, 0.0, draws.uniform(0.008, 0.026))
    ids = person_ids(config, split, index)
    return People(ids, body, build, hair_style, volume, skin, np.clip(hair, 0.0, 1.0))


_UNSCALED = {"height", "leg_ratio", "thigh_share", "chest_flat", "forearm_share", "slouch", "head_forward"}
_UNSCALED |= {"arm_carriage", "elbow_bend", "toe_out", "knock_knee", "stride", "arm_swing", "knee_lift", "cadence"}
_UNSCALED |= {"walk_lean", "sway", "twist", "gait_asymmetry"}


def _scale_with_height(body: dict[str, np.ndarray]) -> None:
    """Lengths along the body grow with height, girths and the head less."""
    ratio = body["height"] / REFERENCE_HEIGHT_M
    for name in set(body) - _UNSCALED:
        along = name in ("arm_length", "neck_length", "foot_length", "shoulder_half", "hip_half")
        body[name] = body[name] * (ratio if along else ratio**0.5)


def outfit_numbers(config: SyntheticRgbdConfig, split: str, index: np.ndarray) -> np.ndarray:
    """Which of their outfits people wear before each camera: int64 [N, cameras].

    Before the first camera it is outfit 0; before camera c it is a new one, outfit c, with probability
    `clothes_change_share`, else that of camera c - 1.
    """
    change = Draws(config.seed, "change", _ids(split, index)).uniforms(len(config.cameras))
    cameras = np.arange(config.num_cameras)
    fresh = (change[:, : config.num_cameras] < config.clothes_change_share) | (cameras == 0)
    return np.maximum.accumulate(np.where(fresh, cameras, 0), axis=1)


def sample_outfits(
    config: SyntheticRgbdConfig, split: str, index: np.ndarray, number: np.ndarray, build: np.ndarray
) -> Outfits:
    """Outfit `number` int [N] of the people `index` int [N] of a split, whose build factor is `build` [N]."""
    draws = Draws(config.seed, "outfit", _ids(split, index, number))
    count = len(np.asarray(index))

    def colour(weights: tuple[float, ...]) -> np.ndarray:
        base = _CLOTH[draws.choice(weights)]
        return np.clip(base * np.exp(0.35 * draws.normals(3)) * np.exp(0.25 * draws.normal())[:, None], 0.015, 0.85)

    upper, second, lower = colour(_UPPER_WEIGHTS), colour(_UPPER_WEIGHTS), colour(_LOWER_WEIGHTS)
    shoes, bag_colour = colour(_SHOE_WEIGHTS), colour(_SHOE_WEIGHTS)
    pattern = draws.choice((4.5, 1.2, 0.7, 0.8, 1.0, 1.6, 0.6))
    skirt_share = np.where(build > 0, 0.0, 0.14)
    kind = draws.uniform()
    lower_kind = np.where(kind < 0.12, 1, np.where(kind < 0.12 + skirt_share, 2, np.where(kind > 0.95, 3, 0)))
    sleeve_kind = draws.choice((0.08, 0.3, 0.62))
    sleeve = np.choose(sleeve_kind, (np.zeros(count), 0.45 + 0.35 * draws.uniform(), np.full(count, 2.0)))
    sleeve = np.where(lower_kind == 3, 2.0, sleeve)
    loose = config.clothes_looseness
    return Outfits(
        clothes_id=person_ids(config, split, index) * len(config.cameras) + number,
        upper=upper,
        upper_second=second,
        lower=lower,
        shoes=shoes,
        bag_colour=bag_colour,
        pattern=pattern,
        period=draws.uniform(0.06, 0.2),
        phase=draws.uniform(0.0, 2 * np.pi),
        sleeve=sleeve,
        lower_kind=lower_kind,
        bag=np.where(draws.uniform() < config.bag_share, np.where(draws.uniform() < 0.6, 1, 2), 0),
        bag_side=np.where(draws.uniform() < 0.5, -1.0, 1.0),
        bag_size=draws.uniform(0.8, 1.25),
        loose_upper=loose * (0.002 + 0.009 * draws.uniform() ** 1.5 + np.where(lower_kind == 3, 0.010, 0.0)),
        loose_lower=loose * (0.001 + 0.008 * draws.uniform() ** 1.5),
        skirt_length=np.where(lower_kind == 3, draws.uniform(0.30, 0.55), draws.uniform(0.40, 0.75)),
        flare=draws.uniform(0.01, 0.08),
        heel=draws.uniform(0.008, 0.035),
    )
